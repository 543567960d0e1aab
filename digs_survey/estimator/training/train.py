"""Train the neural posterior estimator: in this process, or on Ray Train workers.

The loop and its checkpoint are the same in both cases; Ray Train brings the processes, their place in
the group, and restarts. A new attempt, of a worker or of the whole command, goes on from the checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zarr

from digs_survey.config import SurveyConfig, TrainConfig
from digs_survey.errors import StageError
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import HISTORY, Diverged, Worker, blank_estimator, fit, load_checkpoint
from digs_survey.estimator.training.training_rows import Simulations, check_recipe
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_file, is_remote, location
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
        If the simulations are not those that the configuration asks for, or some of them cannot be trained on, or
        training diverged (its last good checkpoint is kept), or workers failed.
    """
    checkpoints = folder.parent / "checkpoint"
    group: Any = zarr.open_group(str(simulations), mode="r")
    check_recipe(group.attrs.get("recipe"), config, grid)
    key = _key(config, noise, data_hash)
    estimators, states = [], []
    for member in range(config.train.ensemble):
        checkpoint = checkpoints / ("train.pt" if member == 0 else f"train-{member}.pt")
        state = _train_member(config, simulations, noise, checkpoint, key, member, ray_address, advance)
        estimator = blank_estimator(config, group["flux"].shape[1], member)
        estimator.load_state_dict(state["best"])
        estimators.append(estimator)
        states.append(state)
    posterior = freeze_posterior(
        folder,
        estimators,
        config,
        WavelengthGrid.from_array(group["wavelength"]),
        noise,
        training={
            "simulations": group["theta"].shape[0],
            "data_hash": data_hash,
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
    simulations: Path,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    member: int,
    ray_address: str | None,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Train one member of the ensemble, here or on Ray; return its last checkpoint."""
    group: Any = zarr.open_group(str(simulations), mode="r")
    theta, flux = group["theta"], group["flux"]
    state = load_checkpoint(checkpoint, key, config.train)
    done = state["epoch"] if state else 0
    advance(done)
    if ray_address is None and config.train.workers == 1:
        return fit(config, theta, flux, noise, checkpoint, key, member=member, on_epoch=lambda row: advance(1))
    for _ in Simulations(theta, flux, config.make_prior()).checked():
        pass
    with _epochs_followed(checkpoint, key, config.train, advance, done):
        _fit_on_ray(config, simulations, noise, checkpoint, key, member, ray_address)
    state = load_checkpoint(checkpoint, key, config.train)
    if state is None:
        raise StageError(
            f"train: the Ray workers left no checkpoint at {checkpoint}; "
            "the run directory must lie on storage that every node shares"
        )
    if state["diverged"]:
        raise Diverged(state["diverged"])
    return state


def _key(config: SurveyConfig, noise: NoiseModel, data_hash: str) -> str:
    """Hash of all that decides the weights but the rates, which a run that diverged goes on with others of."""
    settings = config.train.model_dump(mode="json", exclude={"learning_rate", "gradient_clip"})
    decisive = [config.hash("seed", "prior"), settings, data_hash, noise.to_dict()]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _history(rows: list[list[float]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HISTORY)
    writer.writerows([int(row[0]), *(f"{value:.6g}" for value in row[1:])] for row in rows)
    return buffer.getvalue()


def _ray_loop(settings: Mapping[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    alone = context.get_world_size() == 1

    def add(tensors: list[torch.Tensor]) -> None:
        if not alone:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            torch.distributed.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(value: float) -> float:
        summed = torch.tensor([value], dtype=torch.float64, device=device)
        if not alone:
            torch.distributed.all_reduce(summed)
        return float(summed[0])

    config = SurveyConfig.model_validate_json(settings["config"])
    group: Any = zarr.open_group(settings["simulations"], mode="r")
    # What diverged would diverge again: the checkpoint tells the driver, and Ray does not try anew.
    with suppress(Diverged):
        fit(
            config,
            group["theta"],
            group["flux"],
            NoiseModel.from_config(config.noise, settings["noise_table"], config.train.flux_transform),
            location(settings["checkpoint"]),
            settings["key"],
            member=settings["member"],
            worker=Worker(context.get_world_rank(), context.get_world_size(), add, total),
            on_epoch=lambda row: ray.train.report(dict(row)),
        )


def _fit_on_ray(
    config: SurveyConfig,
    simulations: Path,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    member: int,
    address: str | None,
) -> None:
    from digs_survey.cluster.ray_session import ray_session

    with ray_session(address):
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer

        gpus = config.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= config.train.workers
        cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        trainer = TorchTrainer(
            _ray_loop,
            train_loop_config={
                "config": config.model_dump_json(),
                "simulations": str(simulations.absolute()),
                "noise_table": noise.table,
                "checkpoint": str(checkpoint.absolute()),
                "key": key,
                "member": member,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.train.workers,
                use_gpu=gpus,
                resources_per_worker={
                    "CPU": max(1, min(config.train.threads_per_worker, cores // config.train.workers)),
                    **({"GPU": 1} if gpus else {}),
                },
            ),
            run_config=ray.train.RunConfig(
                name="train",
                **_ray_storage(checkpoint.parent.absolute() / f"ray-{member}"),
                failure_config=ray.train.FailureConfig(max_failures=2),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise StageError(f"train: the Ray Train workers failed: {error}") from error


def _ray_storage(folder: Path) -> dict[str, Any]:
    """Where Ray Train keeps its own records."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    # Ray would open the URL by Arrow's own library, which reads other settings than ours.
    store: Any = folder
    return {"storage_path": store.path, "storage_filesystem": PyFileSystem(FSSpecHandler(store.fs))}


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
