"""The training loop: NPE with fresh noise for every batch, on one worker or many.

Batches, noise and weights are fixed by the seed: what a worker does depends on the run's seed, the member of the
ensemble, the epoch and the step alone, so that a run that was killed goes on from its checkpoint to the same weights.

Each thread computes its own rows of a batch, from noise to gradients, with kernels of one thread: many small kernels
shared among threads would mostly wait for each other. Noise of the next batch is made while the optimiser steps.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from digs_survey.config import SurveyConfig, TrainConfig
from digs_survey.errors import StageError
from digs_survey.estimator.dataset import Batch, Simulations, TrainingRows, held_rows, unconstrained
from digs_survey.estimator.features import Features
from digs_survey.estimator.network import Estimator, build_estimator, resolve_device
from digs_survey.estimator.noising import noisy_rows
from digs_survey.estimator.optimiser import Soap
from digs_survey.simulate.noise import NoiseModel
from digs_survey.simulate.seeding import stream_key
from digs_survey.storage import write_bytes

__all__ = [
    "HISTORY",
    "Diverged",
    "Worker",
    "blank_estimator",
    "fit",
    "load_checkpoint",
    "prepare_estimator",
]

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "wall_s", "core_s")
_FEATURE_ROWS = 50_000
_WARM_UP = 0.02
_FINAL_RATE = 1e-3
_PART = 2048
"""Rows that a thread computes at once: enough that kernels outweigh their calls, few enough for the cache."""
_EXPLODED = 10.0
"""Nats above the loss of the untrained network from which on training has diverged."""
_RATES = ("learning_rate", "gradient_clip")
"""Settings that may differ from those of a checkpoint whose run diverged."""


class Diverged(StageError):
    """The loss is not finite, or far above that of the untrained network; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Worker:
    """The place of this process among the training workers, and how they share.

    Attributes
    ----------
    rank, size : int
    add : callable
        Replaces each tensor of a list by its sum over the workers.
    total : callable
        Sums a float over the workers.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[list[Tensor]], None] = lambda tensors: None
    total: Callable[[float], float] = lambda value: value


def blank_estimator(config: SurveyConfig, elements: int, member: int = 0) -> Estimator:
    """Build the estimator of spectra of so many elements, with initial weights and without the features' statistics."""
    features = Features(elements, config.train.components, config.make_prior())
    return build_estimator(config.train, features, _seed(config, member, "weights") if member else config.seed)


def prepare_estimator(
    config: SurveyConfig, theta: ArrayLike, flux: ArrayLike, noise: NoiseModel, member: int = 0
) -> Estimator:
    """Build the untrained estimator with the features' statistics from the training split.

    Takes what :func:`fit` takes.
    """
    simulations = Simulations(theta, flux, config.make_prior())
    return _with_statistics(config, *simulations.gather(_feature_rows(config, len(simulations)))[0], noise, member)


def load_checkpoint(path: Path, key: str, settings: TrainConfig) -> dict[str, Any] | None:
    """Read a checkpoint that was written for the same settings and data; None if there is none.

    ``key`` covers all that decides the weights but the learning rate and the clipping of gradients: a checkpoint
    with others of these is used only if its run diverged, which is what they are changed for.
    """
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True, map_location="cpu")
    same = state["key"] == key and (state["rates"][-1][1:] == _rates(settings) or state["diverged"])
    return state if same else None


