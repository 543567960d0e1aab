"""The training loop: NPE with fresh noise for every batch, on one worker or many.

Batches, noise and weights are fixed by the seed: what a worker does depends on the run's seed, the
epoch and the step alone, so that a run that was killed goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.estimator.features import Features
from digs_survey.estimator.network import Estimator, build_estimator, resolve_device
from digs_survey.simulate.noise import NoiseModel
from digs_survey.simulate.seeding import stream_key
from digs_survey.storage import write_bytes

__all__ = ["HISTORY", "Worker", "fit", "load_checkpoint", "prepare_estimator", "split"]

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "wall_s", "core_s")
_FEATURE_ROWS = 50_000
_WARM_UP = 0.02
_FINAL_RATE = 1e-3


@dataclass(frozen=True)
class Worker:
    """The place of this process among the training workers, and how they share.

    Attributes
    ----------
    rank, size : int
    wrap : callable
        Makes a module whose gradients are averaged over the workers.
    total : callable
        Sums a float over the workers.
    """

    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    total: Callable[[float], float] = lambda value: value


def split(count: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split row numbers into training and validation, fixed by the seed."""
    order = np.random.default_rng(stream_key(seed, "split")).permutation(count)
    held = max(1, round(count * fraction))
    return np.sort(order[held:]), np.sort(order[:held])


def prepare_estimator(
    config: SurveyConfig, theta: NDArray[np.float64], flux: NDArray[np.float32], noise: NoiseModel
) -> Estimator:
    """Build the untrained estimator with the features' statistics from the training split."""
    prior = config.make_prior()
    rows, _ = split(len(theta), config.train.validation_fraction, config.seed)
    rng = np.random.default_rng(stream_key(config.seed, "features"))
    rows = rows if len(rows) <= _FEATURE_ROWS else np.sort(rng.choice(rows, _FEATURE_ROWS, replace=False))
    features = Features(flux.shape[1], config.train, prior)
    features.fit(noise.draw(flux[rows], rng), flux[rows], theta[rows])
    return build_estimator(config.train, features, config.seed)


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """Read a checkpoint that was written for the same settings and data; None if there is none."""
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True, map_location="cpu")
    return state if state["key"] == key else None


