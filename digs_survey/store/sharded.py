"""A sharded dataset and its ledger, kept together: what a stage may go on with, and what it starts afresh."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray

from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import is_remote
from digs_survey.store.storage import ArraySpec, create_dataset, read_json

__all__ = ["keep_rows", "open_or_create", "recorded_recipe", "simulations_hash"]


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
        _remove_partial(path)
        return True
    ledger.clear()
    create_dataset(path, arrays, values, attrs={"recipe": dict(recipe)})
    return False


def keep_rows(
    path: Path, recipe: Mapping[str, Any], ledger: Ledger, arrays: Mapping[str, ArraySpec], of_inputs: Collection[str]
) -> bool:
    """Give a dataset the rows of other inputs in place, if its recipe and arrays differ in nothing else.

    Finished shards are set aside in the ledger: whoever makes one again may find that what is there still holds.
    A call that was interrupted is made again.

    Parameters
    ----------
    path, recipe, ledger, arrays
        As :func:`open_or_create` takes them.
    of_inputs : collection of str
        Fields of the recipe that tell the inputs, and may differ.

    Returns
    -------
    bool
        Whether the dataset is of this recipe now.
    """
    before, wanted = recorded_recipe(path), json.loads(json.dumps(recipe))
    if before is None or any(before.get(k) != v for k, v in wanted.items() if k not in of_inputs):
        return False
    group: Any = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    if set(before) != set(wanted) or not all(name in group and spec.fits(group[name]) for name, spec in arrays.items()):
        return False
    # A call that was interrupted may have resized some of them.
    if before == wanted and all(group[name].shape == spec.shape for name, spec in arrays.items()):
        return False
    _remove_partial(path)
    ledger.set_aside()
    for name, spec in arrays.items():
        group[name].resize(spec.shape)
    # Last: until then the dataset is of the earlier inputs.
    group.attrs["recipe"] = wanted
    return True


def _remove_partial(path: Path) -> None:
    """Remove what Zarr leaves of files that it did not finish."""
    for partial in () if is_remote(path) else path.rglob("*.partial"):
        partial.unlink(missing_ok=True)


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
