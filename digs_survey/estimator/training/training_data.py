"""What training reads: simulations, or noisy pairs, in memory or on disk; checked, and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import clean_spectra
from digs_survey.prior import Prior
from digs_survey.simulate.seeding import stream_key

__all__ = ["HELD_AT_MOST", "Pairs", "Simulations", "TrainingFiles", "held_rows"]

HELD_AT_MOST = 20_000
"""Validation rows: beyond so many the validation loss is known well enough, and training has better use for them."""
_READ_AT_ONCE = 50_000
_NAMED_ROWS = 5


def held_rows(count: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Return which of ``count`` rows are for validation, sorted: that fraction, 20,000 at most, fixed by the seed."""
    held = min(HELD_AT_MOST, max(1, round(count * fraction)))
    rng = np.random.default_rng(stream_key(seed, "split"))
    return np.sort(rng.choice(count, held, replace=False, shuffle=False))


@dataclass(frozen=True)
class Simulations:
    """Parameters and noiseless spectra, read by slices of rows.

    Attributes
    ----------
    theta : array_like, shape (n, ndim)
        In memory, or a Zarr array.
    flux : array_like, shape (n, wavelength)
        Row i is the noiseless spectrum of ``theta[i]``.
    prior : Prior
        That theta was drawn from.
    """

    theta: Any
    flux: Any
    prior: Prior

    def __len__(self) -> int:
        return int(self.theta.shape[0])

    @property
    def elements(self) -> int:
        """Wavelength elements of a spectrum."""
        return int(self.flux.shape[1])

    @property
    def name(self) -> str:
        """What the rows are called in messages."""
        return "simulations"

    def units(self, at_most: int) -> list[slice]:
        """Slices that are read at once: whole shards, or less where a shard has more rows than ``at_most``."""
        stored = getattr(self.flux, "shards", None) or getattr(self.flux, "chunks", None) or (len(self),)
        rows = max(1, min(int(stored[0]), at_most))
        return [slice(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]

    def read(self, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Read theta and flux of some rows."""
        return np.asarray(self.theta[rows], dtype=np.float64), np.asarray(self.flux[rows], dtype=np.float32)

    def checked(self) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float32]]]:
        """Read all rows in order; at the end, refuse them if any cannot be trained on.

        Raises
        ------
        StageError
            With the number of rows whose flux cannot be used or whose theta is not in the prior, the first of them, and
            what is wrong there.
        """
        bad, named = 0, list[str]()
        for rows in self.units(_READ_AT_ONCE):
            theta, flux = self.read(rows)
            usable, fits = self._usable(flux), np.isfinite(self.prior.log_prob(theta)) & self._in_place(rows)
            wrong = ~(usable.all(axis=1) & fits)
            bad += int(wrong.sum())
            for i in np.flatnonzero(wrong)[: _NAMED_ROWS - len(named)]:
                named.append(f"  - row {rows.start + i}: {self._fault(theta[i], flux[i], usable[i])}")
            yield rows, theta, flux
        if bad:
            raise StageError(
                f"train: {bad:,} of {len(self):,} {self.name} cannot be trained on; expected {self._expected}. No row "
                f"is left out in silence; make the {self.name} again ({self._remedy}), or find out what changed them. "
                "The first:\n" + "\n".join(named)
            )

    def gather(self, *wanted: NDArray[np.int64]) -> list[tuple[NDArray[np.float64], NDArray[np.float32]]]:
        """Read all rows once, checked, and return theta and flux of each sorted set of row numbers."""
        found = [
            (np.empty((len(w), self.prior.ndim)), np.empty((len(w), self.elements), dtype=np.float32)) for w in wanted
        ]
        for rows, theta, flux in self.checked():
            for numbers, (some_theta, some_flux) in zip(wanted, found, strict=True):
                place = slice(*np.searchsorted(numbers, [rows.start, rows.stop]))
                some_theta[place] = theta[numbers[place] - rows.start]
                some_flux[place] = flux[numbers[place] - rows.start]
        return found

    def light(self, wanted: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return what filters see (n, coarse element) of sorted rows; None where simulations have no photometry."""
        stored = getattr(self.flux, "light", None)
        if stored is None:
            return None
        found = np.empty((len(wanted), stored.shape[1]), dtype=np.float32)
        for rows in self.units(_READ_AT_ONCE):
            place = slice(*np.searchsorted(wanted, [rows.start, rows.stop]))
            found[place] = stored[rows][wanted[place] - rows.start]
        return found

    @property
    def _expected(self) -> str:
        return "finite, positive flux in every element and theta inside the prior"

    @property
    def _remedy(self) -> str:
        return "--redo simulate"

    def _usable(self, flux: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which elements (n, wavelength) can be trained on."""
        usable = (flux > 0) & (flux < np.inf)
        bands = getattr(self.flux, "bands", 0)
        if bands:
            # Of a band that does not count at a row's redshift, simulations have what the coarse grid holds of it.
            usable[:, -1 - bands : -1] = np.isfinite(flux[:, -1 - bands : -1])
        return usable

    def _in_place(self, rows: slice) -> NDArray[np.bool_] | bool:
        """Tell which rows (n,) are where they belong."""
        return True

    def _fault(self, theta: NDArray[np.float64], flux: NDArray[np.float32], usable: NDArray[np.bool_]) -> str:
        """Say what is wrong with a row."""
        prior = self.prior
        if not usable.all():
            element = int(np.flatnonzero(~usable)[0])
            return f"flux {flux[element]} in element {element} ({int((~usable).sum())} such elements)"
        outside = np.flatnonzero(~((theta >= prior.low) & (theta <= prior.high)))
        if not outside.size:
            return "it is not a copy of the simulation that belongs there"
        i = int(outside[0])
        return f"{prior.names[i]} = {theta[i]:g}, prior from {prior.low[i]:g} to {prior.high[i]:g}"


@dataclass(frozen=True)
class Pairs(Simulations):
    """Parameters and noisy spectra: row i copies simulation i // copies.

    Attributes
    ----------
    simulation : array_like of int, shape (n,)
        The simulation that each row says it copies.
    copies : int
        Noisy spectra of each simulation.
    noise : NoiseModel
        That they were drawn with. Where it keeps negative flux, such flux is data.
    """

    simulation: Any
    copies: int
    noise: NoiseModel

    @property
    def name(self) -> str:
        """What the rows are called in messages."""
        return "pairs"

    @property
    def _expected(self) -> str:
        sign = "finite" if self.noise.keeps_negative else "finite, positive"
        return f"{sign} flux in every element, theta inside the prior, and {self.copies} rows of each simulation"

    @property
    def _remedy(self) -> str:
        return "digs-survey augment --redo"

    def _usable(self, flux: NDArray[np.float32]) -> NDArray[np.bool_]:
        finite = np.isfinite(flux)
        if self.noise.keeps_negative:
            return finite
        # The noise fills elements that are not positive from the others of the row, if those that are not missing have
        # any that is positive.
        missing = self.noise.config.missing
        most = missing.stretches * missing.elements[1] if missing.columns else 0
        return finite & ((flux > 0) | ((flux > 0).sum(axis=1, keepdims=True) <= most))

    def _in_place(self, rows: slice) -> NDArray[np.bool_]:
        return np.asarray(self.simulation[rows]) == np.arange(rows.start, rows.stop) // self.copies


@dataclass(frozen=True)
class TrainingFiles:
    """The datasets that training reads, which every worker opens itself.

    Attributes
    ----------
    simulations : Path
    pairs : Path or None
        Noisy copies of the simulations; None where noise is fresh.
    """

    simulations: Path
    pairs: Path | None = None

    def open(self, config: SurveyConfig, noise: NoiseModel) -> tuple[Any, Any, Pairs | None]:
        """Return theta and noiseless flux of the simulations as Zarr arrays, and the pairs."""
        group: Any = zarr.open_group(str(self.simulations), mode="r")
        pairs = None
        if self.pairs is not None:
            copied: Any = zarr.open_group(str(self.pairs), mode="r")
            arrays = copied["theta"], copied["flux"], config.make_prior(), copied["simulation"]
            pairs = Pairs(*arrays, copied.attrs["recipe"]["draws_per_spectrum"], noise)
        return group["theta"], clean_spectra(group), pairs
