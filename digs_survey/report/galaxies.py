"""The audited galaxies one by one: a row of the table for each, and the first few in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from digs_survey.infer.derived import star_formation_rates
from digs_survey.report.band_points import band_points
from digs_survey.report.figures import galaxy_plots as galaxy
from digs_survey.report.figures.style import Picture
from digs_survey.report.load import RunData, names_of
from digs_survey.report.sections import wavelength_axis

__all__ = ["GALAXIES_SHOWN", "GalaxyCard", "ParameterRow", "galaxy_cards", "galaxy_rows"]

GALAXIES_SHOWN = 4
_FEWEST_DRAWS = 50
_LOOKBACK_GYR, _TIMES = (0.01, 13.5), 300
"""Span and number of the lookback times of star formation histories."""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of one audited galaxy: (low, median, high) of NPE and emcee, None where there are no draws."""

    name: str
    truth: float
    npe: tuple[float, float, float] | None
    mcmc: tuple[float, float, float] | None
    shift: float
    ratio: float


@dataclass(frozen=True)
class GalaxyCard:
    """One audited galaxy in full."""

    galaxy_id: str
    converged: bool
    steps: int
    tau: float
    reduced_chi2: float
    truth_known: bool
    weighted: bool
    parameters: list[ParameterRow]
    spectrum: Picture
    corner: Picture | None
    history: Picture | None

    @property
    def model_known(self) -> bool:
        """Whether the truth of every parameter is known, and so that of the history."""
        return all(np.isfinite(row.truth) for row in self.parameters)


def galaxy_rows(run: RunData) -> list[dict[str, Any]]:
    """Return one row for each audited galaxy."""
    data = run.galaxies
    if data is None:
        return []
    tau = data["autocorrelation_time"].values
    return [
        {
            "row": int(data["row"].values[g]),
            "galaxy_id": _text(data["galaxy_id"].values[g]),
            "redshift": float(data["redshift"].values[g]),
            "snr": float(data["snr"].values[g]),
            "converged": bool(data["converged"].values[g]),
            "steps": int(data["steps"].values[g]),
            "tau": _largest(tau[g]),
            "acceptance": float(data["acceptance"].values[g]),
            "core_s": float(data["core_s"].values[g]),
            "reduced_chi2": _reduced_chi2(data, g),
        }
        for g in range(data.sizes["galaxy"])
    ]


def galaxy_cards(run: RunData) -> list[GalaxyCard]:
    """Return the first audited galaxies in full, at most :data:`GALAXIES_SHOWN`."""
    data = run.galaxies
    return [] if data is None else [_card(run, data, g) for g in range(min(GALAXIES_SHOWN, data.sizes["galaxy"]))]


def _card(run: RunData, data: xr.Dataset, g: int) -> GalaxyCard:
    names, prior = names_of(data), run.config.make_prior()
    bounds = np.stack([prior.low, prior.high], axis=1)
    truth, converged = data["truth"].values[g], bool(data["converged"].values[g])
    known = bool(np.isfinite(truth).any())
    npe, mcmc = _draws(data["npe"].values[g]), _draws(data["mcmc"].values[g])
    galaxy_id = _text(data["galaxy_id"].values[g])
    state = "" if converged else ", whose chain did not converge"
    rows = [
        ParameterRow(
            name,
            float(truth[k]),
            _interval(npe, k),
            _interval(mcmc, k),
            float(data["shift_sigma"].values[g, k]),
            float(data["width_ratio"].values[g, k]),
        )
        for k, name in enumerate(names)
    ]
    shown = galaxy.Spectrum(
        wavelength=data["wavelength"].values,
        flux=data["flux"].values[g],
        sigma=data["sigma"].values[g],
        good=data["good"].values[g].astype(bool),
        best_npe=data["best_npe"].values[g],
        best_mcmc=data["best_mcmc"].values[g],
        axis=wavelength_axis(run),
        bands=band_points(data, g),
    )
    fits = f"spectrum of galaxy {galaxy_id} with the best fits of NPE and emcee{state}, and residuals"
    pairs = f"corner plot of galaxy {galaxy_id}: NPE over emcee{state}"
    weights = _weights(data, g)
    if weights is not None:
        pairs += ", over NPE with importance weights"
    return GalaxyCard(
        galaxy_id=galaxy_id,
        converged=converged,
        steps=int(data["steps"].values[g]),
        tau=_largest(data["autocorrelation_time"].values[g]),
        reduced_chi2=_reduced_chi2(data, g),
        truth_known=known,
        weighted=weights is not None,
        parameters=rows,
        spectrum=galaxy.spectrum(shown, converged, fits),
        corner=None if npe is None else galaxy.corner(names, npe, mcmc, bounds, truth, pairs, weights),
        history=_history(run, data, g, npe, mcmc, f"star formation history of galaxy {galaxy_id}{state}"),
    )


def _history(
    run: RunData, data: xr.Dataset, g: int, npe: NDArray | None, mcmc: NDArray | None, alt: str
) -> Picture | None:
    """Star formation rates of one galaxy over lookback time; None without draws."""
    # Only its file knows the history of a parameter file's model.
    if npe is None or run.config.model.param_file is not None:
        return None
    prior, model = run.config.make_prior(), run.config.model
    # Without row noise all rows are taken for galaxies at model.zred.
    redshift = float(data["redshift"].values[g]) if run.config.noise.by_row else np.nan
    truth, times = data["truth"].values[g], np.geomspace(*_LOOKBACK_GYR, _TIMES)

    def rates(theta: NDArray) -> NDArray:
        return star_formation_rates(prior, model, theta.astype(float), redshift, times)

    known = np.isfinite(truth).all()
    return galaxy.history(
        times,
        rates(npe),
        None if mcmc is None else rates(mcmc),
        rates(truth[None])[0] if known else None,
        bool(data["converged"].values[g]),
        alt,
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _weights(data: xr.Dataset, g: int) -> NDArray | None:
    if "log_weight" not in data or not np.isfinite(data["npe"].values[g]).all():
        return None
    weights = np.exp(data["log_weight"].values[g])
    return weights if np.isfinite(weights).all() else None


def _draws(values: NDArray) -> NDArray | None:
    values = values[np.isfinite(values).all(axis=1)]
    return values if len(values) >= _FEWEST_DRAWS else None


def _interval(draws: NDArray | None, column: int) -> tuple[float, float, float] | None:
    if draws is None:
        return None
    low, median, high = np.quantile(draws[:, column], [0.16, 0.5, 0.84])
    return float(low), float(median), float(high)


def _largest(values: NDArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else float("nan")


def _reduced_chi2(data: xr.Dataset, g: int) -> float:
    return float(data["chi2"].values[g]) / max(1, int(data["n_good"].values[g]))
