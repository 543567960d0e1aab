"""One worker of a training run: its rows, its threads, its network and the optimiser.

Each thread computes its own rows of a batch, from noise to gradients, with kernels of one thread: many small kernels
shared among threads would mostly wait for each other. Noise of the next batch is made while the optimiser steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.estimator.features import FeatureBuilder, build_features
from digs_survey.estimator.network import Estimator, build_estimator, resolve_device
from digs_survey.estimator.training.optimiser import Soap
from digs_survey.estimator.training.sources import FreshNoise, Prepared, Source
from digs_survey.estimator.training.training_data import Simulations
from digs_survey.estimator.training.training_rows import Batch, TrainingRows, unconstrained
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.seeding import stream_key

__all__ = ["Explosion", "Trainer", "Worker", "blank_estimator", "prepare_estimator"]

_WARM_UP = 0.02
_FINAL_RATE = 1e-3
_PART = 2048
"""Rows that a thread computes at once: enough that kernels outweigh their calls, few enough for the cache."""
_NOISE_UNIT = 256
"""Parts that end with the units in which noise is made have none made in vain."""


class Explosion(Exception):
    """The loss is not one that training recovers from; the message is its value."""


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


def blank_estimator(
    config: SurveyConfig, elements: int, member: int = 0, build: FeatureBuilder = build_features
) -> Estimator:
    """Build the estimator of spectra of so many elements, with initial weights and without the features' statistics."""
    features = build(elements, config.train, config.make_prior(), config.noise)
    return build_estimator(config.train, features, _seed(config, member, "weights") if member else config.seed)


def prepare_estimator(
    config: SurveyConfig, theta: ArrayLike, flux: ArrayLike, noise: NoiseModel, member: int = 0
) -> Estimator:
    """Build the untrained estimator with the features' statistics from the training split.

    Takes what :func:`fit` takes.
    """
    source = FreshNoise(config, Simulations(theta, flux, config.make_prior()), noise)
    return _with_statistics(config, source.prepare(), member, build_features)


class Trainer:
    """Data, network, optimiser and threads of one worker."""

    def __init__(
        self,
        config: SurveyConfig,
        source: Source,
        worker: Worker,
        member: int,
        build: FeatureBuilder = build_features,
    ) -> None:
        settings = config.train
        self.config, self.source, self.worker, self.member = config, source, worker, member
        self.device = resolve_device(settings.device)
        on_cpu = self.device.type == "cpu"
        self.half = settings.precision == "bfloat16" or (settings.precision == "auto" and not on_cpu)
        self.threads = settings.threads_per_worker if on_cpu else 1
        rows = source.rows
        batch = min(settings.batch_size, len(rows) - len(source.held))
        if batch < worker.size:
            raise StageError(f"train: {len(rows)} {rows.name} are too few for {worker.size} workers; simulate more")
        prepared = source.prepare()
        self.estimator = _with_statistics(config, prepared, member, build).to(self.device)
        self.parameters = list(self.estimator.parameters())
        self.optimiser = Soap(self.parameters)
        self.rows = TrainingRows(rows, source.held, batch, settings.buffer_rows)
        self.mine = _share(batch, worker)
        self.held = len(prepared.theta)
        part = _share(self.held, worker)
        self.held_u = unconstrained(rows.prior, prepared.theta[part])
        self.held_flux = source.noisy(torch.from_numpy(prepared.flux[part]), "validation", part.start)
        self.rate = 0.0
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="train")

    def __enter__(self) -> Trainer:
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
                raise Explosion(f"{loss:.4g}, its gradient {norm:.4g}, at step {step + 1} of {steps}")
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

    def _prepared(self, batch: Batch, epoch: int, step: int) -> list[tuple[Tensor, Future[Tensor]]]:
        """Take this worker's rows of a batch in parts, and have noise put on them."""
        stream = _name(self.member, f"epoch-{epoch}/step-{step}")
        parts = []
        for rows in _parts(self.mine, self.threads if self.device.type == "cpu" else 0):
            u, flux = (self._move(tensor) for tensor in batch(rows))
            parts.append((u, self._pool.submit(self.source.noisy, flux, stream, rows.start)))
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


def _with_statistics(config: SurveyConfig, prepared: Prepared, member: int, build: FeatureBuilder) -> Estimator:
    others = config.noise.by_row + len(config.noise.photometry.filters)
    estimator = blank_estimator(config, prepared.flux.shape[1] - others, member, build)
    estimator.features.fit(prepared.noisy, prepared.noiseless, prepared.statistics_theta, prepared.light)
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
    size = size if size < _NOISE_UNIT else -(-size // _NOISE_UNIT) * _NOISE_UNIT
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
