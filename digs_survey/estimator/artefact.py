"""The frozen posterior on disk: ``model.safetensors`` for arrays and ``card.json`` for everything else.

Never a pickle. The hash of a model covers its arrays and the part of its card that decides results;
calibration results, which are learned later, may be added without changing it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from digs_survey.errors import CatalogError, RunDirectoryError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_file
from digs_survey.store.storage import read_bytes, read_json, write_bytes, write_json
from digs_survey.versions import versions

__all__ = ["FORMAT", "NETWORK", "check_grid", "load_artefact", "model_hash", "save_artefact", "update_card"]

FORMAT = 2
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
    if card.get("format") != FORMAT:
        raise RunDirectoryError(
            f"model {folder}: card.json has format {card.get('format')!r}, this version reads {FORMAT}; train it again"
        )
    arrays = load(read_bytes(folder / "model.safetensors"))
    if model_hash(arrays, card) != card["hash"]:
        raise RunDirectoryError(
            f"model {folder}: model.safetensors and card.json do not match the hash in the card; "
            "one of them was changed or damaged, restore it or train again"
        )
    return arrays, card


def check_grid(card: dict[str, Any], grid: WavelengthGrid) -> None:
    """Refuse a catalog on another grid than the one that a posterior was trained for.

    Raises
    ------
    CatalogError
    """
    trained = WavelengthGrid.from_dict(card["grid"])
    if grid != trained:
        raise CatalogError(
            "the catalog's wavelength grid is not the one that the posterior was trained for:\n"
            f"  catalog:   {grid}\n  posterior: {trained}\n"
            "Train for this grid (digs-survey run with a new --run-dir), or resample the catalog."
        )


def update_card(folder: Path, **entries: Any) -> None:
    """Add entries, such as calibration results, that do not decide results."""
    path = folder / "card.json"
    card = read_json(path)
    if decisive := set(entries) & {*_DECISIVE, "hash"}:
        raise ValueError(f"card entries {sorted(decisive)} belong to the model's hash")
    write_json(path, {**card, **entries})
