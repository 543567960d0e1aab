"""What faults of the data do to a posterior for rows of any noise, and how many of the rows that they bias are flagged.

Each fault is put into the same simulated rows. A row counts as biased where a parameter's median is more than 3 of
its half-widths from the truth, beyond what the same rows show without a fault. It counts as flagged where it gets
POOR_FIT or OUTSIDE_SIMULATIONS, as a row of a catalog would with ``map.predictive_draws = 32``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._form import finish, parser
from benchmarks._survey import add_model_option, survey_posterior
from digs_survey.config import MapConfig
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import observed_rows
from digs_survey.parameters import Prior
from digs_survey.quality import QualityFlag
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import C_KMS, WavelengthGrid
from digs_survey.sps.batched import BatchedModel

_SEED, _FAR = 78, 3.0
Rows = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Flux and inverse errors (row, wavelength), and redshifts (row,)."""


def main() -> None:
    options = parser("survey_faults", __doc__ or "")
    add_model_option(options)
    options.add_argument("--rows", type=int, help="simulated rows (default: 300)")
    args = options.parse_args()
    posterior = survey_posterior(args.model)
    count = args.rows or (40 if args.quick else 300)
    noise = posterior.noise
    checker = Checker(posterior, SpectrumLikelihood.of_posterior(posterior), 32)
    uniform = row_uniforms(_SEED, "noise/faults", 0, count, noise.columns(len(posterior.grid) + 1))

    def simulate(
        velocity_kms: float = 0.0, sigma_kms: float | None = None, **settings: Any
    ) -> tuple[NDArray[np.float64], Rows]:
        """Return theta, and the galaxies observed with the model, the redshift or the line spread of the data off."""
        seen = WavelengthGrid(posterior.grid.wavelength * (1 + velocity_kms / C_KMS))
        prior = posterior.prior
        if sigma_kms is not None:
            if "sigma_smooth" in prior.names:
                bounds = {p.name: (p.low, p.high) for p in prior.parameters}
                prior = Prior.of_bounds({**bounds, "sigma_smooth": (sigma_kms, 1.001 * sigma_kms)})
            else:
                settings["smoothing_kms"] = sigma_kms
        model = BatchedModel.from_config(posterior.model.model_copy(update=settings), prior, seen)
        theta, clean = simulated_spectra(model, prior, noise, _SEED, "faults", 0, count)
        return theta, split_observed(noise.observe(clean, uniform)[0])

    def observe(velocity_kms: float = 0.0, **settings: Any) -> Rows:
        return simulate(velocity_kms, **settings)[1]

    theta, plain = simulate()
    without = _bias(posterior, checker, plain, theta)
    rows: list[tuple[str, list[float], str]] = []
    result: dict[str, Any] = {"benchmark": "survey_faults", "model": posterior.hash, "rows": count}
    for name, make in _faults(posterior.grid, plain, observe, posterior.prior.bounds("sigma_smooth")).items():
        flux, inverse, z = make()
        bias, flagged = _bias(posterior, checker, (flux, inverse, z), theta)
        biased = (bias > _FAR) & (without[0] <= _FAR)
        caught = float(flagged[biased].mean()) if biased.any() else float("nan")
        result[name] = {"biased": float(biased.mean()), "flagged_of_biased": caught, "flagged": float(flagged.mean())}
        rows += [(f"{name}: biased", [float(biased.mean())], ""), (f"{name}: of these flagged", [caught], "")]
    result["no fault"] = {"biased": float((without[0] > _FAR).mean()), "flagged": float(without[1].mean())}
    rows.append(("no fault: flagged", [result["no fault"]["flagged"]], ""))
    finish(f"{count} rows, shares", rows, result, args.json)


def _faults(
    grid: WavelengthGrid, plain: Rows, observe: Callable[..., Rows], free: tuple[float, float] | None
) -> dict[str, Callable[[], Rows]]:
    """Return rows with each fault by its name; ``free`` are the bounds of a line spread that is a parameter."""
    flux, inverse, redshift = plain
    # Beyond the prior, where the line spread is a parameter.
    wide = 350.0 if free is None else 1.5 * free[1]
    observed = grid.wavelength * (1 + redshift[:, None])
    ramp = np.clip((observed - 6000) / 3900, 0, 1)

    def times(factor: NDArray[np.float64]) -> Rows:
        return flux * factor, inverse / factor, redshift

    def errors(factor: float) -> Rows:
        return flux, inverse * factor, redshift

    def blue_gap() -> Rows:
        first = np.argmax(inverse > 0, axis=1)
        inside = np.arange(len(grid)) < (first + 0.15 * len(grid))[:, None]
        return np.where(inside, 0.0, flux), np.where(inside, 0.0, inverse), redshift

    return {
        "flux x 0.9 above 6000 A": lambda: times(np.where(observed > 6000, 0.9, 1.0)),
        "slope of 10 % from 6000 to 9900 A": lambda: times(1 - 0.1 * ramp),
        "redshift off by 300 km/s": lambda: observe(300.0),
        "redshift off by 500 km/s": lambda: observe(500.0),
        "redshift off by 3000 km/s": lambda: observe(3000.0),
        "errors said to be half of what they are": lambda: errors(2.0),
        "errors said to be twice what they are": lambda: errors(0.5),
        "15 % masked at the blue end": blue_gap,
        f"line spread of {wide:g} km/s": lambda: observe(sigma_kms=wide),
        "gas of another ionisation": lambda: observe(gas_logu=-3.5),
    }


def _bias(
    posterior: FrozenPosterior, checker: Checker, rows: Rows, theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Largest pull of a parameter (row,), and which rows are flagged."""
    # The simulations have their error floor already.
    settings = MapConfig(error_floor=0.0, min_good_fraction=0.05, predictive_draws=32)
    prepared = observed_rows(*rows, np.zeros(len(theta), dtype=np.int64), settings)
    found = infer_rows(posterior, prepared, settings, checker=checker)
    low, middle, high = np.moveaxis(found.percentiles[..., 1:4], -1, 0)
    pull = np.abs(middle - theta) / np.maximum(0.5 * (high - low), 1e-6)
    # It is what the fault with the line spread changes.
    pull = pull[:, [name != "sigma_smooth" for name in posterior.prior.names]]
    bits = int(QualityFlag.POOR_FIT | QualityFlag.OUTSIDE_SIMULATIONS)
    return np.nan_to_num(pull, nan=0.0).max(axis=1), (found.quality & bits) != 0


if __name__ == "__main__":
    main()
