r"""The table of a finished run under another prior: its kept draws, each weighed by the ratio of the densities.

A draw :math:`\theta_i` of the posterior under the run's prior :math:`p` gets the weight
:math:`w_i \propto p'(\theta_i) / p(\theta_i)` for another prior :math:`p'`. Nothing is drawn, so that a new prior costs
no more than reading the draws. What it can say ends with the draws: of N, :math:`(\sum w)^2 / \sum w^2` are left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.errors import ConfigError, RunDirectoryError
from digs_survey.importance.weights import effective_sample_size, weighted_quantiles
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.refine.new_prior import NewPrior
from digs_survey.results.columns import COLUMNS, Column, When, find_column, percentile, percentile_name
from digs_survey.results.export import StoredTable, export_table
from digs_survey.results.table import field_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Counts", "Reweighing", "kept_draws", "write_reprior"]

_KEPT = ("galaxy_id", "redshift", "n_good", "quality", "agreement")
"""Columns of the run's table that are no matter of the prior, besides the survey's own."""
_ROWS, _BLOCK_ROWS = 16_384, 512
"""Rows that are written together, and rows whose draws are held together."""


@dataclass
class Counts:
    """How many rows of a table have percentiles under another prior, and how many have none, for which reason.

    Attributes
    ----------
    min_ess : float
    draws : int
        Kept of each row.
    rows, below, without : int
        All rows, those below ``min_ess``, and those without draws.
    largest : float
        Largest effective sample size of a row.
    """

    min_ess: float
    draws: int
    rows: int = 0
    below: int = 0
    without: int = 0
    largest: float = 0.0

    def add(self, ess: NDArray[np.floating]) -> None:
        """Count the effective sample sizes (row,) of rows."""
        known = ess[np.isfinite(ess)]
        self.rows += ess.size
        self.without += ess.size - known.size
        self.below += int((known < self.min_ess).sum())
        self.largest = max(self.largest, float(known.max(initial=0.0)))

    def __str__(self) -> str:
        """Say it in a line."""
        kept = self.rows - self.below - self.without
        text = f"{kept:,} of {self.rows:,} rows have percentiles under the new prior"
        if self.below:
            text += f"; {self.below:,} have fewer than {self.min_ess:g} effective draws of {self.draws:,}, and none"
        if self.without:
            text += f"; {self.without:,} have no kept draws"
        return text


@dataclass(frozen=True)
class Reweighing:
    """Weighs rows of draws and condenses them; each row's result depends on that row alone.

    Attributes
    ----------
    prior : NewPrior
    quantiles : tuple of float
    min_ess : float
        Effective sample size below which a row has NaN percentiles.
    derive : DerivedQuantities or None
        Of the run's model, where derived quantities are wanted.
    by_row : bool
        Whether the model of each row is at the row's redshift, and not at one for all.
    """

    prior: NewPrior
    quantiles: tuple[float, ...]
    min_ess: float
    derive: DerivedQuantities | None = None
    by_row: bool = True
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", (*self.prior.run.names, *(self.derive.names if self.derive else ())))

    def __call__(
        self, samples: NDArray[np.floating], redshift: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Effective sample size (n,) and percentiles (n, name, quantile) of draws (n, parameter, sample).

        NaN draws have the size NaN; a row all of whose weights are 0 has the size 0.
        """
        size = np.full(len(samples), np.nan)
        found = np.full((len(samples), len(self.names), len(self.quantiles)), np.nan, dtype=np.float32)
        kept = np.flatnonzero(np.isfinite(samples).all(axis=(1, 2)))
        theta = samples[kept].transpose(0, 2, 1).astype(float)
        log_weights = self.prior.log_ratio(theta)
        possible = np.isfinite(log_weights.max(axis=1, initial=-np.inf))
        size[kept] = 0.0
        size[kept[possible]] = effective_sample_size(log_weights[possible])
        some = size[kept] >= self.min_ess
        rows, theta, log_weights = kept[some], theta[some], log_weights[some]
        if rows.size and self.derive is not None:
            low, high = self.prior.run.low, self.prior.run.high
            more = self.derive(np.clip(theta, low, high), redshift[rows, None] if self.by_row else np.nan)
            theta = np.concatenate([theta, more], axis=-1)
        for i, row in enumerate(rows):
            values = weighted_quantiles(theta[i], log_weights[i], self.quantiles)
            # The last digit of a mean may lie beyond what it is of, and so beyond the prior.
            found[row] = np.clip(values, theta[i].min(axis=0)[:, None], theta[i].max(axis=0)[:, None])
        return size.astype(np.float32), found


def kept_draws(dataset: Path, run_dir: Path) -> Any:
    """Return the array of kept draws (galaxy, parameter, sample) of a run.

    Raises
    ------
    RunDirectoryError
        If none are kept.
    """
    group: Any = zarr.open_group(str(dataset), mode="r")
    if "samples" not in group:
        raise RunDirectoryError(
            f"{run_dir}: expected draws of its rows in posterior.zarr, found none, since map.samples = 0; map it again "
            "with draws kept: digs-survey map CATALOG --run-dir RUN --redo --set map.samples=200"
        )
    return group["samples"]


