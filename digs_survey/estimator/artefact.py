"""The frozen posterior on disk: ``model.safetensors`` for arrays and ``card.json`` for everything else.

Never a pickle. The hash of a model covers its arrays and the part of its card that decides results;
calibration results, which are learned later, may be added without changing it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from digs_survey import formats
from digs_survey.config import ModelConfig, NoiseConfig, SurveyConfig
from digs_survey.errors import CatalogError, RunDirectoryError
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_file, location
from digs_survey.store.storage import read_bytes, read_json, write_bytes, write_json
from digs_survey.versions import versions

__all__ = [
    "NETWORK",
    "check_grid",
    "check_hash",
    "identify",
    "load_artefact",
    "model_hash",
    "recorded_config",
    "recorded_folder",
    "save_artefact",
    "update_card",
]

NETWORK = {
    "flow": "flow",
    "hidden_features": "hidden_features",
    "transforms": "transforms",
    "blocks": "blocks",
    "embedding": "embedding",
    "embedding_features": "embedding_features",
    "embedding_layers": "embedding_layers",
    "flux_transform": "features",
    "whitening": "whitening",
    "components": "components",
    "amplitude": "amplitude",
    "ensemble": "ensemble",
}
"""Settings of the network that rebuild it, and their names in the card's architecture."""
_WIDER = 1.2
"""How much wider than the posterior's the elements of a catalog may be; the observed frame's are narrower at rest."""
_DECISIVE = ("format", "architecture", "parameters", "grid", "noise", "model", "training")


def model_hash(arrays: dict[str, NDArray[Any]], card: dict[str, Any]) -> str:
    """SHA-256 over the arrays and the decisive part of the card."""
    digest = hashlib.sha256(json.dumps({key: card[key] for key in _DECISIVE}, sort_keys=True).encode())
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{value.dtype.str}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def save_artefact(folder: Path, arrays: dict[str, NDArray[Any]], card: dict[str, Any]) -> str:
    """Write the model, the card last, and return its hash."""
    digest = model_hash(arrays, card)
    write_bytes(folder / "model.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_json(folder / "card.json", {**card, "hash": digest, "versions": versions()})
    return digest


def load_artefact(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a model and check it against its hash.

    Raises
    ------
    RunDirectoryError
        If a file is missing, of another format, or does not match the hash in the card.
    """
    for name in ("card.json", "model.safetensors"):
        if not is_file(folder / name):
            raise RunDirectoryError(f"model {folder}: expected {name} there; train one with 'digs-survey train'")
    card = read_json(folder / "card.json")
    if card.get("format") != formats.CARD:
        raise RunDirectoryError(
            f"model {folder}: card.json has format {card.get('format')!r}, this version reads {formats.CARD}; "
            "train it again"
        )
    arrays = load(read_bytes(folder / "model.safetensors"))
    if model_hash(arrays, card) != card["hash"]:
        raise RunDirectoryError(
            f"model {folder}: model.safetensors and card.json do not match the hash in the card; "
            "one of them was changed or damaged, restore it or train again"
        )
    return arrays, card


def identify(folder: Path, *, seed: int, catalog: str = "") -> RunIdentity:
    """Return the identity of a run that uses the frozen posterior in a folder; torch is not needed.

    Parameters
    ----------
    folder : Path
    seed : int
        Of the run.
    catalog : str
        Fingerprint of the catalog that it is applied to.

    Raises
    ------
    RunDirectoryError
        As :func:`load_artefact`.
    """
    arrays, card = load_artefact(folder)
    flux_transform = card["architecture"][NETWORK["flux_transform"]]
    grid = WavelengthGrid.from_dict(card["grid"])
    noise = NoiseModel.from_config(NoiseConfig.model_validate(card["noise"]), arrays.get("noise.table"), flux_transform)
    return RunIdentity(
        seed=seed,
        model=ModelConfig.model_validate(card["model"]),
        prior=Prior.from_dict(card["parameters"]),
        noise=noise.on(grid),
        grid=grid,
        catalog=catalog,
        posterior=folder.absolute(),
        posterior_hash=str(card["hash"]),
    )


def check_hash(folder: Path, found: str, expected: str) -> None:
    """Refuse another posterior than the one that results were made with.

    Raises
    ------
    RunDirectoryError
    """
    if found != expected:
        raise RunDirectoryError(
            f"{folder} is not the posterior of these results any more: expected the hash {expected}, found {found}; "
            "put the posterior back, or map the catalog again (--redo map)"
        )


def recorded_folder(run_dir: Path, manifest: Mapping[str, Any]) -> Path:
    """Return the folder of the posterior that a run's map used; of the run's own, where nothing is mapped yet."""
    entry = manifest["inputs"].get("posterior", {"path": "model"})
    return run_dir / "model" if entry["path"] == "model" else location(entry["path"])


def recorded_config(run_dir: Path, manifest: Mapping[str, Any], config: SurveyConfig) -> SurveyConfig:
    """Return a run's configuration with what its map recorded, where something is mapped and the posterior is there.

    Raises
    ------
    RunDirectoryError
        If another posterior lies in its folder now.
    """
    entry, mapped = manifest["inputs"].get("posterior"), manifest["stages"].get("map")
    folder = recorded_folder(run_dir, manifest)
    if entry is None or mapped is None or not is_file(folder / "card.json"):
        return config
    identity = identify(folder, seed=mapped["key"]["seed"])
    check_hash(folder, identity.posterior_hash, entry["hash"])
    return identity.restore(config, mapped["key"])


def check_grid(trained: WavelengthGrid, grid: WavelengthGrid, noise: NoiseModel) -> None:
    """Refuse a catalog on another grid than the one that a posterior was trained for, unless its noise takes any.

    Raises
    ------
    CatalogError
    """
    if noise.config.by_row:
        _check_fine_enough(trained, grid)
    elif grid != trained:
        raise CatalogError(
            "the catalog's wavelength grid is not the one that the posterior was trained for:\n"
            f"  catalog:   {grid}\n  posterior: {trained}\nThe catalog has {grid.difference(trained)}.\n"
            "Train for this grid (digs-survey run with a new --run-dir), or resample the catalog."
        )


def _check_fine_enough(trained: WavelengthGrid, grid: WavelengthGrid) -> None:
    """Refuse elements wider than those that they are to be rebinned to: one measurement would count several times."""
    inside = (grid.wavelength > trained.edges[0]) & (grid.wavelength < trained.edges[-1])
    widest, wanted = np.diff(grid.edges)[inside].max(initial=0.0), np.diff(trained.edges).min()
    if widest > _WIDER * wanted:
        raise CatalogError(
            f"the catalog's elements are up to {widest:g} Angstrom wide, and the posterior's {wanted:g}: rebinned, a "
            f"measurement would count several times.\n  catalog:   {grid}\n  posterior: {trained}\n"
            f"Make the catalog with elements of {wanted:g} Angstrom or less (--step-angstrom of digs-survey ingest)."
        )


def update_card(folder: Path, **entries: Any) -> None:
    """Add entries, such as calibration results, that do not decide results."""
    path = folder / "card.json"
    card = read_json(path)
    if decisive := set(entries) & {*_DECISIVE, "hash"}:
        raise ValueError(f"card entries {sorted(decisive)} belong to the model's hash")
    write_json(path, {**card, **entries})