def fit(
    config: SurveyConfig,
    theta: ArrayLike,
    flux: ArrayLike,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    *,
    worker: Worker | None = None,
    member: int = 0,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train until the last epoch or early stopping, checkpointing after each epoch.

    Parameters
    ----------
    config : SurveyConfig
    theta : array_like, shape (n, ndim)
    flux : array_like, shape (n, wavelength)
        Noiseless; row i is the spectrum of ``theta[i]``. Arrays in memory, or Zarr arrays, which are streamed by whole
        shards through a buffer of ``train.buffer_rows``.
    noise : NoiseModel
    checkpoint : Path
        Written by worker 0, read by all.
    key : str
        Hash of all that decides the weights but learning rate and clipping; see :func:`load_checkpoint`.
    worker : Worker, optional
    member : int
        Of an ensemble: enters the initial weights, the order of rows and their noise. Validation rows and the
        features' statistics are those of all members.
    on_epoch : callable
        Given each new line of the history.

    Returns
    -------
    dict
        The last checkpoint: best weights under "best", the history under "history".

    Raises
    ------
    Diverged
        If the loss is not finite or exploded. The checkpoint keeps the weights of the last epoch before; with a lower
        learning rate or clipping, the same call goes on from there.
    StageError
        If simulations cannot be trained on, or there are fewer than one batch.
    """
    worker, settings = worker or Worker(), config.train
    with _one_thread(), _Trainer(config, Simulations(theta, flux, config.make_prior()), noise, worker, member) as run:
        state = load_checkpoint(checkpoint, key, settings)
        if state is None:
            state = {"key": key, "epoch": 0, "history": [], "best_loss": math.inf, "best": None, "best_epoch": 0}
            state |= {"untrained_loss": run.validate(), "rates": [[0, *_rates(settings)]], "diverged": ""}
            run.save(checkpoint, state)
        else:
            if state["rates"][-1][1:] != _rates(settings):
                state["rates"].append([state["epoch"], *_rates(settings)])
                state["diverged"] = ""
            elif state["diverged"]:
                raise Diverged(state["diverged"])
            run.estimator.load_state_dict(state["weights"])
            run.optimiser.load_state_dict(state["optimiser"])
        wall_before, core_before = state["history"][-1][4:6] if state["history"] else (0.0, 0.0)
        wall, core = time.perf_counter(), time.process_time()
        while state["epoch"] < settings.epochs and state["epoch"] - state["best_epoch"] < settings.patience:
            epoch = state["epoch"]
            try:
                mean = run.epoch(epoch)
                validated = run.validate()
                if not max(mean, validated) < state["untrained_loss"] + _EXPLODED:
                    raise _Explosion(f"{max(mean, validated):.4g} (untrained {state['untrained_loss']:.4g})")
            except _Explosion as explosion:
                message = _advice(str(explosion), state, settings, checkpoint)
                # What lies on disk is the state before this epoch.
                before = load_checkpoint(checkpoint, key, settings) or state
                if worker.rank == 0:
                    _write(checkpoint, before | {"diverged": message, "rates": state["rates"]})
                raise Diverged(message) from None
            core_s = core_before + worker.total(time.process_time() - core)
            row = [epoch + 1, mean, validated, run.rate, wall_before + time.perf_counter() - wall, core_s]
            state["epoch"] = epoch + 1
            state["history"].append(row)
            if validated < state["best_loss"]:
                weights = {k: v.detach().cpu().clone() for k, v in run.estimator.state_dict().items()}
                state |= {"best_loss": validated, "best_epoch": epoch + 1, "best": weights}
            run.save(checkpoint, state)
            on_epoch(dict(zip(HISTORY, row, strict=True)))
    return state


class _Explosion(Exception):
    """The loss is not one that training recovers from; the message is its value."""


class _Trainer:
    """Data, network, optimiser and threads of one worker."""

    def __init__(
        self, config: SurveyConfig, simulations: Simulations, noise: NoiseModel, worker: Worker, member: int
    ) -> None:
        settings = config.train
        self.config, self.noise, self.worker, self.member = config, noise, worker, member
        self.device = resolve_device(settings.device)
        on_cpu = self.device.type == "cpu"
        self.half = settings.precision == "bfloat16" or (settings.precision == "auto" and not on_cpu)
        self.threads = settings.threads_per_worker if on_cpu else 1
        held = held_rows(len(simulations), settings.validation_fraction, config.seed)
        batch = min(settings.batch_size, len(simulations) - len(held))
        if batch < worker.size:
            raise StageError(
                f"train: {len(simulations)} simulations are too few for {worker.size} workers; simulate more"
            )
        validation, statistics = simulations.gather(held, _feature_rows(config, len(simulations)))
        self.estimator = _with_statistics(config, *statistics, noise, member).to(self.device)
        self.parameters = list(self.estimator.parameters())
        self.optimiser = Soap(self.parameters)
        self.rows = TrainingRows(simulations, held, batch, settings.buffer_rows)
        self.mine = _share(batch, worker)
        part = _share(len(held), worker)
        self.held_u = unconstrained(simulations.prior, validation[0][part])
        spectra = torch.from_numpy(validation[1][part])
        self.held_flux = noisy_rows(spectra, noise, config.seed, "validation", part.start)
        self.held = len(held)
        self.rate = 0.0
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="train")

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def epoch(self, epoch: int) -> float:
        """Go through the training rows once; return the mean loss of all workers."""
        self.estimator.train()
        settings, steps, total = self.config.train, self.rows.steps, 0.0
        batches = self.rows.epoch(_seed(self.config, self.member, f"epoch-{epoch}"))
        ahead = self._prepared(next(batches), epoch, 0)
        for step in range(steps):
            parts = [self._pool.submit(self._gradients, *part) for part in ahead]
            # Waits for nothing: its noise is made once the threads are through with this batch.
            ahead = self._prepared(next(batches), epoch, step + 1) if step + 1 < steps else []
            loss, gradients = self._sum(parts)
            total += loss
            norm = float(nn.utils.get_total_norm(gradients))
            if not math.isfinite(loss + norm):
                raise _Explosion(f"{loss:.4g}, its gradient {norm:.4g}, at step {step + 1} of {steps}")
            torch._foreach_mul_(gradients, min(1.0, settings.gradient_clip / (norm + 1e-6)))
            self.rate = _rate(settings.learning_rate, epoch * steps + step, settings.epochs * steps)
            self.optimiser.step(gradients, self.rate)
        batches.close()
        return total / steps

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the validation rows, of all workers."""
        self.estimator.eval()
        blocks = zip(self.held_u.split(_PART), self.held_flux.split(_PART), strict=True)
        sums = self._pool.map(
            lambda block: self._loss(*(t.to(self.device) for t in block)).item() * len(block[0]), blocks
        )
        return self.worker.total(sum(sums)) / self.held

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Write the checkpoint, if this is the worker that does."""
        if self.worker.rank == 0:
            state |= {"weights": self.estimator.state_dict(), "optimiser": self.optimiser.state_dict()}
            _write(path, state)

    def _prepared(self, batch: Batch, epoch: int, step: int) -> list[tuple[Tensor, Future[Tensor]]]:
        """Take this worker's rows of a batch in parts, and have noise put on them."""
        stream = _name(self.member, f"epoch-{epoch}/step-{step}")
        parts = []
        for rows in _parts(self.mine, self.threads if self.device.type == "cpu" else 0):
            u, flux = (self._move(tensor) for tensor in batch(rows))
            parts.append((u, self._pool.submit(noisy_rows, flux, self.noise, self.config.seed, stream, rows.start)))
        return parts

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _gradients(self, u: Tensor, noisy: Future[Tensor]) -> tuple[Tensor, list[Tensor]]:
        loss = self._loss(u, noisy.result()) * (len(u) / self.rows.batch)
        return loss.detach(), list(torch.autograd.grad(loss, self.parameters, materialize_grads=True))

    def _loss(self, u: Tensor, flux: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.estimator(u, flux)

    def _sum(self, parts: list[Future[tuple[Tensor, list[Tensor]]]]) -> tuple[float, list[Tensor]]:
        """Add up loss and gradients of the parts, in their order, and of the workers."""
        loss, gradients = parts[0].result()
        for part in parts[1:]:
            more, others = part.result()
            loss = loss + more
            torch._foreach_add_(gradients, others)
        shared = [*gradients, loss]
        self.worker.add(shared)
        return float(shared[-1]), shared[:-1]


def _feature_rows(config: SurveyConfig, count: int) -> NDArray[np.int64]:
    held = held_rows(count, config.train.validation_fraction, config.seed)
    rng = np.random.default_rng(stream_key(config.seed, "features"))
    chosen = rng.choice(count, min(count, _FEATURE_ROWS), replace=False, shuffle=False)
    return np.setdiff1d(chosen, held)


def _with_statistics(
    config: SurveyConfig, theta: NDArray[np.float64], flux: NDArray[np.float32], noise: NoiseModel, member: int
) -> Estimator:
    estimator = blank_estimator(config, flux.shape[1], member)
    rng = np.random.default_rng(stream_key(config.seed, "features/noise"))
    estimator.features.fit(noise.draw(flux, rng), theta)
    return estimator


def _seed(config: SurveyConfig, member: int, stream: str) -> int:
    return stream_key(config.seed, _name(member, stream))


def _name(member: int, stream: str) -> str:
    return f"member-{member}/{stream}" if member else stream


def _share(rows: int, worker: Worker) -> slice:
    return slice(worker.rank * rows // worker.size, (worker.rank + 1) * rows // worker.size)


def _parts(rows: slice, threads: int) -> Iterator[slice]:
    """Divide rows among threads in parts of at most _PART, or not at all for 0 threads."""
    count = rows.stop - rows.start
    parts = threads * -(-count // (_PART * threads)) if threads else 1
    size = -(-count // parts)
    # Noise is made by units of rows: parts that end with them make none in vain.
    size = size if size < 256 else -(-size // 256) * 256
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _rates(settings: TrainConfig) -> list[float]:
    return [getattr(settings, name) for name in _RATES]


def _rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def _advice(loss: str, state: dict[str, Any], settings: TrainConfig, checkpoint: Path) -> str:
    return (
        f"train: the loss became {loss} in epoch {state['epoch'] + 1}. The weights of epoch {state['epoch']} are "
        f"kept in {checkpoint}; lower train.learning_rate (now {settings.learning_rate:g}) or train.gradient_clip (now "
        f"{settings.gradient_clip:g}), and the same command goes on from them"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch's kernels run on one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())
