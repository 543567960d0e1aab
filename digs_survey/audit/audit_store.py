"""Layout of ``audit.zarr``: groups for the calibration, for the audited galaxies and for the survey as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.audit.calibration.calibration import LEVELS, Calibration
from digs_survey.audit.residuals import BAND
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import ArraySpec, create_dataset, create_group, new_folder

__all__ = ["write_audit"]

_Arrays = dict[str, tuple[tuple[str, ...], NDArray[Any], Mapping[str, Any]]]

_FLUX = {"units": "erg / (s cm2 Angstrom)"}
_THETA = ("galaxy", "parameter")
_SPECTRUM = ("galaxy", "wavelength")
_GALAXIES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "row": (("galaxy",), {"description": "row of the catalog"}),
    "galaxy_id": (("galaxy",), {"description": "identifier in the survey"}),
    "redshift": (("galaxy",), {}),
    "snr": (("galaxy",), {"description": "median signal-to-noise of the good elements"}),
    "weight": (("galaxy",), {"description": "one over the probability with which the row was selected"}),
    "truth": (_THETA, {"description": "the catalog's true_<parameter> columns; NaN if unknown"}),
    "npe": (("galaxy", "draw", "parameter"), {"description": "draws of the neural posterior"}),
    "mcmc": (("galaxy", "mcmc_draw", "parameter"), {"description": "draws of emcee, thinned at random"}),
    "converged": (("galaxy",), {"description": "chain longer than audit.mcmc.autocorrelation_times"}),
    "autocorrelation_time": (_THETA, {"description": "integrated autocorrelation time in steps"}),
    "steps": (("galaxy",), {"description": "steps of the chain after burn-in"}),
    "r_hat": (_THETA, {"description": "rank-normalised split R-hat of independent ensembles; NaN for one"}),
    "acceptance": (("galaxy",), {"description": "share of proposals that were accepted"}),
    "likelihoods": (("galaxy",), {"description": "likelihoods that the chain took, burn-in included"}),
    "log_likelihood_difference": (
        ("galaxy",),
        {"description": "largest difference between engines in checked draws"},
    ),
    "core_s": (("galaxy",), {"units": "s", "description": "processor time of the first ensemble with burn-in"}),
    "job_core_s": (
        ("galaxy",),
        {"units": "s", "description": "processor time of all ensembles and checks"},
    ),
    "shift_sigma": (_THETA, {"description": "(median NPE - median MCMC) / half 16-84 % width of MCMC"}),
    "width_ratio": (_THETA, {"description": "half 16-84 % width of NPE over that of MCMC"}),
    "wasserstein_sigma": (
        _THETA,
        {"description": "Wasserstein distance from NPE to MCMC over half 16-84 % of MCMC"},
    ),
    "sliced_distance": (
        ("galaxy",),
        {"description": "mean Wasserstein distance along directions of whitened MCMC"},
    ),
    "c2st": (("galaxy",), {"description": "accuracy of a classifier between NPE and MCMC; 0.5 if they are the same"}),
    "flux": (_SPECTRUM, {**_FLUX, "description": "observed, at the distance of model.zred"}),
    "sigma": (_SPECTRUM, {**_FLUX, "description": "1-sigma noise about the best NPE spectrum"}),
    "good": (_SPECTRUM, {"description": "elements that count"}),
    "best_npe": (_SPECTRUM, {**_FLUX, "description": "spectrum of the likeliest of the predictive draws"}),
    "best_mcmc": (_SPECTRUM, {**_FLUX, "description": "spectrum of the likeliest draw of the chain"}),
    "predictive": (
        ("galaxy", "band", "wavelength"),
        {**_FLUX, "description": "percentiles of noiseless spectra of posterior draws"},
    ),
    "chi2": (("galaxy",), {"description": "of best_npe, over the good elements"}),
    "n_good": (("galaxy",), {"description": "number of good elements"}),
}
_MAGGIES = {"units": "mgy"}
_BAND = ("galaxy", "filter")
_PHOTOMETRY: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "band_flux": (_BAND, {**_MAGGIES, "description": "observed, at the distance of model.zred"}),
    "band_sigma": (_BAND, {**_MAGGIES, "description": "1-sigma noise, with the floor"}),
    "band_good": (_BAND, {"description": "bands that count"}),
    "band_best_npe": (_BAND, {**_MAGGIES, "description": "photometry of the likeliest of the predictive draws"}),
    "band_best_mcmc": (_BAND, {**_MAGGIES, "description": "photometry of the likeliest draw of the chain"}),
}
"""Where rows have photometry."""
_WEIGHED: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "log_weight": (("galaxy", "draw"), {"description": "ln of the smoothed importance weight of each draw of npe"}),
    "ess": (("galaxy",), {"description": "effective sample size of the importance weights of the draws"}),
    "pareto_k": (("galaxy",), {"description": "shape of the weights' tail; above 0.7 they are not to be trusted"}),
    "log_evidence": (("galaxy",), {"description": "natural log of the density of the good elements' flux"}),
}
"""Where draws were weighed."""
_STACK = ("population", "wavelength")
_SURVEY: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "row": (("galaxy",), {"description": "row of the catalog"}),
    "feature_distance": (("galaxy",), {"description": "rms of the whitened features; some 1 for a simulation"}),
    "chi2": (("galaxy",), {"description": "posterior predictive chi-square over the number of good elements"}),
    "pvalue": (("galaxy",), {"description": "posterior predictive p-value"}),
    "simulated_feature_distance": (("simulation",), {}),
    "simulated_chi2": (("simulation",), {}),
    "simulated_pvalue": (("simulation",), {}),
    "population": (("population",), {"description": "the catalog's rows, simulations, and replications of the rows"}),
    "count": (_STACK, {"description": "spectra in which the element is good"}),
    "residual_sigma": (_STACK, {"description": "mean of (flux - predicted) / sigma, each cut at 3"}),
    "residual_sigma_error": (_STACK, {"description": "standard error of residual_sigma"}),
    "residual_percent": (_STACK, {"units": "percent", "description": "median of (flux - predicted) / predicted"}),
    "residual_percent_error": (_STACK, {"units": "percent", "description": "standard error of residual_percent"}),
    "residual_errors": (
        ("reference", "wavelength"),
        {"description": "residual_sigma of the survey less that of each other population, in standard errors"},
    ),
}
"""Where the survey as a whole was checked."""


def write_audit(
    path: Path,
    prior: Prior,
    grid: WavelengthGrid,
    quantiles: Sequence[float],
    calibration: Calibration,
    galaxies: Mapping[str, NDArray[Any]],
    survey: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write ``audit.zarr``, complete or not at all; ``xarray.open_zarr(path, group=...)`` reads its groups.

    Parameters
    ----------
    path : Path
        What stood there before is replaced.
    prior : Prior
    grid : WavelengthGrid
    quantiles : sequence of float
        Of the calibration's percentiles.
    calibration : Calibration
        The group ``calibration``.
    galaxies : mapping of str to ndarray
        The group ``galaxies``: galaxy_id, flux, npe and so on, galaxies first; ess, pareto_k, log_weight and
        log_evidence where draws were weighed. Its ``walkers`` become a group ``chains/ROW`` for each galaxy with a
        chain, which ArviZ takes as it is: a variable for each parameter with the dimensions chain (a walker) and
        draw, below ``posterior``.
    survey : mapping of str to ndarray, optional
        The group ``survey``, as :meth:`~digs_survey.audit.domain.domain_check.DomainCheck.arrays` gives it.
    """
    names = np.array(prior.names)
    simulated: _Arrays = {
        "theta": (("simulation", "parameter"), calibration.theta, {"description": "truth"}),
        "percentiles": (("simulation", "parameter", "quantile"), calibration.percentiles, {}),
        "rank": (
            ("simulation", "parameter"),
            calibration.ranks,
            {"description": "number of draws below the truth, 0 to draws"},
        ),
        "credibility": (("simulation",), calibration.credibility, {"description": "of TARP's balls; uniform if right"}),
        "coverage": (
            ("level", "parameter"),
            calibration.coverage() if len(calibration.theta) else np.full((len(LEVELS), prior.ndim), np.nan),
            {"description": "share of truths inside the central interval of each level"},
        ),
        "level": (("level",), np.array(LEVELS), {}),
        "quantile": (("quantile",), np.array(quantiles), {}),
        "parameter": (("parameter",), names, {}),
    }
    wavelength: tuple[tuple[str, ...], NDArray[Any], Mapping[str, Any]] = (
        ("wavelength",),
        grid.wavelength,
        {"units": "Angstrom", "frame": grid.frame, "medium": grid.medium},
    )
    about = _GALAXIES | (_WEIGHED if "ess" in galaxies else {})
    filters: _Arrays = {}
    if "band_flux" in galaxies:
        about, filters = about | _PHOTOMETRY, {"filter": (("filter",), np.asarray(galaxies["filter"]), {})}
    audited: _Arrays = {
        **{name: (dims, np.asarray(galaxies[name]), attrs) for name, (dims, attrs) in about.items()},
        "band": (("band",), np.array(BAND), {}),
        "parameter": (("parameter",), names, {}),
        "wavelength": wavelength,
        **filters,
    }
    units = {"parameter_units": {p.name: p.unit for p in prior.parameters}}
    with new_folder(path) as building:
        extra = {"draws": calibration.draws, "excluded_nan": calibration.excluded}
        _write_group(building / "calibration", simulated, units | extra)
        _write_group(building / "galaxies", audited, units)
        if survey is not None:
            checked: _Arrays = {name: (dims, survey[name], attrs) for name, (dims, attrs) in _SURVEY.items()}
            _write_group(building / "survey", checked | {"wavelength": wavelength}, {})
        for row, walkers in zip(galaxies["row"].tolist(), galaxies["walkers"], strict=True):
            if np.isfinite(walkers).all():
                _write_chains(building / "chains" / str(row), prior, walkers)
        create_group(building / "chains")
        create_group(building, {"format": formats.AUDIT})


def _write_group(path: Path, arrays: _Arrays, attrs: dict[str, Any]) -> None:
    specs = {
        name: ArraySpec(dims, values.shape, _dtype(values), attrs=about)
        for name, (dims, values, about) in arrays.items()
    }
    create_dataset(path, specs, {name: values for name, (_, values, _) in arrays.items()}, attrs)


def _write_chains(path: Path, prior: Prior, walkers: NDArray[Any]) -> None:
    arrays: _Arrays = {
        p.name: (("chain", "draw"), walkers[..., k], {"units": p.unit}) for k, p in enumerate(prior.parameters)
    }
    chains, draws, _ = walkers.shape
    arrays |= {"chain": (("chain",), np.arange(chains), {}), "draw": (("draw",), np.arange(draws), {})}
    _write_group(path / "posterior", arrays, {"inference_library": "emcee"})
    create_group(path)


def _dtype(values: NDArray[Any]) -> str:
    return "str" if values.dtype.kind in "UT" else str(values.dtype)
