"""The map over a fake catalog, run as a user runs it, against its own sampler on the same cores.

The network is the paper's (25 x 10, the cheapest of ours to draw from, so that everything else weighs most); its
weights are random, which costs the same as trained ones, or `--model` names a posterior. The sampler's rate is that
of draws and their percentiles from spectra in memory, in one process a core. The map's is from its stage's start to
its end, Ray's start included, tables written; its pace is without the start. The efficiency is the map's rate over
the sampler's. Memory is the most that a process was seen to hold, ten times a second.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks._form import PAPER_NETWORK, finish, parser
from benchmarks.sample import _infer, _start
from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.mock_catalog import fake_catalog
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.store.ledger import Ledger

CORES = 2
DEFAULT_DRAWS = 1_000
_ONCE = 50_000
"""Rows from which on a run is long enough to be done once."""


@dataclass(frozen=True)
class Run:
    """What one run of the map took: rates in rows/s, memory in MB, seconds of all shards in each phase."""

    rate: float
    pace: float
    command_s: float
    driver_mb: float
    worker_mb: float
    phases: dict[str, float]


def main() -> None:
    options = parser("map", __doc__ or "")
    options.add_argument("--rows", type=int, nargs="+", help="sizes of the catalog (default: 10,000 and 100,000)")
    options.add_argument("--model", type=Path, help="folder of a posterior for the grid of digs2022")
    options.add_argument("--times", type=int, default=3, help="repeats of sizes up to 50,000 rows")
    options.add_argument("--no-scan", action="store_true", help="leave the scan over settings out")
    args = options.parse_args()
    sizes = args.rows or ([4_096] if args.quick else [10_000, 100_000])
    times = 1 if args.quick else args.times
    config = load_config("digs2022", PAPER_NETWORK)
    table: list[tuple[str, list[float], str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or _random_model(folder / "model", config)
        catalogs = {rows: _catalog(folder, config, rows) for rows in sorted(sizes)}
        sampler = _sampler(model, catalogs[min(sizes)], config, 1 if args.quick else 3)
        table.append(("sampler, from memory", sampler, "rows/s"))
        found: dict[int, list[Run]] = {}
        for rows, catalog in catalogs.items():
            found[rows] = [_map(folder / "run", catalog, model) for _ in range(1 if rows > _ONCE else times)]
            table += _lines(f"{rows:,} rows", found[rows])
        largest, smallest = found[max(sizes)], found[min(sizes)]
        started = time.perf_counter()
        _map(folder / "run", catalogs[max(sizes)], model, afresh=False)
        again = time.perf_counter() - started
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "digs_survey", "map", "--help"], check=True, capture_output=True)
        startup = time.perf_counter() - started
        table.append(("the same command again, all done", [again], "s"))
        table.append(("of that, the command's own start", [startup], "s"))
        if not args.no_scan:
            table += _scan(folder, model, config, 1_024 if args.quick else 10_000)
    rate = statistics.median(run.rate for run in largest)
    finish(
        f"map with {DEFAULT_DRAWS} draws a row on {CORES} cores",
        table,
        {
            "benchmark": "map",
            "rows": max(sizes),
            "cores": CORES,
            "rows_per_s": rate,
            "sampler_rows_per_s": statistics.median(sampler),
            "efficiency": rate / statistics.median(sampler),
            "driver_rss_mb": max(run.driver_mb for run in largest),
            "worker_rss_mb": max(run.worker_mb for run in largest),
            "rows_per_s_ratio_large_small": statistics.median(run.pace for run in largest)
            / statistics.median(run.pace for run in smallest),
            "again_s": again - startup,
        },
        args.json,
    )


def _random_model(folder: Path, config: SurveyConfig) -> Path:
    """Freeze a posterior with random weights over features of the model's spectra."""
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    noise = NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)
    theta = draw_theta(prior, 1, "benchmark", 0, 2_000)
    flux = BatchedModel.from_config(config.model, prior, grid).spectra(theta).astype(np.float32)
    estimator = prepare_estimator(config, theta, flux, noise).eval()
    freeze_posterior(folder, [estimator], config, grid, noise, training={})
    return folder


def _catalog(folder: Path, config: SurveyConfig, rows: int, bad: float = 0.0) -> Path:
    path = folder / f"catalog-{rows}-{bad}.zarr"
    fake_catalog(path, config, rows, bad=bad)
    return path


def _sampler(model: Path, catalog: Path, config: SurveyConfig, times: int) -> list[float]:
    """Rows/s of draws and percentiles from prepared spectra in memory, one process a core."""
    rows = Catalog.open(catalog).rows(0, min(4_096, Catalog.open(catalog).n_rows))
    flux = prepare(rows, "rest", config.model.zred, config.map.min_good_fraction).flux
    shares: list[NDArray[np.float64]] = np.array_split(flux, CORES)
    with ProcessPoolExecutor(CORES, get_context("spawn"), _start, (model, config.map)) as workers:
        rates = []
        for turn in range(times + 1):
            started = time.perf_counter()
            list(workers.map(_infer, shares))
            if turn:
                rates.append(len(flux) / (time.perf_counter() - started))
    return rates


