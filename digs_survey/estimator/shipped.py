"""Posteriors that ship with the package, trained by its own pipeline, and when one of them may be used.

Each is a frozen posterior (``model.safetensors``, ``card.json``) in a folder below ``digs_survey/pretrained`` that has
the name of the preset that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from digs_survey.config import SurveyConfig, default_of
from digs_survey.identity import prior_key
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import read_json

__all__ = ["find_shipped", "mismatches", "shipped", "why_none"]


def shipped() -> dict[str, Path]:
    """Folders of the posteriors that ship with the package, by name."""
    root = Path(str(files("digs_survey"))) / "pretrained"
    return {card.parent.name: card.parent for card in sorted(root.glob("*/card.json"))}


def mismatches(card: dict[str, Any], config: SurveyConfig, grid: WavelengthGrid) -> list[str]:
    """Name what of a survey is not what a posterior with this card was trained for; empty if all of it is.

    Parameters
    ----------
    card : dict
        Of a frozen posterior.
    config : SurveyConfig
        Its model, prior and noise are compared.
    grid : WavelengthGrid
        The catalog's.

    Returns
    -------
    list of str
        Such as "grid (medium vacuum, not air)" or "noise.fraction (0.05, not 0.1)".
    """
    grids = WavelengthGrid.from_dict(card["grid"]).difference(grid)
    found = [f"grid ({grids})"] if grids else []
    for section, trained, asked in (
        ("model", card["model"], config.model.model_dump(mode="json")),
        ("noise", card["noise"], config.noise.model_dump(mode="json")),
        ("prior", prior_key(Prior.from_dict(card["parameters"])), prior_key(config.make_prior())),
    ):
        found += [f"{section}.{line}" for line in _differences(section, trained, asked)]
    if config.noise.needs_catalog:
        found.append("noise (the catalog's own)")
    return found


def find_shipped(config: SurveyConfig, grid: WavelengthGrid) -> Path | None:
    """Folder of the shipped posterior that was trained for this model, prior, noise and grid, if there is one."""
    for folder in shipped().values():
        if not mismatches(read_json(folder / "card.json"), config, grid):
            return folder
    return None


def why_none(config: SurveyConfig, grid: WavelengthGrid) -> str:
    """Say for each shipped posterior what of it is not what a survey asks for, at most three facts each."""
    told = []
    for name, folder in shipped().items():
        found = mismatches(read_json(folder / "card.json"), config, grid)
        more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
        told.append(f"{name} has another {', '.join([*found[:3], *more])}")
    return "; ".join(told)


def _differences(section: str, trained: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*trained, *asked}):
        # Settings that are left at their default may not be written.
        before, now = (values.get(name, default_of(f"{section}.{name}")) for values in (trained, asked))
        if before != now:
            yield f"{name} ({_told(before)}, not {_told(now)})"


def _told(value: Any) -> str:
    return "no such parameter" if value is None else str(value)
