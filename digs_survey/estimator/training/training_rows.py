"""Training rows, streamed in a seeded order through a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.estimator.training.training_data import Simulations
from digs_survey.prior import Prior

__all__ = ["Batch", "TrainingRows", "unconstrained"]

Batch = Callable[[slice], tuple[Tensor, Tensor]]
"""Copies u (n, ndim) and flux (n, wavelength) of a part of a batch's rows."""


class TrainingRows:
    """The rows that are not for validation, in batches whose order is fixed by a seed for each pass.

    The shards are shuffled, and read in turn into one half of a buffer while batches are taken from the other; the
    rows of a half are shuffled again. Where it holds all, they are read once, and each pass is one uniform shuffle.

    Parameters
    ----------
    simulations : Simulations
    held : ndarray of int
        Sorted rows for validation.
    batch : int
        Rows of a batch.
    buffer_rows : int
        Rows in memory at most, apart from less than a batch that is carried over.
    """

    def __init__(self, simulations: Simulations, held: NDArray[np.int64], batch: int, buffer_rows: int) -> None:
        self.simulations, self.held, self.batch = simulations, held, batch
        self.rows = len(simulations) - len(held)
        self.steps = self.rows // batch
        self.whole = self.rows <= buffer_rows
        half = self.rows if self.whole else max(1, buffer_rows // 2)
        self._units = simulations.units(half)
        self._units_at_once = max(1, half // (self._units[0].stop - self._units[0].start))
        largest = max(unit.stop - unit.start for unit in self._units)
        room = batch + (half if self.whole else self._units_at_once * largest)
        self._halves = [_Rows(room, simulations) for _ in range(1 if self.whole else 2)]
        self._loaded = False

    def epoch(self, seed: int) -> Generator[Batch, None, None]:
        """Yield each batch of one pass, valid until the next one is asked for.

        What does not fill a batch at the end is left out of this pass.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.whole:
            if not self._loaded:
                self._fill(self._halves[0], self._units)
                self._loaded = True
            yield from self._batches(self._halves[0], generator)
            return
        order = torch.randperm(len(self._units), generator=generator).tolist()
        groups = [order[i : i + self._units_at_once] for i in range(0, len(order), self._units_at_once)]
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            now, ahead = self._halves
            now.size = 0
            pending: Future[None] = reader.submit(self._fill, now, [self._units[i] for i in groups[0]])
            for k in range(len(groups)):
                pending.result()
                if k + 1 < len(groups):
                    # The rows that will be carried over come first; the reader fills in behind them.
                    ahead.size = now.size % self.batch
                    pending = reader.submit(self._fill, ahead, [self._units[i] for i in groups[k + 1]])
                left = yield from self._batches(now, generator)
                if k + 1 < len(groups):
                    ahead.u[: len(left)], ahead.flux[: len(left)] = now.u[left], now.flux[left]
                now, ahead = ahead, now

    def _batches(self, held: _Rows, generator: torch.Generator) -> Generator[Batch, None, Tensor]:
        """Yield the batches of rows in memory, and return the places of those that are left."""
        order = torch.randperm(held.size, generator=generator)
        full = held.size - held.size % self.batch
        for start in range(0, full, self.batch):
            yield partial(held.take, order[start : start + self.batch])
        return order[full:]

    def _fill(self, into: _Rows, units: list[slice]) -> None:
        for unit in units:
            theta, flux = self.simulations.read(unit)
            keep = np.ones(len(theta), dtype=bool)
            keep[self.held[slice(*np.searchsorted(self.held, [unit.start, unit.stop]))] - unit.start] = False
            place = slice(into.size, into.size + int(keep.sum()))
            into.u[place] = unconstrained(self.simulations.prior, theta[keep])
            into.flux[place] = torch.from_numpy(flux[keep])
            into.size = place.stop


class _Rows:
    """Room for rows in memory, the first ``size`` of which are filled."""

    def __init__(self, room: int, simulations: Simulations) -> None:
        self.u = torch.empty(room, simulations.prior.ndim)
        self.flux = torch.empty(room, simulations.elements)
        self.size = 0

    def take(self, places: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Copy some of the rows at these places."""
        return self.u[places[part]], self.flux[places[part]]


def unconstrained(prior: Prior, theta: NDArray[np.float64]) -> Tensor:
    """Unconstrained coordinates of theta (n, ndim), in float32."""
    return torch.as_tensor(prior.to_unconstrained(theta), dtype=torch.float32)
