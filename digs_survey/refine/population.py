r"""The distribution of one parameter in a survey, from the draws of its rows: a hierarchical histogram.

The posteriors of rows, stacked, are wider than the population, and drawn to the prior. The population's own shares
:math:`f_b` of bins of a parameter :math:`\theta` are those under which the rows are most probable,

.. math:: \max_f \prod_i \sum_b f_b A_{ib}, \quad A_{ib} = \frac{1}{K \Delta_b} \sum_{k: \theta_{ik} \in b}
          \frac{1}{\pi(\theta_{ik})},

with K draws :math:`\theta_{ik}` of row i, the width :math:`\Delta_b` of a bin, and the density :math:`\pi` of the
run's prior, which the draws have to be freed of (Hogg, Myers & Bovy 2010, ApJ 725, 2166). The other parameters keep
the run's prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from digs_survey.distributions import Distribution
from digs_survey.errors import ConfigError
from digs_survey.parameters import Parameter
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.store.storage import write_bytes, write_json

__all__ = ["LEFT_OUT", "Population", "bin_edges", "infer_population", "write_population"]

LEFT_OUT = NO_POSTERIOR | QualityFlag.OUTSIDE_SIMULATIONS | QualityFlag.POOR_FIT
"""Rows with one of these bits are left out: their draws are not those of a posterior of the galaxy."""
_BLOCK_ROWS = 4_096
_LEAST = 1e-12
"""Share of a bin that counts as none: shares are searched from there on, so that no row becomes impossible."""


@dataclass(frozen=True)
class Population:
    """Shares of a population in bins of a parameter.

    Attributes
    ----------
    edges : ndarray of float64, shape (bin + 1,)
        In the parameter's unit.
    share : ndarray of float64, shape (bin,)
        Of the population, most probable; their sum is 1.
    low, high : ndarray of float64, shape (bin,)
        16 % and 84 % quantiles of the shares over samples of the rows.
    stacked : ndarray of float64, shape (bin,)
        Share of all rows' draws, for comparison.
    prior : ndarray of float64, shape (bin,)
        Share of the run's prior.
    rows, left_out : int
        Rows that were used, and those that have no draws or one of the bits of :data:`LEFT_OUT`.
    """

    edges: NDArray[np.float64]
    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    stacked: NDArray[np.float64]
    prior: NDArray[np.float64]
    rows: int
    left_out: int

    def __str__(self) -> str:
        """Say in a line what it is of."""
        text = f"{self.share.size} bins from {self.rows:,} rows"
        return text + (f"; {self.left_out:,} have no draws or a bad fit, and are left out" if self.left_out else "")

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return the table, one row for each bin."""
        return {
            "bin_low": self.edges[:-1],
            "bin_high": self.edges[1:],
            "share": self.share,
            "share_p16": self.low,
            "share_p84": self.high,
            "stacked": self.stacked,
            "prior": self.prior,
        }


def bin_edges(bins: str, prior: Distribution) -> NDArray[np.float64]:
    """Return the edges of bins between the ends of a prior: of a number of equal ones, or those that are named.

    Raises
    ------
    ConfigError
        If they are neither, do not increase, or do not reach from one end to the other.
    """
    found = bins.split(",")
    try:
        if len(found) == 1 and int(bins) > 0:
            return np.linspace(prior.low, prior.high, int(bins) + 1)
        edges = np.array(found, dtype=float)
    except ValueError:
        edges = np.zeros(0)
    close = 1e-6 * (prior.high - prior.low)
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ConfigError(f"bins: expected a number of bins, or increasing edges such as -2,-1,0.2, found {bins!r}")
    if edges[0] > prior.low + close or edges[-1] < prior.high - close:
        raise ConfigError(
            f"bins: expected edges that reach from {prior.low:g} to {prior.high:g}, the ends of the run's prior, found "
            f"{edges[0]:g} to {edges[-1]:g}; make the outer bins wide"
        )
    edges[[0, -1]] = prior.low, prior.high
    if not (np.diff(edges) > 0).all():
        raise ConfigError(f"bins: expected all edges within the run's prior, [{prior.low:g}, {prior.high:g}]")
    return edges


