"""Percentiles of posterior draws: our sampler against sbi's ``sample_batched`` on the same network, all cores.

Both draw the same number of samples of the same spectra and condense them to the configuration's quantiles. The
network is the paper's (25 x 10, no embedding) or another preset's; its weights are random, which costs the same as
trained ones. sbi's posterior is a DirectPosterior over all of the unconstrained coordinates: it rejects nothing.

The roofline is what the incremental inverse would give if it did nothing but its multiplications, at the rate of a
large matrix product, and its hyperbolic tangents, at the rate of the sampler's own on rows in cache.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sbi.inference.posteriors import DirectPosterior
from torch.distributions import Independent, Normal

from benchmarks._form import PAPER_NETWORK, finish, parser, repeat
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig, load_config
from digs_survey.estimator.flows.sampler import MaskedFlow, compiled_loops
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid

DRAWS = 1_000
CORES = 2


def main() -> None:
    options = parser("sample", __doc__ or "")
    options.add_argument("--preset", help="whose network (default: the paper's, 25 x 10)")
    args = options.parse_args()
    galaxies, sbi_galaxies, times = (200, 20, 3) if args.quick else (2_000, 100, 5)
    torch.set_num_threads(CORES)
    logging.disable(logging.INFO)

    config = load_config(args.preset) if args.preset else load_config("digs2022", PAPER_NETWORK)
    prior, grid, noise = (
        config.make_prior(),
        WavelengthGrid.from_config(config.grid),
        NoiseModel.from_config(config.noise),
    )
    rng = np.random.default_rng(1)
    theta = prior.from_unit_cube(rng.random((2_000, prior.ndim)))
    flux = _spectra(theta, grid, rng)
    estimator = prepare_estimator(config, theta, flux, noise).eval()
    folder = tempfile.TemporaryDirectory()
    freeze_posterior(Path(folder.name), [estimator], config, grid, noise, training={})
    # One process a core with one thread each, as the map's actors are.
    workers = ProcessPoolExecutor(CORES, get_context("spawn"), _start, (Path(folder.name), config.map))
    shares = np.array_split(flux[:galaxies].astype(float), CORES)
    list(workers.map(_infer, shares))

    everywhere = Independent(Normal(torch.zeros(prior.ndim), 1e3 * torch.ones(prior.ndim)), 1)
    direct = DirectPosterior(estimator.flow, everywhere)

    @torch.no_grad()
    def theirs() -> None:
        features = estimator.features(torch.as_tensor(flux[:sbi_galaxies]))
        centre, scale = estimator.features.centring(features)
        context = estimator.features.context(features)
        with warnings.catch_warnings(action="ignore"):  # that it takes several batches
            v = direct.sample_batched((DRAWS,), context, show_progress_bars=False)
        theta = estimator.features.coordinates.to_theta((v * scale + centre).numpy())
        np.quantile(theta, config.map.quantiles, axis=0)

    seconds = repeat([lambda: list(workers.map(_infer, shares)), theirs, *_ceilings()], times)
    core_ms = [1e3 * sum(workers.map(_infer, shares)) / galaxies for _ in range(times)]
    workers.shutdown()
    folder.cleanup()
    ours_rate = [galaxies / s for s in seconds[0]]
    theirs_rate = [sbi_galaxies / s for s in seconds[1]]
    ratios = [a / b for a, b in zip(ours_rate, theirs_rate, strict=True)]
    products_rate, tanh_rate = ([_WORK / s for s in found] for found in seconds[2:])
    products, tanhs = _needs(MaskedFlow.from_sbi(estimator.flow))
    roofline = [1 / (DRAWS * (products / p + tanhs / t)) for p, t in zip(products_rate, tanh_rate, strict=True)]
    network = f"{config.train.hidden_features} x {config.train.transforms}"
    finish(
        f"{DRAWS} draws a galaxy from a {network} flow, and their percentiles, on {CORES} cores",
        [
            ("ours", ours_rate, "galaxies/s"),
            ("sbi's sample_batched", theirs_rate, "galaxies/s"),
            ("ratio", ratios, ""),
            ("matrix product", [rate / 1e9 for rate in products_rate], "1e9 multiply-adds/s"),
            ("tanh", [rate / 1e9 for rate in tanh_rate], "1e9/s"),
            ("roofline", roofline, "galaxies/s"),
            ("ours, time of a core", core_ms, "ms a galaxy"),
        ],
        {
            "benchmark": "sample",
            "network": network,
            "draws": DRAWS,
            "cores": CORES,
            "repeats": times,
            "galaxies_per_s": statistics.median(ours_rate),
            "sbi_galaxies_per_s": statistics.median(theirs_rate),
            "ratio": statistics.median(ratios),
            "roofline_galaxies_per_s": statistics.median(roofline),
            "core_ms_per_galaxy": statistics.median(core_ms),
        },
        args.json,
    )


_worker: tuple[FrozenPosterior, MapConfig]


def _start(folder: Path, settings: MapConfig) -> None:
    """Load the posterior into a worker's process."""
    global _worker
    torch.set_num_threads(1)
    _worker = FrozenPosterior.load(folder), settings.model_copy(update={"draws": DRAWS})


def _infer(flux: NDArray[np.float64]) -> float:
    """Percentiles of spectra (n, wavelength) in a worker; core-seconds that they took."""
    posterior, settings = _worker
    good = np.ones(flux.shape, dtype=bool)
    started = time.process_time()
    infer_rows(posterior, PreparedRows(flux, good.astype(float), good, np.zeros(len(flux), dtype=np.int64)), settings)
    return time.process_time() - started


_SIDE = 1_024
_WORK = _SIDE**3
"""Multiply-adds and tanhs that the roofline's rates are measured on."""


def _ceilings() -> list[Callable[[], Any]]:
    """Functions that do :data:`_WORK` multiply-adds and :data:`_WORK` tanhs on all cores."""
    compiled = compiled_loops()
    if compiled is None:
        raise SystemExit("the roofline needs the compiled loops; see the warning above")
    left, right = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    height = 16

    def tanhs(_: int) -> None:
        values = np.linspace(-3, 3, height * compiled.BLOCK, dtype=np.float32)
        compiled.tanh_repeatedly(values, height, _WORK // CORES // values.size)

    def all_tanhs() -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(tanhs, range(CORES)))

    return [lambda: left @ right, all_tanhs]


def _needs(flow: MaskedFlow) -> tuple[int, int]:
    """Multiply-adds with weights that are not masked, and tanhs, of one draw."""
    weights = sum(int(np.count_nonzero(w)) for w in (flow.w_in, flow.w_hidden, flow.w_out))
    return weights, flow.b_in.size + flow.b_hidden.size


def _spectra(theta: np.ndarray, grid: WavelengthGrid, rng: np.random.Generator) -> np.ndarray:
    """Make smooth spectra of the right shape and scale; the cost of drawing does not depend on them."""
    slope = rng.normal(size=(len(theta), 4)) @ np.vander(np.linspace(-1, 1, len(grid)), 4).T
    return (10 ** (theta[:, :1] - 17 + 0.3 * slope)).astype(np.float32)


if __name__ == "__main__":
    main()
