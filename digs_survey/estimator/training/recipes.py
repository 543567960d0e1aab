"""Whether simulations and pairs are those that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from digs_survey import formats
from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid

__all__ = ["check_pairs", "check_recipe"]


def check_recipe(
    recipe: Mapping[str, Any] | None,
    config: SurveyConfig,
    grid: WavelengthGrid | None = None,
    noise: NoiseModel | None = None,
) -> None:
    """Refuse simulations that were made with another model, prior or grid than those asked for.

    Parameters
    ----------
    recipe : mapping or None
        What the simulations' attributes tell; None, as in a dataset made by other means, cannot be checked.
    config : SurveyConfig
    grid : WavelengthGrid, optional
        That the survey's spectra have.
    noise : NoiseModel, optional
        Needed where its donors give the redshifts of simulations.

    Raises
    ------
    StageError
        Naming every field that differs, and both of its values.
    """
    if recipe is None:
        return
    identity = RunIdentity.of_config(config, grid or WavelengthGrid.from_config(config.grid), noise)
    # Those of another stream are what the posterior will be tested on.
    ours = {"format": formats.SIMULATIONS, "stream": "simulate"}
    ours |= identity.key("model", "prior", *([] if grid is None else ["grid"]))
    # Simulations that have redshifts are of row noise, and others are not.
    ours["redshift"] = identity.noise.redshift_key.get("redshift")
    theirs = {name: recipe.get(name) for name in ours}
    _refuse(_flat(theirs), _flat(ours), "simulations", "--redo simulate")


def check_pairs(
    recipe: Mapping[str, Any] | None, simulations: Mapping[str, Any] | None, config: SurveyConfig, noise: NoiseModel
) -> None:
    """Refuse pairs that were made from other simulations, or with another noise or number, than those asked for.

    Parameters
    ----------
    recipe : mapping or None
        What the pairs' attributes tell.
    simulations : mapping or None
        What those of the simulations tell.
    config : SurveyConfig
    noise : NoiseModel
        That the posterior is trained for.

    Raises
    ------
    StageError
        Naming every field that differs, and both of its values.
    """
    if recipe is None:
        raise StageError("train: expected pairs with the recipe that they were made by, found none; see 'augment'")
    ours = {
        "format": formats.PAIRS,
        "seed": config.seed,
        "draws_per_spectrum": config.augment.draws_per_spectrum,
        "noise": noise.to_dict(),
        "simulations": simulations,
    }
    theirs = {name: recipe.get(name) for name in ours}
    _refuse(_flat(theirs), _flat(ours), "pairs", "digs-survey augment --redo")


def _refuse(theirs: Mapping[str, Any], ours: Mapping[str, Any], what: str, remedy: str) -> None:
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if names:
        lines = [f"  - {name}: {what} {theirs.get(name)}, configuration {ours.get(name)}" for name in names]
        raise StageError(
            f"train: the {what} were made with other settings than the configuration's; set these back, or "
            f"make them again ({remedy}, or another --run-dir):\n" + "\n".join(lines)
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    names = {key: f"{prefix}.{key}" if prefix else str(key) for key in value}
    return {name: leaf for key, item in value.items() for name, leaf in _flat(item, names[key]).items()}
