"""One shard of the noisy pairs: the simulations that it copies, and the noise of each copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.config import NoiseConfig
from digs_survey.errors import StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.shard_work import Made, ShardWriter
from digs_survey.store.storage import checksum, read_arrays, rows_of_shard, write_arrays

__all__ = ["PairShards", "open_simulations", "stored_array"]

_TABLE = "noise.npz"
_BLOCK_ROWS = 256
"""Pairs whose random numbers are in memory at once: few enough for the processor's cache."""


@dataclass(frozen=True)
class PairShards(ShardWriter):
    """What a worker needs to make any shard of the pairs, given its number.

    A catalog's errors may take many MB. They lie in a file beside the ledger, which each task reads once: nothing of
    them passes through the scheduler, and a worker that is replaced finds them too.

    Attributes
    ----------
    simulations : Path
        The noiseless simulations.
    """

    stage: ClassVar[str] = "augment"

    simulations: Path

    def keep_noise(self, noise: NoiseModel) -> None:
        """Write the table of errors, if the noise has one, where workers read it."""
        if noise.table is not None:
            write_arrays(self.ledger / _TABLE, {"table": noise.table})

    def compute(self, parts: Sequence[slice]) -> Iterator[Made]:
        """Put noise on copies of the simulations; pair i copies simulation i // draws_per_spectrum."""
        recipe, noise, base = self.recipe, self._noise(), _Simulations(self.simulations)
        for rows in parts:
            simulation = np.arange(rows.start, rows.stop) // recipe["draws_per_spectrum"]
            first = int(simulation[0])
            theta, flux = base.read(slice(first, int(simulation[-1]) + 1))
            noisy = np.empty((len(simulation), flux.shape[1]), dtype=np.float32)
            for start in range(0, len(simulation), _BLOCK_ROWS):
                block = slice(start, min(start + _BLOCK_ROWS, len(simulation)))
                pair = rows.start + block.start, rows.start + block.stop
                uniform = row_uniforms(recipe["seed"], "augment", *pair, noise.columns(flux.shape[1]))
                noisy[block] = noise.from_uniform(flux[simulation[block] - first], uniform)
            yield {"theta": theta[simulation - first], "flux": noisy, "simulation": simulation}, {}

    def _noise(self) -> NoiseModel:
        settings = dict(self.recipe["noise"])
        expected, keeps_negative = settings.pop("table"), settings.pop("keeps_negative")
        table = None
        if expected is not None:
            table = read_arrays(self.ledger / _TABLE)["table"]
            if checksum(table) != expected:
                raise StageError(
                    f"{self.ledger / _TABLE}: expected the noise that {self.path} is made with, found another"
                )
        return NoiseModel(NoiseConfig.model_validate(settings), table, keeps_negative)


class _Simulations:
    """Rows of the simulations, read by whole shards, the last of which is kept: shards of pairs share it."""

    def __init__(self, path: Path) -> None:
        self.path, self.group = path, open_simulations(path)
        flux = stored_array(self.group, "flux")
        self.count, self.rows_per_shard = flux.shape[0], (flux.shards or flux.chunks)[0]
        self._kept: tuple[int, NDArray[np.float64], NDArray[np.float32]] | None = None

    def read(self, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return theta (n, parameter) and noiseless flux (n, wavelength) of some rows."""
        theta, flux = [], []
        for shard in range(rows.start // self.rows_per_shard, (rows.stop - 1) // self.rows_per_shard + 1):
            first = shard * self.rows_per_shard
            part = slice(max(rows.start - first, 0), rows.stop - first)
            some_theta, some_flux = self._shard(shard)
            theta.append(some_theta[part])
            flux.append(some_flux[part].astype(float))
        return np.concatenate(theta), np.concatenate(flux)

    def _shard(self, shard: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        if self._kept is None or self._kept[0] != shard:
            self._kept = None
            self._kept = shard, *self._checked(shard)
        return self._kept[1:]

    def _checked(self, shard: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        rows = rows_of_shard(shard, self.count, self.rows_per_shard)
        where = f"shard {shard} (rows {rows.start} to {rows.stop - 1}) of {self.path}"
        remedy = "run 'digs-survey verify', which has damaged shards made again, and finish the simulate stage"
        try:
            theta, flux = (np.asarray(stored_array(self.group, name)[rows]) for name in ("theta", "flux"))
        except (ValueError, RuntimeError) as error:
            raise StageError(f"{where} cannot be decoded ({error}); {remedy}") from error
        bad = np.flatnonzero(~((flux > 0) & np.isfinite(flux)).all(axis=1) | ~np.isfinite(theta).all(axis=1))
        if bad.size:
            raise StageError(
                f"{where}: expected finite, positive flux in every element and finite theta, found {bad.size} rows "
                f"without, the first of them row {rows.start + int(bad[0])}; {remedy}"
            )
        return theta, flux


def open_simulations(path: Path) -> zarr.Group:
    """Open a dataset of simulations.

    Raises
    ------
    StageError
        If there is none.
    """
    try:
        return zarr.open_group(str(path), mode="r")
    except FileNotFoundError:
        raise StageError(f"augment: no simulations at {path}; run the simulate stage first") from None


def stored_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array of a dataset."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise StageError(f"{group.store_path}: expected an array {name!r}, found a group")
    return array
