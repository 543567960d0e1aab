"""Work on simulations in blocks: in this process, or by the pool of Ray actors that maps the survey."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.cluster.actors import run_on_actors
from digs_survey.cluster.ray_session import ray_session
from digs_survey.errors import StageError
from digs_survey.noise.observation import clean_spectra
from digs_survey.store.storage import rows_of_shard, shard_count

__all__ = ["BlockWorker", "SimulationBlocks", "count_simulations", "run_blocks"]

_TRIES = 2

T = TypeVar("T")


def count_simulations(path: Path, *limits: int) -> int:
    """Return how many simulations there are at ``path``, at most each of the limits."""
    group: Any = zarr.open_group(str(path), mode="r")
    return min(int(group["theta"].shape[0]), *limits)


@dataclass(frozen=True)
class SimulationBlocks(ABC, Generic[T]):
    """What is done with the first simulations of ``calibration.zarr``, block by block; each worker gets it once.

    Attributes
    ----------
    path : Path
        Theta and noiseless flux; with a cluster, a path that its workers see too.
    count : int
        Simulations in all.
    rows : int
        Of a block.
    """

    path: Path
    count: int
    rows: int
    doing: ClassVar[str]
    """What is done, for errors."""

    @abstractmethod
    def work(self, start: int, theta: NDArray[np.float64], flux: NDArray[np.float64]) -> T:
        """Do the block that begins at a row; the outcome depends on nothing but that row."""

    @property
    def size(self) -> int:
        """Number of blocks."""
        return shard_count(self.count, self.rows)

    def name(self, block: int) -> str:
        """Tell what a block is, for errors."""
        part = rows_of_shard(block, self.count, self.rows)
        return f"{self.doing} simulations {part.start} to {part.stop - 1} of {self.path}"

    def __call__(self, block: int) -> T:
        """Read a block and do it."""
        group: Any = zarr.open_group(str(self.path), mode="r")
        part = rows_of_shard(block, self.count, self.rows)
        return self.work(
            part.start, *(np.asarray(array[part], dtype=float) for array in (group["theta"], clean_spectra(group)))
        )


class BlockWorker:
    """A Ray actor that does blocks, one after the other."""

    def __init__(self, blocks: SimulationBlocks[Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self.blocks = blocks
        self.counted_s = 0.0

    def ready(self) -> None:
        """Answer once the actor has started."""

    def work(self, block: int) -> tuple[Any, float]:
        """Do a block; also return the processor time in seconds, the first with what it took to start."""
        found = self.blocks(block)
        used_s = time.process_time()
        taken, self.counted_s = used_s - self.counted_s, used_s
        return found, taken


def run_blocks(
    blocks: SimulationBlocks[T], *, workers: int | None = None, address: str | None = None
) -> tuple[list[T], float]:
    """Do every block, with one in flight for each worker.

    A block that raises an error is tried once more, and one whose worker dies is given to others.

    Parameters
    ----------
    blocks : SimulationBlocks
    workers : int or None
        Ray actors of one core each: none at all (0: this process does the work), so many, or (None) one for each core
        of the cluster. There are no more than blocks.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.

    Returns
    -------
    list
        Of what each block gave, in their order.
    float
        Processor time in seconds.

    Raises
    ------
    StageError
        A block failed again and again; its own error is the cause.
    """
    if workers == 0:
        began = time.process_time()
        return [blocks(block) for block in range(blocks.size)], time.process_time() - began

    def failed(block: int | None, why: str) -> StageError:
        if block is None:
            return StageError(f"audit: a worker could not start: {why}")
        return StageError(f"audit: {blocks.name(block)} failed: {why}; the same command begins the calibration again")

    found: dict[int, T] = {}
    used_s = 0.0
    with ray_session(address) as cores:
        count = min(workers or cores, blocks.size)
        pool = run_on_actors(BlockWorker, blocks, range(blocks.size), count, failed=failed, stage="audit", tries=_TRIES)
        with closing(pool) as finished:
            for block, (outcome, taken) in finished:
                found[block] = outcome
                used_s += taken
    return [found[block] for block in range(blocks.size)], used_s