def infer_population(
    samples: Any,
    column: int,
    quality: NDArray[np.integer],
    prior: Distribution,
    edges: NDArray[np.float64],
    *,
    bootstrap: int = 100,
    seed: int = 0,
) -> Population:
    """Find the shares of bins under which the rows are most probable, and how uncertain they are.

    Parameters
    ----------
    samples : array or Zarr array, shape (row, parameter, sample)
        Kept draws; NaN for rows without.
    column : int
        Of the parameter.
    quality : ndarray of int, shape (row,)
    prior : Distribution
        The run's, of the parameter.
    edges : ndarray, shape (bin + 1,)
        From one end of the prior to the other.
    bootstrap : int
        Samples of the rows, with replacement, for the uncertainty.
    seed : int
        Of these samples.

    Raises
    ------
    ConfigError
        If fewer than two rows can be used.
    """
    blocks = list(_blocks(samples, column, quality, prior, edges))
    rows = sum(len(density) for density, _ in blocks)
    if rows < 2:
        raise ConfigError(
            f"population: expected two rows or more that have draws and a good fit, found {rows} of {len(quality)}"
        )
    density, counts = (np.concatenate(part) for part in zip(*blocks, strict=True))
    share = _most_probable(density, np.ones(rows))
    rng = np.random.default_rng(seed)
    samples_of_rows = (np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(bootstrap))
    again = np.stack([_most_probable(density, times, share) for times in samples_of_rows])
    low, high = np.quantile(again, [0.16, 0.84], axis=0)
    in_prior = np.diff(prior.cdf(edges))
    return Population(edges, share, low, high, counts.mean(axis=0), in_prior, rows, len(quality) - rows)


def _blocks(
    samples: Any, column: int, quality: NDArray[np.integer], prior: Distribution, edges: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield A (row, bin) of the rows that are used, each divided by its largest, and the shares of their draws."""
    for start in range(0, len(quality), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(quality))
        theta = np.asarray(samples[start:stop, column], dtype=float)
        used = np.isfinite(theta).all(axis=1) & ((quality[start:stop] & int(LEFT_OUT)) == 0)
        theta = prior.within(theta[used])
        if not len(theta):
            continue
        bins = edges.size - 1
        place = np.clip(np.searchsorted(edges, theta, side="right") - 1, 0, bins - 1)
        place += bins * np.arange(len(theta))[:, None]
        weight = np.exp(-prior.log_pdf(theta))
        sums, counts = (
            np.bincount(place.ravel(), values, minlength=bins * len(theta)).reshape(-1, bins).astype(float)
            for values in (weight.ravel(), np.full(theta.size, 1 / theta.shape[1]))
        )
        density = sums / np.diff(edges)
        yield density / density.max(axis=1, keepdims=True), counts


def _most_probable(
    density: NDArray[np.float64], times: NDArray[Any], near: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    r"""Shares (bin,) that maximise the sum of ``times`` log(A f), for A (row, bin); searched from ``near`` on.

    The sum over bins is 1 at the maximum of :math:`\sum_i n_i \log (A f)_i / \sum n - \sum_b f_b`, which is concave
    and asks for nothing but :math:`f \geq 0`.
    """
    total = times.sum()

    def cost(f: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        likelihood = density @ f
        value = f.sum() - times @ np.log(likelihood) / total
        return float(value), 1 - density.T @ (times / likelihood) / total

    bins = density.shape[1]
    options = {"maxiter": 2_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    start = np.full(bins, 1 / bins) if near is None else 0.9 * near + 0.1 / bins
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[(_LEAST, None)] * bins, options=options).x
    share = np.where(found > _LEAST, found, 0.0)
    return share / share.sum()


def write_population(found: Population, parameter: Parameter, about: Mapping[str, str], out: Path) -> None:
    """Write the table, one row for each bin, as CSV, JSON or Parquet by the ending of the file.

    Parameters
    ----------
    found : Population
    parameter : Parameter
        What it is of.
    about : mapping of str to str
        Where it came from; in the metadata of Parquet, and in JSON.
    out : Path
        Replaced if it is there; complete or not there at all.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = found.columns()
    about = {"parameter": parameter.name, "unit": parameter.unit, "rows": str(found.rows), **about}
    if out.suffix == ".json":
        write_json(out, {**about, "bins": [dict(zip(columns, row, strict=True)) for row in _rows(columns)]})
        return
    units = {name: parameter.unit if name.startswith("bin_") else "" for name in columns}
    fields = [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in units.items()]
    table = pa.Table.from_arrays([pa.array(c) for c in columns.values()], schema=pa.schema(fields, metadata=about))
    sink = pa.BufferOutputStream()
    if out.suffix == ".csv":
        csv.write_csv(table, sink, csv.WriteOptions(quoting_style="none"))
    else:
        parquet.write_table(table, sink, compression="zstd")
    write_bytes(out, sink.getvalue().to_pybytes())


def _rows(columns: Mapping[str, NDArray[np.float64]]) -> list[list[float]]:
    return np.stack(list(columns.values()), axis=1).tolist()
