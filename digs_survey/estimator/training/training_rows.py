"""Simulations for training: checked, split, and streamed in a seeded order through a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.parameters import Prior
from digs_survey.simulate.seeding import stream_key
from digs_survey.spectra import WavelengthGrid

__all__ = ["Batch", "Simulations", "TrainingRows", "check_recipe", "held_rows", "unconstrained"]

Batch = Callable[[slice], tuple[Tensor, Tensor]]
"""Copies u (n, ndim) and noiseless flux (n, wavelength) of a part of a batch's rows."""

_HELD_AT_MOST = 20_000
"""Validation rows: beyond so many the validation loss is known well enough, and training has better use for them."""
_READ_AT_ONCE = 50_000
_NAMED_ROWS = 5


def held_rows(count: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Return which of ``count`` rows are for validation, sorted: that fraction, 20,000 at most, fixed by the seed."""
    held = min(_HELD_AT_MOST, max(1, round(count * fraction)))
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
            With the number of rows whose flux is not finite and positive or whose theta is not in the prior, the
            first of them, and what is wrong there.
        """
        bad, named = 0, list[str]()
        for rows in self.units(_READ_AT_ONCE):
            theta, flux = self.read(rows)
            wrong = _wrong(theta, flux, self.prior)
            bad += int(wrong.sum())
            for row in np.flatnonzero(wrong)[: _NAMED_ROWS - len(named)]:
                named.append(f"  - row {rows.start + row}: {_describe(theta[row], flux[row], self.prior)}")
            yield rows, theta, flux
        if bad:
            raise StageError(
                f"train: {bad:,} of {len(self):,} simulations cannot be trained on; expected finite, positive flux in "
                "every element and theta inside the prior. No row is left out in silence; make the simulations "
                "again (--redo simulate), or find out what changed them. The first:\n" + "\n".join(named)
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


def check_recipe(recipe: Mapping[str, Any] | None, config: SurveyConfig, grid: WavelengthGrid | None = None) -> None:
    """Refuse simulations that were made with another model, prior or grid than those asked for.

    Parameters
    ----------
    recipe : mapping or None
        What the simulations' attributes tell; None, as in a dataset made by other means, cannot be checked.
    config : SurveyConfig
    grid : WavelengthGrid, optional
        That the survey's spectra have.

    Raises
    ------
    StageError
        Naming every field that differs, and both of its values.
    """
    if recipe is None:
        return
    theirs, ours = _flat(recipe["model"], "model"), _flat(config.model.model_dump(mode="json"), "model")
    for mine, parameters in ((theirs, recipe["prior"]), (ours, config.make_prior().to_dict())):
        mine |= {f"prior.{p['name']}.{bound}": p[bound] for p in parameters for bound in ("low", "high")}
    # Those of another stream are what the posterior will be tested on.
    theirs["stream"], ours["stream"] = recipe["stream"], "simulate"
    if grid is not None:
        made = WavelengthGrid.from_dict(recipe["grid"])
        theirs["grid"], ours["grid"] = (str(made), str(grid)) if made != grid else ("", "")
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if names:
        lines = [f"  - {name}: simulations {theirs.get(name)}, configuration {ours.get(name)}" for name in names]
        raise StageError(
            "train: the simulations were made with other settings than the configuration's; set these back, or "
            "simulate again (--redo simulate, or another --run-dir):\n" + "\n".join(lines)
        )


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f"{prefix}.{key}").items()}


def _wrong(theta: NDArray[np.float64], flux: NDArray[np.float32], prior: Prior) -> NDArray[np.bool_]:
    good = (flux > 0) & (flux < np.inf)
    return ~good.all(axis=1) | ~np.isfinite(prior.log_prob(theta))


def _describe(theta: NDArray[np.float64], flux: NDArray[np.float32], prior: Prior) -> str:
    good = (flux > 0) & (flux < np.inf)
    if not good.all():
        element = int(np.flatnonzero(~good)[0])
        return f"flux {flux[element]} in element {element} ({int((~good).sum())} such elements)"
    outside = int(np.flatnonzero(~((theta >= prior.low) & (theta <= prior.high)))[0])
    return f"{prior.names[outside]} = {theta[outside]:g}, prior from {prior.low[outside]:g} to {prior.high[outside]:g}"
