"""The training loop: NPE on noisy spectra in batches, on one worker or many.

Batches, noise and weights are fixed by the seed: what a worker does depends on the run's seed, the member of the
ensemble, the epoch and the step alone, so that a run that was killed goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from digs_survey.config import SurveyConfig, TrainConfig
from digs_survey.errors import StageError
from digs_survey.estimator.features import FeatureBuilder, build_features
from digs_survey.estimator.training.sources import FreshNoise, StoredPairs
from digs_survey.estimator.training.trainer import Explosion, Trainer, Worker, blank_estimator, prepare_estimator
from digs_survey.estimator.training.training_data import Pairs, Simulations
from digs_survey.noise.model import NoiseModel
from digs_survey.store.locations import is_file
from digs_survey.store.storage import read_bytes, write_bytes

__all__ = [
    "HISTORY",
    "RATES",
    "Diverged",
    "Worker",
    "blank_estimator",
    "fit",
    "has_diverged",
    "load_checkpoint",
    "prepare_estimator",
]

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "wall_s", "core_s")
_EXPLODED = 10.0
"""Nats above the loss of the untrained network from which on training has diverged."""
RATES = ("learning_rate", "gradient_clip")
"""Settings that may differ from those of a checkpoint whose run diverged."""


class Diverged(StageError):
    """The loss is not finite, or far above that of the untrained network; the last good checkpoint is kept."""


def load_checkpoint(path: Path, key: str, settings: TrainConfig) -> dict[str, Any] | None:
    """Read a checkpoint that was written for the same settings and data; None if there is none.

    ``key`` covers all that decides the weights but the learning rate and the clipping of gradients: a checkpoint
    with others of these is used only if its run diverged, which is what they are changed for.
    """
    if not is_file(path):
        return None
    state = _read(path)
    same = state["key"] == key and (state["rates"][-1][1:] == _rates(settings) or state["diverged"])
    return state if same else None


def has_diverged(path: Path) -> bool:
    """Tell whether a checkpoint is one that a run left which diverged."""
    return is_file(path) and bool(_read(path)["diverged"])


def fit(
    config: SurveyConfig,
    theta: ArrayLike,
    flux: ArrayLike,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    *,
    pairs: Pairs | None = None,
    worker: Worker | None = None,
    member: int = 0,
    build: FeatureBuilder = build_features,
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
    pairs : Pairs, optional
        Noisy copies of these simulations to train on as they are, in the place of fresh noise for each batch. All pairs
        of a simulation are for validation, or none is.
    worker : Worker, optional
    member : int
        Of an ensemble: enters the initial weights, the order of rows and their noise. Validation rows and the
        features' statistics are those of all members.
    build : callable, optional
        Builds the features; by default those that the configuration asks for.
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
    simulations = Simulations(theta, flux, config.make_prior())
    source = FreshNoise(config, simulations, noise) if pairs is None else StoredPairs(config, simulations, pairs)
    with _one_thread(), Trainer(config, source, worker, member, build) as run:
        state = load_checkpoint(checkpoint, key, settings)
        if state is None:
            state = {"key": key, "epoch": 0, "history": [], "best_loss": math.inf, "best": None, "best_epoch": 0}
            state |= {"untrained_loss": run.validate(), "rates": [[0, *_rates(settings)]], "diverged": ""}
            _save(checkpoint, state, run)
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
                    raise Explosion(f"{max(mean, validated):.4g} (untrained {state['untrained_loss']:.4g})")
            except Explosion as explosion:
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
            _save(checkpoint, state, run)
            on_epoch(dict(zip(HISTORY, row, strict=True)))
    return state


def _rates(settings: TrainConfig) -> list[float]:
    return [getattr(settings, name) for name in RATES]


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


def _save(path: Path, state: dict[str, Any], run: Trainer) -> None:
    if run.worker.rank == 0:
        state |= {"weights": run.estimator.state_dict(), "optimiser": run.optimiser.state_dict()}
        _write(path, state)


def _read(path: Path) -> dict[str, Any]:
    return torch.load(io.BytesIO(read_bytes(path)), weights_only=True, map_location="cpu")


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())