def _map(run_dir: Path, catalog: Path, model: Path, *settings: str, afresh: bool = True) -> Run:
    """Run ``digs-survey map`` and watch it."""
    if afresh:
        shutil.rmtree(run_dir, ignore_errors=True)
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "digs_survey", "map", str(catalog), "--model", str(model), "--quiet"]
    started = time.perf_counter()
    driver = subprocess.Popen(
        [*command, "--run-dir", str(run_dir), "--config", "digs2022", *overrides], stdout=subprocess.DEVNULL
    )
    memory = {"driver": 0, "worker": 0}
    watch = threading.Thread(target=_watch, args=(driver.pid, memory), daemon=True)
    watch.start()
    if driver.wait():
        raise SystemExit("the map failed; see above")
    command_s = time.perf_counter() - started
    watch.join()
    record = json.loads((run_dir / "manifest.json").read_text())["stages"]["map"]
    records = list(Ledger(run_dir / "ledger" / "map").records().values())
    rows = sum(r["rows"] for r in records)
    span = max(r["finished"] for r in records) - min(r["finished"] - r["seconds"] for r in records)
    phases = {name: sum(r["phases"][name] for r in records) for name in ("read", "infer", "write")}
    return Run(rows / record["wall_s"], rows / span, command_s, memory["driver"] / 1e6, memory["worker"] / 1e6, phases)


def _watch(pid: int, memory: dict[str, int]) -> None:
    """Follow the memory of a driver and of the busiest of its workers."""
    try:
        driver = psutil.Process(pid)
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            memory["driver"] = max(memory["driver"], driver.memory_info().rss)
            for process in driver.children(recursive=True):
                try:
                    if process.name().startswith("ray::ShardWorker"):
                        memory["worker"] = max(memory["worker"], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


def _lines(name: str, runs: list[Run]) -> list[tuple[str, list[float], str]]:
    total = [sum(run.phases.values()) for run in runs]
    return [
        (f"{name}: map", [run.rate for run in runs], "rows/s"),
        (f"{name}: map without its start", [run.pace for run in runs], "rows/s"),
        (f"{name}: the whole command", [run.command_s for run in runs], "s"),
        *(
            (f"{name}: {phase}", [100 * run.phases[phase] / t for run, t in zip(runs, total, strict=True)], "%")
            for phase in ("read", "infer", "write")
        ),
        (f"{name}: driver's memory", [run.driver_mb for run in runs], "MB"),
        (f"{name}: a worker's memory", [run.worker_mb for run in runs], "MB"),
    ]


def _scan(folder: Path, model: Path, config: SurveyConfig, rows: int) -> list[tuple[str, list[float], str]]:
    """Paces at other settings, where the time of a row goes, and what garbage rows cost."""
    catalog = _catalog(folder, config, rows)
    lines = []
    for setting in (
        *(f"map.rows_per_shard={n}" for n in (256, 1_024, 4_096)),
        *(f"map.workers={n}" for n in (1, 2)),
        *(f"map.draws={n}" for n in (250, 1_000, 4_000)),
        'map.derived=["surviving_mass", "mass_weighted_age", "sfr_10", "sfr_100", "ssfr_10", "ssfr_100"]',
        "map.samples=100",
    ):
        shown = setting if len(setting) < 30 else "map.derived, all six"
        lines.append((f"{rows:,} rows, {shown}", [_map(folder / "scan", catalog, model, setting).pace], "rows/s"))
    garbage = _map(folder / "scan", _catalog(folder, config, rows, bad=0.01), model).pace
    lines.append((f"{rows:,} rows, 1 % of them garbage", [garbage], "rows/s"))
    return lines + _parts(model, catalog, config)


def _parts(model: Path, catalog: Path, config: SurveyConfig) -> list[tuple[str, list[float], str]]:
    """Milliseconds of a core that each part of inferring a row takes."""
    posterior, rows = FrozenPosterior.load(model), Catalog.open(catalog).rows(0, 1_024)
    torch.set_num_threads(1)
    frame, settings = posterior.grid.frame, config.map

    def timed(function: object, *arguments: object) -> list[float]:
        spent = []
        for turn in range(4):
            started = time.process_time()
            function(*arguments)  # type: ignore[operator]
            if turn:
                spent.append(1e3 * (time.process_time() - started) / len(rows.flux))
        return spent

    flux = prepare(rows, frame, config.model.zred, settings.min_good_fraction).flux
    features = timed(lambda: [posterior._see(spectrum) for spectrum in flux])
    drawn = timed(posterior.draw_and_judge, flux, settings.draws)
    return [
        ("a row: prepare", timed(prepare, rows, frame, config.model.zred, settings.min_good_fraction), "core ms"),
        ("a row: features and embedding", features, "core ms"),
        ("a row: features and draws", drawn, "core ms"),
        ("a row: all of it", timed(lambda: _infer_here(posterior, flux, config)), "core ms"),
    ]


def _infer_here(posterior: FrozenPosterior, flux: NDArray[np.float64], config: SurveyConfig) -> None:
    from digs_survey.catalog.prepare import PreparedRows
    from digs_survey.infer.rows import infer_rows

    good = np.ones(flux.shape, dtype=bool)
    prepared = PreparedRows(flux, good.astype(float), good, np.zeros(len(flux), dtype=np.int64))
    infer_rows(posterior, prepared, config.map)


if __name__ == "__main__":
    main()
