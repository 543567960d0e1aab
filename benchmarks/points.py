"""Errors of a survey row's percentiles by the number and kind of its draws, in standard deviations of the posterior.

Rows are simulated, with noise, gaps and redshifts as ``noise.observing`` has them. What is exact are order statistics
of 131,072 draws. Each row of the table is the root mean square over rows and parameters; the repeats are scrambles.
"""

from __future__ import annotations

import statistics

import numpy as np
from numpy.typing import NDArray

from benchmarks._form import finish, parser
from benchmarks._survey import add_model_option, survey_posterior
from digs_survey.estimator.posterior import Base, FrozenPosterior
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.quantiles import smooth_quantiles
from digs_survey.noise.observation import split_observed
from digs_survey.simulate.simulated_spectra import simulated_spectra

LEVELS = (0.05, 0.16, 0.5, 0.84, 0.95)
INNER = slice(1, 4)
"""Of the levels, those within a standard deviation."""
COUNTS = (128, 256, 512, 1_000)
_SEED, _EXACT = 77, 2**17


def main() -> None:
    options = parser("points", __doc__ or "")
    add_model_option(options)
    args = options.parse_args()
    posterior = survey_posterior(args.model)
    rows, seeds = (20, 2) if args.quick else (100, 4)
    flux = _rows(posterior, rows)
    exact = [_order(posterior.sample_unconstrained(row[None], _EXACT, 99))[0] for row in flux]
    table: list[tuple[str, list[float], str]] = []
    kinds: tuple[Base, ...] = ("random", "sobol")
    for draws in COUNTS:
        for base in kinds:
            found: dict[str, list[NDArray[np.float64]]] = {"order statistics": [], "smooth": []}
            for seed in range(seeds):
                u = np.sort(posterior.sample_unconstrained(flux, draws, seed, base=base), axis=-1)
                for name, values in (("order statistics", _order(u)), ("smooth", smooth_quantiles(u, LEVELS))):
                    found[name].append(_errors(values, np.array(exact)))
            for name, errors in found.items():
                for levels, part in (("16, 50, 84 %", INNER), ("5, 95 %", slice(0, None, 4))):
                    each = [float(np.sqrt(np.square(error[..., part]).mean())) for error in errors]
                    table.append((f"{draws:5} {base}, {name}, {levels}", each, "sigma"))
    result = {"benchmark": "points", "model": posterior.hash, "rows": rows, "scrambles": seeds}
    figures = {name.strip(): statistics.median(values) for name, values, _ in table}
    finish(f"Errors of percentiles of {rows} rows, {seeds} scrambles", table, result | figures, args.json)


def _rows(posterior: FrozenPosterior, count: int) -> NDArray[np.float64]:
    """Observations (row, column) of simulated galaxies that have data."""
    model = SpectrumLikelihood.of_posterior(posterior).model
    _, clean = simulated_spectra(model, posterior.prior, posterior.noise, _SEED, "points", 0, 2 * count)
    observed = posterior.noise.draw(clean, np.random.default_rng(_SEED))
    return observed[(split_observed(observed)[1] > 0).mean(axis=1) > 0.1][:count]


def _order(u: NDArray[np.floating]) -> NDArray[np.float64]:
    """Order statistics (row, parameter, level) of draws (row, parameter, draw)."""
    return np.moveaxis(np.quantile(u, LEVELS, axis=-1), 0, -1)


def _errors(found: NDArray[np.float64], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    return (found - exact) / (0.5 * (exact[..., 3] - exact[..., 1]))[..., None]


if __name__ == "__main__":
    main()
