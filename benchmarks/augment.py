"""Noisy pairs of 138 elements on disk: pairs/s on 1 and 2 Dask workers, and what the disk itself would take.

Pairs are made by the code of ``digs-survey augment`` in a temporary folder (TMPDIR chooses the disk), in steady state:
start-up, the first tasks and the last ones are left out. One process then writes the same bytes as whole shards, one
file after the other: into the system's cache, as Zarr writes them, and with each file on the disk before the next.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks._dask import Pace
from benchmarks._form import finish, parser
from digs_survey.config import load_config
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.augment import augment
from digs_survey.simulate.simulation_set import simulate
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger

DRAWS = 200
WARM_TASKS = 2
WORKERS = (1, 2)


@dataclass(frozen=True)
class Work:
    """Pairs of ``spectra`` simulations that lie in ``folder``, in shards of ``rows_per_shard``."""

    folder: Path
    spectra: int
    rows_per_shard: int

    @property
    def pairs(self) -> int:
        """Pairs in all."""
        return self.spectra * DRAWS


def main() -> None:
    args = parser("augment", __doc__ or "").parse_args()
    times, spectra = (1, 2_000) if args.quick else (3, 3_000)
    rows: list[tuple[str, list[float], str]] = []
    result: dict[str, Any] = {"benchmark": "augment", "cores": os.cpu_count(), "pairs": spectra * DRAWS}
    for rows_per_shard in (2_000,) if args.quick else (2_000, 20_000):
        with tempfile.TemporaryDirectory() as folder:
            work = Work(Path(folder), spectra, rows_per_shard)
            make_simulations(work)
            measured = measure(work, times)
        for name, found in measured.items():
            rows.append((f"{rows_per_shard:,} a shard: {name}", found, "pairs/s"))
            result[f"{_key(name)}_{rows_per_shard}"] = statistics.median(found)
        ratios = {
            f"{workers} worker{'s' * (workers > 1)} / plain writes, {kind}": (
                f"{workers} on Dask",
                f"plain writes, {kind}",
            )
            for workers in WORKERS
            for kind in ("cached", "on the disk")
        } | {f"Dask / {n} loop{'s' * (n > 1)}": (f"{n} on Dask", f"{n} without Dask") for n in WORKERS}
        ratios["2 workers / 1"] = "2 on Dask", "1 on Dask"
        for name, (over, under) in ratios.items():
            found = [a / b for a, b in zip(measured[over], measured[under], strict=True)]
            rows.append((f"{rows_per_shard:,} a shard: {name}", found, ""))
            result[f"{_key(name)}_{rows_per_shard}"] = statistics.median(found)
    finish(f"{spectra * DRAWS:,} noisy pairs of 138 elements, {DRAWS} of each spectrum", rows, result, args.json)


def make_simulations(work: Work) -> None:
    """Compute the noiseless spectra that are copied."""
    config = load_config("digs2022", ["simulate.engine=batched"])
    grid = WavelengthGrid.from_config(config.grid)
    path, ledger = work.folder / "simulations.zarr", Ledger(work.folder / "simulated")
    simulate(config, grid, path, count=work.spectra, stream="simulate", ledger=ledger, workers=0)


def measure(work: Work, times: int) -> dict[str, list[float]]:
    """Pairs/s of each way, in turn, ``times`` rounds after one to warm up."""
    found: dict[str, list[float]] = {}
    for turn in range(times + 1):
        for workers in WORKERS:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                loops = sum(pool.map(rate, [work] * workers, [0] * workers))
            measured = {f"{workers} without Dask": loops, f"{workers} on Dask": rate(work, workers)}
            for name, value in (measured | (written(work) if workers == WORKERS[-1] else {})).items():
                found.setdefault(name, []).extend([value] * bool(turn))
    return found


def rate(work: Work, workers: int) -> float:
    """Pairs/s with so many Dask workers, or (0) in a plain loop in this process."""
    config, pace = load_config("digs2022"), Pace()
    with tempfile.TemporaryDirectory(dir=work.folder) as folder, threadpool_limits(1):
        augment(
            work.folder / "simulations.zarr",
            Path(folder) / "pairs.zarr",
            NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform),
            draws_per_spectrum=DRAWS,
            seed=config.seed,
            ledger=Ledger(Path(folder) / "ledger"),
            rows_per_shard=work.rows_per_shard,
            workers=workers,
            advance=pace,
        )
    return pace.steady(WARM_TASKS * max(1, workers) * 40_000, workers)


def written(work: Work) -> dict[str, float]:
    """Pairs/s of writing the bytes of the pairs, ready in memory, one file after the other."""
    config = load_config("digs2022")
    with tempfile.TemporaryDirectory(dir=work.folder) as name:
        folder, seconds = Path(name), dict.fromkeys(("cached", "on the disk"), 0.0)
        noise = NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)
        augment(
            work.folder / "simulations.zarr",
            folder / "pairs.zarr",
            noise,
            draws_per_spectrum=DRAWS,
            seed=config.seed,
            ledger=Ledger(folder / "ledger"),
            rows_per_shard=work.rows_per_shard,
        )
        files = sorted(path for path in (folder / "pairs.zarr").rglob("c/*") if path.is_file())
        files += sorted(path for path in (folder / "pairs.zarr").rglob("c/*/*") if path.is_file())
        os.sync()
        for kind in seconds:
            for number, path in enumerate(files):
                data = path.read_bytes()
                start = time.perf_counter()
                with (folder / f"{kind}-{number}").open("wb") as file:
                    file.write(data)
                    if kind == "on the disk":
                        file.flush()
                        os.fsync(file.fileno())
                seconds[kind] += time.perf_counter() - start
    return {f"plain writes, {kind}": work.pairs / taken for kind, taken in seconds.items()}


def _key(name: str) -> str:
    return name.replace(",", "").replace(" / ", "_over_").replace(" ", "_").lower()


if __name__ == "__main__":
    main()
