"""How good a posterior for rows of any noise is, by signal-to-noise: coverage, widths over exact ones, ESS/N, speed.

On simulations that it was not trained on, with the noise, gaps and redshifts of ``noise.observing``. The exact
posterior is the neural one's draws with importance weights; its widths are compared where the weights are worth 50
draws or more, and how many rows that leaves out is shown.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._form import finish, parser
from benchmarks._survey import add_model_option, survey_posterior
from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.config import load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.psis import smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import effective_sample_size, log_ratios, weighted_quantiles
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.observation import split_clean, split_observed
from digs_survey.noise.observed_rows import observed_rows
from digs_survey.quality import NO_POSTERIOR
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.sps.batched import BatchedModel

LEVELS = (0.5, 0.68, 0.9, 0.95)
EDGES = (0.0, 5.0, 10.0, 15.0, 30.0, np.inf)
"""Of the bins in the median S/N of an element."""
BINS = 5
_SEED, _DRAWS, _BLOCK, _MIN_ESS = 77, 1_000, 500, 50


def main() -> None:
    options = parser("survey_posterior", __doc__ or "")
    add_model_option(options)
    options.add_argument("--simulations", type=int, help="for coverage (default: 5,000)")
    options.add_argument("--weighed", type=int, help="of these, for importance weights (default: 500)")
    args = options.parse_args()
    posterior = survey_posterior(args.model)
    count = args.simulations or (500 if args.quick else 5_000)
    seen = simulate(posterior, count, args.weighed or (50 if args.quick else 500))
    figures = {"rows per core-second, all that the preset asks for": rows_per_s(posterior)} | measure(posterior, *seen)
    rows = [(name, [value], "") for name, value in figures.items()]
    about = f"{count} simulations, {_DRAWS} draws each"
    result = {"benchmark": "survey_posterior", "model": posterior.hash, "simulations": count, **figures}
    finish(about, rows, result, args.json)


def rows_per_s(posterior: FrozenPosterior, count: int = 256) -> float:
    """Rows per core-second with the map settings of the preset: draws, predictive checks and derived quantities."""
    settings = load_config("survey").map.model_copy(update={"error_floor": 0.0})
    likelihood, noise = SpectrumLikelihood.of_posterior(posterior), posterior.noise
    _, clean = simulated_spectra(likelihood.model, posterior.prior, noise, _SEED, "speed", 0, count)
    flux, inverse, redshift = split_observed(noise.draw(clean, np.random.default_rng(_SEED)))
    rows = observed_rows(flux, inverse, redshift, np.zeros(count, dtype=np.int64), settings)
    checker = Checker(posterior, likelihood, settings.predictive_draws)
    derive = DerivedQuantities.of_model(settings.derived, posterior.model.sfh, likelihood.model, posterior.prior)
    infer_rows(posterior, rows, settings, derive=derive, checker=checker)
    began = time.process_time()
    infer_rows(posterior, rows, settings, derive=derive, checker=checker)
    return count / (time.process_time() - began)


def simulate(posterior: FrozenPosterior, count: int, weighed: int) -> tuple[NDArray[Any], ...]:
    """Return truth, rank, S/N, redshift, good share; then half-widths, weighted ones and ESS/N of the first rows."""
    model = BatchedModel.from_config(posterior.model, posterior.prior, posterior.grid)
    likelihood, noise = SpectrumLikelihood(model, posterior.noise, posterior.prior), posterior.noise
    parts: list[tuple[NDArray[Any], ...]] = []
    spent, done = 0.0, 0
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        theta, clean = simulated_spectra(model, posterior.prior, noise, _SEED, "benchmark", start, stop)
        redshift = split_clean(clean)[1]
        uniform = row_uniforms(_SEED, "noise/benchmark", start, stop, noise.columns(clean.shape[1]))
        rows, _ = observe_rows(noise, clean, uniform, 0.1)
        known = np.flatnonzero((rows.quality & NO_POSTERIOR) == 0)
        flux, good, truth = rows.flux[known], rows.good[known], theta[known]
        began = time.process_time()
        draws = posterior.sample(flux, _DRAWS)
        spent, done = spent + time.process_time() - began, done + known.size
        ratio = np.where(good, rows.spectrum[known] * np.sqrt(rows.ivar[known]), np.nan)
        low, high = np.quantile(draws, [0.16, 0.84], axis=1)
        rank = (draws < truth[:, None]).mean(axis=1)
        some = min(known.size, max(0, weighed - sum(len(part[0]) for part in parts)))
        ess, width = np.full(known.size, np.nan), np.full(truth.shape, np.nan)
        if some:
            weights = log_ratios(posterior, likelihood, draws[:some], flux[:some], good[:some])
            ess[:some] = effective_sample_size(weights)
            for row in range(some):
                ends = weighted_quantiles(draws[row], smooth_tail(weights[row])[0], (0.16, 0.84))
                width[row] = 0.5 * (ends[:, 1] - ends[:, 0])
        about = np.nanmedian(ratio, axis=1), redshift[known], good.mean(axis=1)
        parts.append((truth, rank, *about, 0.5 * (high - low), width, ess / _DRAWS))
    joined = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return (*joined, np.array(spent / done))


def measure(
    posterior: FrozenPosterior,
    truth: NDArray[Any],
    rank: NDArray[Any],
    snr: NDArray[Any],
    redshift: NDArray[Any],
    share: NDArray[Any],
    width: NDArray[Any],
    exact: NDArray[Any],
    ess: NDArray[Any],
    row_s: NDArray[Any],
) -> dict[str, float]:
    """Return the figures by name."""
    names, distance = posterior.prior.names, np.abs(2 * rank - 1)
    found = {f"rows sampled per core-second, {_DRAWS} draws": float(1 / row_s)}
    errors = {level: (distance <= level).mean(axis=0) - level for level in LEVELS}
    for level, error in errors.items():
        found[f"largest |coverage - {level:g}| of a parameter"] = float(np.abs(error).max())
    for along, values in (("S/N", snr), ("redshift", redshift), ("good share", share)):
        worst = 0.0
        for members in np.array_split(np.argsort(values, kind="stable"), BINS):
            worst = max(worst, *(np.abs((distance[members] <= level).mean(axis=0) - level).max() for level in LEVELS))
        found[f"largest |coverage - level| in five bins of {along}"] = float(worst)
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        here = (snr >= low) & (snr < high)
        weighed = here & np.isfinite(ess)
        if not weighed.any():
            continue
        where = f"S/N {low:g}-{high:g}"
        found[f"{where}: median ESS/N"] = float(np.median(ess[weighed]))
        fine = weighed & (ess * _DRAWS >= _MIN_ESS)
        found[f"{where}: share with an ESS below {_MIN_ESS}"] = float(1 - fine.sum() / weighed.sum())
        for k, name in enumerate(names):
            found[f"{where}: {name}, half-width"] = float(np.median(width[here, k]))
            if fine.any():
                ratio = float(np.median(width[fine, k] / exact[fine, k]))
                found[f"{where}: {name}, over the exact half-width"] = ratio
    return found


if __name__ == "__main__":
    main()
