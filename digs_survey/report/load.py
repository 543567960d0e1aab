"""What a report needs from a run directory, read once and without holding the whole table in memory.

Everything that a stage writes may be missing (the stage has not run, or was switched off); it is then
None here and the report says so. Only the manifest and the configuration have to be there.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from digs_survey.config import SurveyConfig, load_config
from digs_survey.errors import RunDirectoryError
from digs_survey.estimator.artefact import recorded_config, recorded_folder
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.store.locations import exists, is_file, is_remote
from digs_survey.store.storage import read_bytes, read_json

__all__ = ["CatalogSummary", "FirstRows", "RunData", "load_run", "names_of", "open_table"]

_BLOCK_ROWS = 65_536
_BINS = 40


@dataclass(frozen=True)
class CatalogSummary:
    """Counts over all rows of ``posterior.zarr``.

    Attributes
    ----------
    rows, flagged, without_posterior : int
        Rows in all, rows with any quality bit, and rows with a bit of ``NO_POSTERIOR``.
    bits : dict of QualityFlag to int
        Rows that carry each bit.
    edges, counts : dict of str to ndarray
        Histogram of each parameter's median, over the prior's range.
    """

    rows: int
    flagged: int
    without_posterior: int
    bits: dict[QualityFlag, int]
    edges: dict[str, NDArray[np.float64]]
    counts: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class FirstRows:
    """The top of a table: its name, column names, rows of values, and how many rows there are in all."""

    name: str
    columns: list[str]
    rows: list[list[Any]]
    total: int


@dataclass(frozen=True)
class RunData:
    """The parts of a run directory that its report shows; None where a file is missing."""

    folder: Path
    manifest: dict[str, Any]
    config: SurveyConfig
    card: dict[str, Any] | None
    history: dict[str, NDArray[np.float64]] | None
    catalog: CatalogSummary | None
    first_rows: FirstRows | None
    audit: dict[str, Any]
    calibration: xr.Dataset | None
    galaxies: xr.Dataset | None
    survey: xr.Dataset | None = None
    escalated: dict[str, Any] | None = None


def names_of(dataset: xr.Dataset) -> list[str]:
    """Names of the parameters of an audit or posterior dataset, in order."""
    return [str(name) for name in dataset["parameter"].values]


def load_run(run_dir: Path) -> RunData:
    """Read a run directory.

    Raises
    ------
    RunDirectoryError
        If there is no manifest or configuration in it.
    """
    for name in ("manifest.json", "config.toml"):
        if not is_file(run_dir / name):
            raise RunDirectoryError(
                f"run directory {run_dir}: expected {name}, found no such file; "
                "give the folder that `digs-survey run` printed"
            )
    manifest = read_json(run_dir / "manifest.json")
    config = recorded_config(run_dir, manifest, load_config(run_dir / "config.toml"))
    model = recorded_folder(run_dir, manifest)
    card = model / "card.json"
    audit, escalated = run_dir / "audit.json", run_dir / "escalate.json"
    return RunData(
        folder=run_dir,
        manifest=manifest,
        config=config,
        card=read_json(card) if is_file(card) else None,
        history=_history(model / "history.csv"),
        catalog=_catalog(run_dir / "posterior.zarr", config),
        first_rows=_first_rows(run_dir / "results.parquet") or _first_rows(run_dir / "percentiles.parquet"),
        audit=read_json(audit) if is_file(audit) else {},
        calibration=_group(run_dir / "audit.zarr", "calibration", "simulation"),
        galaxies=_group(run_dir / "audit.zarr", "galaxies", "galaxy"),
        survey=_group(run_dir / "audit.zarr", "survey", "galaxy"),
        escalated=read_json(escalated) if is_file(escalated) else None,
    )


def _history(path: Path) -> dict[str, NDArray[np.float64]] | None:
    if not is_file(path):
        return None
    table = np.atleast_1d(
        np.genfromtxt(io.BytesIO(read_bytes(path)), delimiter=",", names=True, dtype=float, encoding="utf-8")
    )
    return {name: table[name] for name in table.dtype.names or ()} if table.size else None


def _group(path: Path, group: str, rows: str) -> xr.Dataset | None:
    if not is_file(path / group / "zarr.json"):
        return None
    with xr.open_zarr(str(path), group=group, consolidated=False, chunks=None) as dataset:
        return dataset.load() if dataset.sizes.get(rows, 0) else None


def _catalog(path: Path, config: SurveyConfig, block: int = _BLOCK_ROWS) -> CatalogSummary | None:
    if not is_file(path / "zarr.json"):
        return None
    prior = config.make_prior()
    bits = dict.fromkeys(QualityFlag, 0)
    edges = {p.name: np.linspace(p.low, p.high, _BINS + 1) for p in prior.parameters}
    counts = {name: np.zeros(_BINS, dtype=np.int64) for name in prior.names}
    flagged = without = 0
    with xr.open_zarr(str(path), consolidated=False, chunks=None) as dataset:
        rows = dataset.sizes["galaxy"]
        middle = int(np.argmin(np.abs(dataset["quantile"].values - 0.5)))
        median, names = dataset["percentiles"].isel(quantile=middle), names_of(dataset)
        for start in range(0, rows, block):
            part = slice(start, start + block)
            quality = dataset["quality"].isel(galaxy=part).values
            flagged += int((quality != 0).sum())
            without += int((quality & int(NO_POSTERIOR) != 0).sum())
            for flag in bits:
                bits[flag] += int((quality & int(flag) != 0).sum())
            values = median.isel(galaxy=part).values
            for column, name in enumerate(names):
                counts[name] += np.histogram(values[:, column], edges[name])[0]
    return CatalogSummary(rows, flagged, without, bits, edges, counts)


def open_table(path: Path) -> Any:
    """Open a table of results as a pyarrow dataset."""
    from pyarrow.dataset import dataset

    source: Any = path
    remote = is_remote(path)
    return dataset(source.path if remote else path, filesystem=source.fs if remote else None, format="parquet")


def _first_rows(path: Path, rows: int = 10) -> FirstRows | None:
    if not exists(path):
        return None
    table = open_table(path)
    columns, total = list(table.schema.names), table.count_rows()
    values = [[record[name] for name in columns] for record in table.head(rows).to_pylist()]
    return FirstRows(path.name, columns, values, total)
