"""Noiseless spectra of the delayed-tau model on 138 elements: Prospector, the batched model, and what Dask costs.

Prospector's calls and the batched model run on one core and make the same spectra. Dask is measured through the code
that ``digs-survey simulate`` uses, in a temporary folder. FSPS is measured where SPS_HOME is usable.
"""

from __future__ import annotations

import os
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks._dask import Work, memory, on_cores
from benchmarks._form import finish, parser, repeat
from digs_survey.config import load_config
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.fsps import check_fsps
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import physical_theta

REFERENCE = 1_000
"""Batch at which the ratio is taken, and spectra of a shard at which Dask's overhead is."""

_INDEX, _SPREAD = "prior.dust_index={low=-1.0, high=0.4}", "prior.sigma_smooth={low=60, high=400}"
_CLOUDS = "prior.dust1={low=0.0, high=2.0}"
DUST = {
    "index_spread": ("free dust_index and sigma_smooth", (_INDEX, _SPREAD)),
    "two_dusts": ("free dust_index and dust1", (_INDEX, _CLOUDS)),
    "two_dusts_spread": ("free dust_index, dust1 and sigma_smooth", (_INDEX, _CLOUDS, _SPREAD)),
}
"""Laws of the dust whose batches are timed: settings beside Kriek & Conroy's."""

Rows = list[tuple[str, list[float], str]]


def main() -> None:
    args = parser("simulate", __doc__ or "").parse_args()
    rows: Rows = []
    status = check_fsps()
    result: dict[str, Any] = {"benchmark": "simulate", "cores": os.cpu_count(), "fsps_standin": status.standin}
    result |= spectra("bc03", "bc03", rows, args.quick)
    if status.ok:
        result |= spectra("fsps", "fsps (stand-in data)" if status.standin else "fsps", rows, args.quick)
    else:
        result["prospector_fsps_per_s_core"] = None
        print(f"fsps is left out: {status.problem}; {status.remedy}")
    result |= in_bins(rows, args.quick)
    result["batched_per_s_core"] = result["batched_bc03_per_s_core"]
    result |= behind_dust(rows, args.quick)
    result |= on_dask(rows, args.quick)
    result |= memories(rows, [10_000] if args.quick else [10_000, 100_000, 1_000_000])
    finish("noiseless spectra of 138 elements; batches and Prospector on one core", rows, result, args.json)


def spectra(source: str, label: str, rows: Rows, quick: bool) -> dict[str, Any]:
    """Time Prospector and the batched model on one core."""
    calls = (200 if quick else 1_000) if source == "bc03" else (20 if quick else 100)
    largest, times = (10_000, 3) if quick else (100_000, 7)
    sizes = [10**k for k in range(6) if 10**k <= largest]
    config = load_config("digs2022", [f"model.source={source}"])
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = prior.from_unit_cube(np.random.default_rng(1).random((largest, prior.ndim)))
    some, tensor = theta[:calls], torch.as_tensor(theta[:REFERENCE])
    torch.set_num_threads(1)
    with threadpool_limits(1):
        what = config.model, prior, grid
        prospector, batched = ProspectorSimulator(*what), BatchedModel.from_config(*what)
        counts = [max(size, min(10 * REFERENCE, 100 * size)) for size in sizes]
        timed = [partial(prospector.spectra, some), partial(batched.spectra, tensor)]
        timed += [partial(_in_batches, batched, theta[:n], size) for size, n in zip(sizes, counts, strict=True)]
        seconds = repeat(timed, times)
        found = [calls / s for s in seconds[0]]
        rates = {size: [count / s for s in row] for size, count, row in zip(sizes, counts, seconds[2:], strict=True)}
        on_torch = [REFERENCE / s for s in seconds[1]]
        ratios = [a / b for a, b in zip(rates[REFERENCE], found, strict=True)]
        difference = float(np.abs(batched.spectra(some) / prospector.spectra(some) - 1).max())
    rows.append((f"Prospector, {label}, one call each", found, "spectra/s"))
    rows += [(f"batched, {label}, {size:,} at a time", rates[size], "spectra/s") for size in sizes]
    rows.append((f"batched on torch, {label}, {REFERENCE:,} at a time", on_torch, "spectra/s"))
    rows.append((f"ratio, {label}, at {REFERENCE:,}", ratios, ""))
    return {
        f"prospector_{source}_per_s_core": statistics.median(found),
        f"batched_{source}_per_s_core": statistics.median(rates[REFERENCE]),
        f"batched_{source}_per_s_core_by_size": {size: statistics.median(rates[size]) for size in sizes},
        f"batched_torch_{source}_per_s_core": statistics.median(on_torch),
        f"ratio_{source}": statistics.median(ratios),
        f"max_difference_{source}": difference,
    }


