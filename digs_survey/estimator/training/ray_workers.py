"""The training loop on Ray Train workers: Ray brings the processes, their place in the group, and restarts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.estimator.training.loop import Diverged, Worker, fit
from digs_survey.estimator.training.training_data import TrainingFiles
from digs_survey.noise.model import NoiseModel
from digs_survey.store.locations import is_remote, location

__all__ = ["fit_on_ray"]


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
    # As it is: a configuration tells neither a catalog's errors nor the grid that row noise is for.
    noise: NoiseModel = settings["noise"]
    theta, flux, pairs = settings["files"].open(config, noise)
    # What diverged would diverge again: the checkpoint tells the driver, and Ray does not try anew.
    with suppress(Diverged):
        fit(
            config,
            theta,
            flux,
            noise,
            location(settings["checkpoint"]),
            settings["key"],
            pairs=pairs,
            member=settings["member"],
            worker=Worker(context.get_world_rank(), context.get_world_size(), add, total),
            on_epoch=lambda row: ray.train.report(dict(row)),
        )


def fit_on_ray(
    config: SurveyConfig,
    files: TrainingFiles,
    noise: NoiseModel,
    checkpoint: Path,
    key: str,
    member: int,
    address: str | None,
) -> None:
    """Train one member of the ensemble on Ray Train workers, which leave their checkpoint at ``checkpoint``.

    Takes what :func:`~digs_survey.estimator.training.loop.fit` takes, and files in the place of arrays.

    Raises
    ------
    MissingDependencyError
        If the cluster has no room for them in time.
    StageError
        If the workers failed, after two more attempts.
    """
    from digs_survey.cluster.ray_session import ray_session
    from digs_survey.cluster.worker_wait import wait_for_room

    with ray_session(address):
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer

        gpus = config.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= config.train.workers
        cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        each = {
            "CPU": max(1, min(config.train.threads_per_worker, cores // config.train.workers)),
            **({"GPU": 1} if gpus else {}),
        }
        # Ray Train waits for its workers without an end and without a word.
        wait_for_room([each] * config.train.workers, "train")
        trainer = TorchTrainer(
            _ray_loop,
            train_loop_config={
                "config": config.model_dump_json(),
                "files": files,
                "noise": noise,
                "checkpoint": str(checkpoint.absolute()),
                "key": key,
                "member": member,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.train.workers,
                use_gpu=gpus,
                resources_per_worker=each,
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