def write_reprior(
    table: Path,
    samples: Any,
    reweighing: Reweighing,
    out: Path,
    table_format: str,
    *,
    overwrite: bool = False,
    rows: int | None = None,
) -> Counts:
    """Write the table of a run under another prior; the run is only read, and the file appears complete or not at all.

    Parameters
    ----------
    table : Path
        ``results.parquet`` or ``percentiles.parquet`` of the run.
    samples : Zarr array, shape (galaxy, parameter, sample)
        Its kept draws.
    reweighing : Reweighing
    out : Path
        The file to write.
    table_format : str
        One of :data:`~digs_survey.results.export.FORMATS`.
    overwrite : bool
        Whether a file that is there may be replaced.
    rows : int, optional
        Rows that the table must have.

    Raises
    ------
    ConfigError
        If no row has an effective sample size of ``min_ess``.
    RunDirectoryError
        If no row has draws.
    """
    from pyarrow import parquet

    source = StoredTable(table, rows)
    counts = Counts(reweighing.min_ess, samples.shape[2])
    with TemporaryDirectory(prefix="digs-survey-") as folder:
        building = Path(folder) / "reprior.parquet"
        writer = None
        for piece in _pieces(source, samples, reweighing, counts):
            writer = writer or parquet.ParquetWriter(building, piece.schema, compression="zstd")
            writer.write_table(piece, row_group_size=piece.num_rows)
        if writer is None or counts.without == counts.rows:
            raise RunDirectoryError(f"{table.parent}: no row has kept draws (map.samples_column); map it with some")
        writer.close()
        if counts.below + counts.without == counts.rows:
            raise ConfigError(
                f"no row has {counts.min_ess:g} effective draws or more under the new prior ({reweighing.prior}): the "
                f"most is {counts.largest:.3g} of {counts.draws:,}. The new prior is too far from the run's: train "
                "with it, or keep more draws (map.samples); --min-ess takes fewer, with less certain percentiles"
            )
        export_table(building, out, table_format, overwrite=overwrite)
    return counts


def _pieces(source: StoredTable, samples: Any, reweighing: Reweighing, counts: Counts) -> Iterator[pa.Table]:
    """Yield the new table, some rows at a time."""
    import pyarrow as pa

    taken = [name for name in source.schema.names if name in _KEPT or find_column(name) is None]
    schema = _schema(source.schema, taken, reweighing, counts.draws)
    start = 0
    for piece in source.tables(_ROWS):
        redshift = np.asarray(piece["redshift"].to_numpy(), dtype=float)
        ess, percentiles = _weighed(samples, start, redshift, reweighing)
        start += piece.num_rows
        counts.add(ess)
        values: dict[str, Any] = {name: piece[name] for name in taken}
        for k, name in enumerate(reweighing.names):
            for j, quantile in enumerate(reweighing.quantiles):
                values[percentile_name(name, quantile)] = np.ascontiguousarray(percentiles[:, k, j])
        values |= {"reprior_ess": ess, "reprior_share": ess / np.float32(counts.draws)}
        yield pa.table([values[name] for name in schema.names], schema=schema)


def _weighed(
    samples: Any, start: int, redshift: NDArray[np.float64], reweighing: Reweighing
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weigh the rows from ``start`` on, a block at a time."""
    blocks = [slice(at, at + _BLOCK_ROWS) for at in range(0, redshift.size, _BLOCK_ROWS)]
    found = [
        reweighing(samples[start + part.start : start + min(part.stop, redshift.size)], redshift[part])
        for part in blocks
    ]
    ess, percentiles = zip(*found, strict=True)
    return np.concatenate(ess), np.concatenate(percentiles)


def _schema(of_run: pa.Schema, taken: list[str], reweighing: Reweighing, draws: int) -> pa.Schema:
    """Return the columns in the order of the run's tables, with the new prior in the metadata."""
    import pyarrow as pa

    known = {p.name: p for p in reweighing.prior.run.parameters}
    new: list[Column] = [
        percentile(name, quantile, new_prior=True, known=known.get(name))
        for name in reweighing.names
        for quantile in reweighing.quantiles
    ]
    own = [name for name in taken if name not in _KEPT or name in ("galaxy_id", "redshift")]
    fields = [of_run.field(name) for name in own] + [field_of(column) for column in new]
    fields += [of_run.field(name) for name in taken if name not in own]
    fields += [field_of(column) for column in COLUMNS if column.when is When.REPRIOR]
    metadata = dict(of_run.metadata or {})
    # The new percentiles are those of the draws themselves.
    metadata.pop(b"recalibration", None)
    about = reweighing.prior.to_dict() | {"draws": draws, "min_ess": reweighing.min_ess}
    return pa.schema(fields, metadata={**metadata, b"reprior": json.dumps(about, sort_keys=True).encode()})
