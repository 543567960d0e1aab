"""Train the neural posterior estimator: in this process, or on Ray Train workers.

The loop and its checkpoint are the same in both cases. A new attempt, of a worker or of the whole command, goes on
from the checkpoint.
"""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from digs_survey import formats
from digs_survey.config import SurveyConfig, TrainConfig
from digs_survey.errors import StageError
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import HISTORY, Diverged, blank_estimator, fit, load_checkpoint
from digs_survey.estimator.training.ray_workers import fit_on_ray
from digs_survey.estimator.training.recipes import check_pairs, check_recipe
from digs_survey.estimator.training.training_data import Simulations, TrainingFiles
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_file, is_remote
from digs_survey.store.storage import remove, write_text

__all__ = ["train"]

_POLL_SECONDS, _POLL_REMOTE_SECONDS = 0.5, 5.0


def train(
    config: SurveyConfig,
    simulations: Path,
    folder: Path,
    *,
    noise: NoiseModel,
    data_hash: str,
    pairs: Path | None = None,
    pairs_hash: str | None = None,
    grid: WavelengthGrid | None = None,
    ray_address: str | None = None,
    advance: Callable[[int], None] = lambda epochs: None,
) -> tuple[FrozenPosterior, float]:
    """Train on ``simulations.zarr`` and freeze the posterior.

    Parameters
    ----------
    config : SurveyConfig
    simulations : Path
        With ``theta`` (simulation, parameter) and noiseless ``flux`` (simulation, wavelength). Refused if it was made
        with another model, prior or grid.
    folder : Path
        Gets model.safetensors, card.json and history.csv (and history-1.csv ... of further members); the checkpoint
        lies beside it while training runs.
    noise : NoiseModel
    data_hash : str
        Identifies the simulations, for the card and the checkpoint.
    pairs : Path, optional
        With ``train.pairs = "disk"``, and only then: the pairs that the augment stage made from these simulations by
        the configuration's settings. They are trained on as they are.
    pairs_hash : str, optional
        Identifies the pairs.
    grid : WavelengthGrid, optional
        That the simulations must have.
    ray_address : str, optional
        A Ray cluster to train on. Without one, one worker trains in this process.
    advance : callable
        Told how many more epochs are done.

    Returns
    -------
    FrozenPosterior, float
        And the core-seconds spent, interrupted attempts included up to their last checkpoint.

    Raises
    ------
    StageError
        If the simulations or pairs are not those that the configuration asks for, or some of them cannot be trained on,
        or training diverged (its last good checkpoint is kept), or workers failed.
    ValueError
        If pairs are given where noise is to be fresh, or the other way round.
    """
    from_disk = config.train.pairs == "disk"
    if from_disk != (pairs is not None and pairs_hash is not None):
        raise ValueError(f"train.pairs = {config.train.pairs!r}: expected pairs and their hash with 'disk' alone")
    checkpoints = folder.parent / "checkpoint"
    group: Any = zarr.open_group(str(simulations), mode="r")
    check_recipe(group.attrs.get("recipe"), config, grid, noise)
    files = TrainingFiles(simulations.absolute(), None if pairs is None else pairs.absolute())
    copied: dict[str, Any] = {}
    if pairs is not None:
        copies: Any = zarr.open_group(str(pairs), mode="r")
        check_pairs(copies.attrs.get("recipe"), group.attrs.get("recipe"), config, noise)
        copied = {"pairs": {"draws_per_spectrum": config.augment.draws_per_spectrum, "data_hash": pairs_hash}}
    made = WavelengthGrid.from_array(group["wavelength"])
    key = _key(config, RunIdentity.of_config(config, made, noise), data_hash, pairs_hash)
    estimators, states = [], []
    for member in range(config.train.ensemble):
        checkpoint = checkpoints / ("train.pt" if member == 0 else f"train-{member}.pt")
        state = _train_member(config, files, noise, checkpoint, key, member, ray_address, advance)
        estimator = blank_estimator(config, group["flux"].shape[1], member)
        estimator.load_state_dict(state["best"])
        estimators.append(estimator)
        states.append(state)
    posterior = freeze_posterior(
        folder,
        estimators,
        config,
        made,
        noise,
        training={
            "simulations": group["theta"].shape[0],
            "data_hash": data_hash,
            **copied,
            "seed": config.seed,
            "members": [
                {
                    "epochs": state["epoch"],
                    "best_epoch": state["best_epoch"],
                    "best_validation_loss": state["best_loss"],
                    "rates_from_epoch": state["rates"],
                }
                for state in states
            ],
            "settings": config.train.model_dump(mode="json"),
        },
    )
    for member, state in enumerate(states):
        name = "history.csv" if member == 0 else f"history-{member}.csv"
        write_text(folder / name, _history(state["history"]))
    remove(checkpoints)
    return posterior, sum(float(state["history"][-1][HISTORY.index("core_s")]) for state in states)


def _train_member(
    config: SurveyConfig,
    files: TrainingFiles,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    member: int,
    ray_address: str | None,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Train one member of the ensemble, here or on Ray; return its last checkpoint."""
    theta, flux, pairs = files.open(config, noise)
    state = load_checkpoint(checkpoint, key, config.train)
    done = state["epoch"] if state else 0
    advance(done)
    if ray_address is None and config.train.workers == 1:
        what = config, theta, flux, noise, checkpoint, key
        return fit(*what, pairs=pairs, member=member, on_epoch=lambda row: advance(1))
    for _ in (pairs or Simulations(theta, flux, config.make_prior())).checked():
        pass
    with _epochs_followed(checkpoint, key, config.train, advance, done):
        fit_on_ray(config, files, noise, checkpoint, key, member, ray_address)
    state = load_checkpoint(checkpoint, key, config.train)
    if state is None:
        raise StageError(
            f"train: the Ray workers left no checkpoint at {checkpoint}; "
            "the run directory must lie on storage that every node shares"
        )
    if state["diverged"]:
        raise Diverged(state["diverged"])
    return state


def _key(config: SurveyConfig, identity: RunIdentity, data_hash: str, pairs_hash: str | None) -> str:
    """Hash of all that decides the weights but the rates, which a run that diverged goes on with others of."""
    settings = config.train.model_dump(mode="json", exclude={"learning_rate", "gradient_clip"})
    made_of = {"format": formats.CARD, "train": settings, "simulations": data_hash, "pairs": pairs_hash}
    return identity.digest("seed", "prior", "noise", **made_of)


def _history(rows: list[list[float]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HISTORY)
    writer.writerows([int(row[0]), *(f"{value:.6g}" for value in row[1:])] for row in rows)
    return buffer.getvalue()


@contextmanager
def _epochs_followed(
    checkpoint: Path, key: str, settings: TrainConfig, advance: Callable[[int], None], done: int
) -> Iterator[None]:
    """Report epochs from the checkpoint while workers elsewhere write it."""
    stop = threading.Event()
    pause = _POLL_REMOTE_SECONDS if is_remote(checkpoint) else _POLL_SECONDS

    def follow() -> None:
        seen = done
        last = None
        while not stop.wait(pause):
            stamp = _stamp(checkpoint)
            if stamp != last:
                last = stamp
                state = load_checkpoint(checkpoint, key, settings)
                if state and state["epoch"] > seen:
                    advance(state["epoch"] - seen)
                    seen = state["epoch"]

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _stamp(path: Path) -> Any:
    """Return what changes when a file is written anew; None if there is none."""
    if not is_file(path):
        return None
    store: Any = path
    return store.fs.info(store.path) if is_remote(path) else path.stat().st_mtime_ns
