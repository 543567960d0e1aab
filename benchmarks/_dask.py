"""What Dask costs, how simulations scale with its workers, and what memory they take, by the code of ``simulate``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
from threadpoolctl import threadpool_limits

from digs_survey.config import load_config
from digs_survey.simulate.simulation_set import simulate
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger

__all__ = ["Pace", "Work", "memory", "on_cores", "rate"]


@dataclass(frozen=True)
class Work:
    """Simulations of the preset ``digs2022``: ``shards`` for each worker, the first ``warm`` not timed."""

    engine: str
    rows_per_shard: int
    shards: int
    warm: int


class Pace:
    """When how many rows were done: to be a stage's ``advance``."""

    def __init__(self) -> None:
        self._done, self._times = [0], [0.0]

    def __call__(self, rows: int) -> None:
        self._done.append(self._done[-1] + rows)
        self._times.append(time.perf_counter())

    def steady(self, warm: int, workers: int) -> float:
        """Rows/s after the first ``warm`` rows, and before the last task of each worker."""
        first = bisect_left(self._done, warm)
        last = len(self._done) - 1 - workers
        return (self._done[last] - self._done[first]) / (self._times[last] - self._times[first])


def rate(work: Work, workers: int) -> float:
    """Spectra/s with so many Dask workers, or (0) in a plain loop in this process.

    Steady state: start-up and the first tasks, in which workers build their model, are left out, and so are the
    last, while which some workers have nothing left to do.
    """
    config = load_config(
        "digs2022", [f"simulate.engine={work.engine}", f"simulate.rows_per_shard={work.rows_per_shard}"]
    )
    loops = max(1, workers)
    pace = Pace()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        simulate(
            config,
            WavelengthGrid.from_config(config.grid),
            Path(folder) / "simulations.zarr",
            count=work.rows_per_shard * work.shards * loops,
            stream="simulate",
            ledger=Ledger(Path(folder) / "ledger"),
            workers=workers,
            advance=pace,
        )
    return pace.steady(work.warm * loops * work.rows_per_shard, workers)


def on_cores(work: Work, workers: int, times: int) -> tuple[list[float], list[float]]:
    """Spectra/s of each repeat in as many plain loops at once, each in a process of its own, and on Dask workers.

    Both do the same: draws, spectra, Zarr, ledger. One minus the ratio of the second to the first is Dask's overhead,
    1 - useful core-seconds / (wall * workers), free of what cores that share a memory and a clock take from each
    other. The driver and the scheduler, which take time from the workers where there is no core left, count as Dask.
    """
    plain, dask = [], []
    for _ in range(times):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            plain.append(sum(pool.map(rate, [work] * workers, [0] * workers)))
        dask.append(rate(work, workers))
    return plain, dask


def memory(count: int) -> tuple[float, float, float]:
    """Take the peak resident MiB of driver with scheduler and of a worker, and wall seconds, of ``simulate --n``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "digs_survey", "simulate", "--quiet", "--n", str(count)]
        command += ["--run-dir", folder, "--config", "digs2022", "--set", "simulate.engine=batched"]
        start = time.perf_counter()
        with psutil.Popen(command, stdout=subprocess.DEVNULL) as driver:
            peak = worker = 0
            while driver.poll() is None:
                # A process may end between being listed and being looked at.
                with suppress(psutil.NoSuchProcess):
                    peak = max(peak, driver.memory_info().rss)
                    for child in driver.children():
                        worker = max(worker, child.memory_info().rss)
                time.sleep(0.1)
        if driver.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {driver.returncode}")
    return peak / 2**20, worker / 2**20, time.perf_counter() - start
