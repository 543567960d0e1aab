"""A sharded dataset and its ledger, kept together: what a stage may go on with, and what it starts afresh."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray

from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import is_remote
from digs_survey.store.storage import ArraySpec, create_dataset, read_json

__all__ = ["open_or_create", "recorded_recipe", "simulations_hash"]


def open_or_create(
    path: Path,
    recipe: Mapping[str, Any],
    ledger: Ledger,
    arrays: Mapping[str, ArraySpec],
    values: Mapping[str, NDArray[Any]],
) -> bool:
    """Keep the dataset at ``path`` if it was laid out by the same recipe; lay it out anew otherwise.

    Parameters
    ----------
    path : Path
        The Zarr group.
    recipe : mapping
        Everything that decides the dataset's bytes, as JSON can hold it; recorded in its attributes.
    ledger : Ledger
        Cleared if the dataset is laid out anew.
    arrays, values
        As :func:`~digs_survey.store.storage.create_dataset` takes them.

    Returns
    -------
    bool
        Whether the dataset was kept.
    """
    if recorded_recipe(path) == json.loads(json.dumps(recipe)):
        if not is_remote(path):
            for partial in path.rglob("*.partial"):
                partial.unlink(missing_ok=True)
        return True
    ledger.clear()
    create_dataset(path, arrays, values, attrs={"recipe": dict(recipe)})
    return False


def recorded_recipe(path: Path) -> Any:
    """Return the recipe of the dataset at ``path``; None if there is none."""
    try:
        return read_json(path / "zarr.json")["attributes"].get("recipe")
    except FileNotFoundError:
        return None


def simulations_hash(simulations: Path, records: Mapping[int, Mapping[str, Any]]) -> str:
    """Hash of a set of simulations from its attributes and the checksums of its shards."""
    group = zarr.open_group(str(simulations), mode="r")
    attrs = dict(group.attrs)
    sums = [records[shard]["checksum"] for shard in sorted(records)]
    return hashlib.sha256(json.dumps([attrs, sums], sort_keys=True, default=str).encode()).hexdigest()