def in_bins(rows: Rows, quick: bool) -> dict[str, Any]:
    """Time the batched model of seven bins of age on one core."""
    config = load_config("quick", ["model.sfh=continuity"])
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = prior.from_unit_cube(np.random.default_rng(1).random((10 * REFERENCE, prior.ndim)))
    theta = physical_theta(prior, theta, np.linspace(0.01, 2.0, len(theta)))
    with threadpool_limits(1):
        batched = BatchedModel.from_config(config.model, prior, grid)
        (seconds,) = repeat([partial(_in_batches, batched, theta, REFERENCE)], 3 if quick else 7)
    rates = [len(theta) / s for s in seconds]
    rows.append((f"batched, bc03, continuity in 7 bins, {REFERENCE:,} at a time", rates, "spectra/s"))
    return {"batched_continuity_per_s_core": statistics.median(rates)}


def behind_dust(rows: Rows, quick: bool) -> dict[str, Any]:
    """Time the batched model with laws of the dust that differ from galaxy to galaxy, on one core."""
    count, times = (5_000, 3) if quick else (20_000, 7)
    result: dict[str, Any] = {}
    for key, (label, overrides) in DUST.items():
        config = load_config("digs2022", ["model.dust_law=kriek_conroy", *overrides])
        prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
        theta = prior.from_unit_cube(np.random.default_rng(1).random((count, prior.ndim)))
        with threadpool_limits(1):
            what = config.model, prior, grid
            batched = BatchedModel.from_config(*what)
            (seconds,) = repeat([partial(_in_batches, batched, theta, REFERENCE)], times)
            exact = ProspectorSimulator(*what).spectra(theta[:200])
        found = [count / s for s in seconds]
        rows.append((f"batched, bc03, {label}, {REFERENCE:,} at a time", found, "spectra/s"))
        result[f"batched_{key}_per_s_core"] = statistics.median(found)
        result[f"max_difference_{key}"] = float(np.abs(batched.spectra(theta[:200]) / exact - 1).max())
    return result


def on_dask(rows: Rows, quick: bool) -> dict[str, Any]:
    """Measure what Dask adds to each task, and what more workers bring."""
    cores = os.cpu_count() or 1
    batched = Work("batched", REFERENCE, 150 if quick else 600, 50)
    works = {"": (batched, cores)}
    if not quick:
        works |= {
            "_one_worker": (batched, 1),
            "_2000_a_shard": (Work("batched", 2 * REFERENCE, 300, 30), cores),
            "_auto": (Work("auto", REFERENCE, 300, 50), cores),
            "_prospector": (Work("prospector", REFERENCE, 12, 2), cores),
        }
    result: dict[str, Any] = {}
    rates = {}
    for key, (work, workers) in works.items():
        plain, dask = on_cores(work, workers, 1 if quick else 3)
        rates[key] = dask
        name = f"{work.engine}, {work.rows_per_shard:,} a shard, {workers} worker{'s' * (workers > 1)}"
        fractions = [1 - b / a for a, b in zip(plain, dask, strict=True)]
        rows += [
            (f"{name}: without Dask", plain, "spectra/s"),
            (f"{name}: on Dask", dask, "spectra/s"),
            (f"{name}: Dask's overhead", fractions, ""),
        ]
        result[f"dask_overhead{key}"] = statistics.median(fractions)
        result[f"dask_per_s{key}"] = statistics.median(dask)
    if not quick:
        scaling = [a / b for a, b in zip(rates[""], rates["_one_worker"], strict=True)]
        rows.append((f"{cores} workers against 1", scaling, ""))
        result["dask_scaling"] = statistics.median(scaling)
    return result


def memories(rows: Rows, counts: list[int]) -> dict[str, Any]:
    """Measure the peak memory of ``simulate --n`` for each number of simulations."""
    result: dict[str, Any] = {}
    for count in counts:
        driver, worker, seconds = memory(count)
        rows += [
            (f"--n {count:,}: driver and scheduler", [driver], "MiB"),
            (f"--n {count:,}: a worker", [worker], "MiB"),
            (f"--n {count:,}: start to end", [seconds], "s"),
        ]
        result |= {f"driver_mib_{count}": driver, f"worker_mib_{count}": worker, f"wall_s_{count}": seconds}
    return result


def _in_batches(model: BatchedModel, theta: NDArray[np.float64], size: int) -> None:
    for start in range(0, len(theta), size):
        model.spectra(theta[start : start + size])


if __name__ == "__main__":
    main()
