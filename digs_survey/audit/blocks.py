"""Work in blocks: in this process, or by the pool of Ray actors that maps the survey."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any, Protocol, TypeVar

from digs_survey.errors import StageError
from digs_survey.infer.spread import spread
from digs_survey.raysession import ray_session

__all__ = ["BlockWorker", "Blocks", "run_blocks"]

_TRIES = 2

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Blocks(Protocol[T_co]):
    """What is done block by block; each worker gets it once."""

    @property
    def size(self) -> int:
        """Number of blocks."""

    def name(self, block: int) -> str:
        """Tell what a block is, for errors."""

    def __call__(self, block: int) -> T_co:
        """Do a block; the outcome depends on nothing but its number."""


class BlockWorker:
    """A Ray actor that does blocks, one after the other."""

    def __init__(self, blocks: Blocks[Any]) -> None:
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


def run_blocks(blocks: Blocks[T], *, workers: int | None = None, address: str | None = None) -> tuple[list[T], float]:
    """Do every block, with one in flight for each worker.

    A block that raises an error is tried once more, and one whose worker dies is given to others.

    Parameters
    ----------
    blocks : Blocks
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
        pool = spread(BlockWorker, blocks, range(blocks.size), count, failed=failed, stage="audit", tries=_TRIES)
        with closing(pool) as finished:
            for block, (outcome, taken) in finished:
                found[block] = outcome
                used_s += taken
    return [found[block] for block in range(blocks.size)], used_s
