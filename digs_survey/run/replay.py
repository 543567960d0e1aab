"""One row of a result once more, bit for bit, and where everything in it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.catalog import Catalog, CatalogRows
from digs_survey.config import SurveyConfig
from digs_survey.errors import CatalogError, RunDirectoryError
from digs_survey.infer.map_catalog import derived_quantities
from digs_survey.infer.shard_worker import RowInference, digest
from digs_survey.run.manifest import RunManifest
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import exists, location
from digs_survey.store.storage import checksum
from digs_survey.versions import versions

__all__ = ["Replay", "replay"]


@dataclass(frozen=True)
class Replay:
    """A row that was computed once more.

    Attributes
    ----------
    row : int
        In the catalog.
    galaxy_id : int or str
    identical : bool
        Whether every array has the same bytes as in the run's results.
    differing : list of str
        Names of the arrays that have not.
    values : dict of str to ndarray
        What was computed now, by the names of ``posterior.zarr``.
    provenance : dict
        Where it came from: input, model, configuration, versions then and now, attempt.
    """

    row: int
    galaxy_id: Any
    identical: bool
    differing: list[str]
    values: dict[str, NDArray[Any]]
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it; what is not finite becomes null."""
        return {
            "galaxy_id": self.galaxy_id.item() if hasattr(self.galaxy_id, "item") else self.galaxy_id,
            "identical": self.identical,
            "differing": self.differing,
            "values": {name: _plain(value[0].tolist()) for name, value in self.values.items()},
            "provenance": self.provenance,
        }


def _plain(values: Any) -> Any:
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not np.isfinite(values) else values


def replay(run_dir: Path, config: SurveyConfig, galaxy_id: str) -> list[Replay]:
    """Compute the rows of a galaxy once more; several, where rows share its identifier.

    Parameters
    ----------
    run_dir : Path
        With a finished map, or one whose shard of this row is finished.
    config : SurveyConfig
        The run's own.
    galaxy_id : str
        As the catalog has it, integers in decimal digits.

    Raises
    ------
    RunDirectoryError
        If the row was not mapped, or the catalog or the posterior is not there any more or another one.
    CatalogError
        If no row has the identifier.
    """
    from digs_survey.estimator.posterior import FrozenPosterior

    manifest = RunManifest(run_dir)
    out = run_dir / "posterior.zarr"
    if "map" not in manifest.stages or not exists(out):
        raise RunDirectoryError(f"{run_dir} has no results; run 'digs-survey map' first")
    identity, entry = manifest.identity(), manifest.data["inputs"]["catalog"]
    config = identity.restore(config, manifest.stages["map"]["key"])
    catalog, posterior = Catalog.open(location(entry["path"]), identity.filters), FrozenPosterior.of(identity)
    rows = catalog.find(galaxy_id)
    if not rows.size:
        raise CatalogError(f"galaxy_id {galaxy_id}: none of the {catalog.n_rows} rows of {catalog.path} has it")
    group: Any = zarr.open_group(str(out), mode="r", use_consolidated=False)
    records = Ledger(run_dir / "ledger" / "map").records()
    levels = group.attrs["recipe"].get("levels")
    infer = RowInference(posterior, catalog, config, derived_quantities(identity, config.map.quantities), levels)
    found = []
    for row in rows.tolist():
        shard = row // group["quality"].shards[0]
        if shard not in records:
            raise RunDirectoryError(f"row {row} of {catalog.path} is not mapped yet; run 'digs-survey map' to its end")
        part = slice(row, row + 1)
        block = catalog.rows(row, row + 1)
        values = infer(part, block).arrays()
        differing = [
            name for name, value in values.items() if digest({name: value}) != digest({name: group[name][part]})
        ]
        provenance = {
            "catalog": entry["path"],
            "catalog_fingerprint": entry["fingerprint"],
            "row": row,
            "input_checksum": checksum(block.flux, block.ivar, block.good, block.redshift, *_photometry(block)),
            "model": str(identity.posterior),
            "model_hash": posterior.hash,
            "seed": manifest.data.get("seed"),
            "config_hash": manifest.data.get("config_hash"),
            "map_settings": config.map.model_dump(mode="json"),
            "recalibrated_levels": levels,
            "shard": shard,
            "attempt": {name: records[shard].get(name) for name in ("attempt", "host", "pid", "finished")},
            "git_commit": manifest.data.get("git_commit"),
            "versions": manifest.data.get("versions"),
            "versions_now": versions(),
        }
        found.append(Replay(row, block.galaxy_id[0], not differing, differing, values, provenance))
    return found


def _photometry(block: CatalogRows) -> list[NDArray[np.float64]]:
    """Photometry of rows, where they have any."""
    return [block.maggies, block.maggies_ivar] if block.maggies.size else []