def fit(
    config: SurveyConfig,
    theta: NDArray[np.float64],
    flux: NDArray[np.float32],
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    *,
    worker: Worker | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train until the last epoch or early stopping, checkpointing after each epoch.

    Parameters
    ----------
    config : SurveyConfig
    theta : ndarray, shape (n, ndim)
    flux : ndarray of float32, shape (n, wavelength)
        Noiseless; row i is the spectrum of ``theta[i]``.
    noise : NoiseModel
    checkpoint : Path
        Written by worker 0, read by all.
    key : str
        Hash of all that decides the weights; a checkpoint with another key is not used.
    worker : Worker, optional
    on_epoch : callable
        Given each new line of the history.

    Returns
    -------
    dict
        The last checkpoint: best weights under "best", the history under "history".

    Raises
    ------
    StageError
        If the loss is not finite, or there are fewer simulations than one batch.
    """
    worker = worker or Worker()
    settings = config.train
    torch.set_num_threads(settings.threads_per_worker)
    device = resolve_device(settings.device)
    rows, held = split(len(theta), settings.validation_fraction, config.seed)
    batch = min(settings.batch_size, len(rows))
    if batch < worker.size:
        raise StageError(f"train: {len(rows)} training simulations are too few for {worker.size} workers")
    steps = len(rows) // batch

    u = torch.as_tensor(config.make_prior().to_unconstrained(theta), dtype=torch.float32)
    spectra = torch.as_tensor(flux)
    validation = _validation_set(config, spectra[held], noise)
    estimator = prepare_estimator(config, theta, flux, noise).to(device)
    optimiser = _optimiser(estimator, settings.learning_rate)
    state = load_checkpoint(checkpoint, key)
    if state is None:
        state = {"key": key, "epoch": 0, "history": [], "best_loss": math.inf, "best": None, "best_epoch": 0}
    else:
        estimator.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
    loss_of = worker.wrap(estimator)
    mine = slice(worker.rank * batch // worker.size, (worker.rank + 1) * batch // worker.size)
    if state["history"]:
        wall_before, core_before = state["history"][-1][4:6]
    else:
        wall_before = core_before = 0.0
    wall, core = time.perf_counter(), time.process_time()

    while state["epoch"] < settings.epochs and state["epoch"] - state["best_epoch"] < settings.patience:
        epoch = state["epoch"]
        generator = torch.Generator().manual_seed(stream_key(config.seed, f"epoch-{epoch}"))
        order = torch.as_tensor(rows)[torch.randperm(len(rows), generator=generator)]
        estimator.train()
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            noisy = _noisy(spectra[chosen], noise, generator)[mine]
            rate = _rate(settings.learning_rate, epoch * steps + step, settings.epochs * steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(u[chosen[mine]].to(device), noisy.to(device))
            total += _finite(loss, epoch)
            loss.backward()
            nn.utils.clip_grad_norm_(estimator.parameters(), settings.gradient_clip)
            optimiser.step()
        mean = worker.total(total / steps) / worker.size
        validated = _finite(_evaluate(estimator, u[held], validation, device), epoch)
        core_s = core_before + worker.total(time.process_time() - core)
        row = [epoch + 1, mean, validated, rate, wall_before + time.perf_counter() - wall, core_s]
        state["epoch"] = epoch + 1
        state["history"].append(row)
        if validated < state["best_loss"]:
            weights = {k: v.detach().cpu().clone() for k, v in estimator.state_dict().items()}
            state |= {"best_loss": validated, "best_epoch": epoch + 1, "best": weights}
        if worker.rank == 0:
            state |= {"weights": estimator.state_dict(), "optimiser": optimiser.state_dict()}
            _save(checkpoint, state)
        on_epoch(dict(zip(HISTORY, row, strict=True)))
    return state


def _optimiser(estimator: Estimator, learning_rate: float) -> torch.optim.Optimizer:
    """SOAP (Vyas et al. 2024, arXiv:2409.11321): Adam in the eigenbasis of each weight matrix's gradients.

    Posteriors are up to a thousand times narrower than the prior, and Adam's steps, each scaled element by
    element, are slow to find them.
    """
    from pytorch_optimizer import SOAP

    return SOAP(estimator.parameters(), lr=learning_rate, betas=(0.95, 0.95), weight_decay=0.0)


def _finite(loss: Tensor | float, epoch: int) -> float:
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss
    if not math.isfinite(value):
        raise StageError(
            f"train: the loss is {value} in epoch {epoch + 1}; lower train.learning_rate or train.gradient_clip"
        )
    return value


def _noisy(spectra: Tensor, noise: NoiseModel, generator: torch.Generator) -> Tensor:
    rows, elements = spectra.shape
    errors = None
    if noise.config.kind != "fractional":
        table = noise.pick(torch.rand(rows, generator=generator).numpy())
        errors = torch.as_tensor(table, dtype=torch.float32)
    noisy = noise.perturb(spectra, torch.randn(rows, noise.normals(elements), generator=generator), errors)
    if not noise.config.missing.columns:
        return noisy
    lost = torch.rand(rows, noise.config.missing.columns, generator=generator)
    return torch.from_numpy(noise.lose(noisy.numpy(), lost.numpy()))


def _validation_set(config: SurveyConfig, spectra: Tensor, noise: NoiseModel) -> Tensor:
    generator = torch.Generator().manual_seed(stream_key(config.seed, "validation"))
    return _noisy(spectra, noise, generator)


@torch.no_grad()
def _evaluate(estimator: Estimator, u: Tensor, flux: Tensor, device: torch.device) -> float:
    estimator.eval()
    blocks = zip(u.split(8192), flux.split(8192), strict=True)
    return sum(float(-estimator.log_prob(a.to(device), b.to(device)).sum()) for a, b in blocks) / len(u)


def _rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def _save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())
