"""The audit stage: calibration, MCMC on a sample of the catalog, predictive checks, the survey as a whole, cost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.audit.audit_store import write_audit
from digs_survey.audit.calibration.calibrate import calibrate_posterior
from digs_survey.audit.calibration.recalibration import central_coverage, coverage_told, shares_below
from digs_survey.audit.cost import cost_summary
from digs_survey.audit.domain.domain_check import check_survey
from digs_survey.audit.mcmc.agreement import compare, median_of
from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, galaxy_jobs
from digs_survey.audit.residuals import chi_square, residual_percent
from digs_survey.audit.sample import Sample, read_sample
from digs_survey.audit.trust import fit_trust, read_predictors
from digs_survey.audit.weighing import importance_summary, smoothed_log_weights, weigh_calibration, weigh_rows
from digs_survey.catalog import Catalog
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import SurveyConfig
from digs_survey.parameters import Prior
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import recorded_recipe
from digs_survey.store.storage import write_json

__all__ = ["run_audit"]

_LOG = logging.getLogger(__name__)


def run_audit(
    run_dir: Path,
    config: SurveyConfig,
    catalog_path: Path,
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    ray_address: str | None = None,
    advance: Callable[[int], None] = lambda galaxies: None,
) -> dict[str, Any]:
    """Audit the posterior of a run; write ``audit.zarr`` and ``audit.json``, and go on after a kill.

    Parameters
    ----------
    run_dir : Path
        Holds ``model/``, ``posterior.zarr`` and ``calibration.zarr`` (simulations of their own stream).
        Finished MCMC fits are kept in ``audit-jobs/``.
    config : SurveyConfig
    catalog_path : Path
        Columns ``true_<parameter>``, where the catalog has them, are taken as the truth.
    stages : sequence of mapping
        What earlier stages took: ``stage``, ``wall_s``, ``core_s``, ``rows``.
    ray_address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the number of galaxies whose MCMC fit ended.

    Returns
    -------
    dict
        What audit.json holds.

    Raises
    ------
    CatalogError
        If the posterior was not trained for the catalog's grid.
    ConfigError
        If draws are to be weighed with another model than the posterior's.
    RunDirectoryError
        If what an earlier stage writes is missing or belongs to another catalog.
    StageError
        If no MCMC fit succeeded, or simulations could not be calibrated on.
    """
    from digs_survey.estimator.posterior import FrozenPosterior

    began = time.process_time()
    catalog = Catalog.open(catalog_path)
    posterior = FrozenPosterior.load(run_dir / "model")
    posterior.check_grid(catalog.grid)
    prior, noise, settings = posterior.prior, posterior.noise, config.audit
    posterior_path = run_dir / "posterior.zarr"
    sample = read_sample(catalog, posterior_path, prior, config, keeps_negative=noise.keeps_negative)
    seen = sample.prepared
    npe = posterior.sample(seen.flux, config.map.draws)
    errors = noise.errors_of(seen.flux, seen.ivar, seen.good)
    jobs = galaxy_jobs(sample.selection.rows.tolist(), seen, errors, npe, settings.predictive_draws)
    setup = FitSetup(config.model, prior, catalog.grid, noise, settings.mcmc, config.seed)
    folder = run_dir / "audit-jobs"
    budget_s = None if settings.core_hours is None else 3600 * settings.core_hours
    with ray_session(ray_address):
        calibration = calibrate_posterior(
            posterior,
            run_dir / "calibration.zarr",
            noise,
            config.seed,
            settings.calibration_draws,
            config.map.quantiles,
            limit=settings.calibration_simulations,
            min_good_fraction=config.map.min_good_fraction,
            workers=None,
            address=ray_address,
        )
        workers_s = calibration.core_s
        weighed = {}
        if config.importance.rows != "none":
            weighed["simulations"], used_s = weigh_calibration(
                posterior, run_dir / "calibration.zarr", config, workers=None, address=ray_address
            )
            workers_s += used_s
        outcomes = fit_galaxies(setup, jobs, folder, address=ray_address, advance=advance, budget_s=budget_s)
    begun = np.array([i for i, fit in enumerate(outcomes) if fit is not None], dtype=int)
    fits = [fit for fit in outcomes if fit is not None]
    if begun.size < len(jobs):
        _LOG.warning("audit: audit.core_hours had room for %d of %d fits", begun.size, len(jobs))
        sample, npe, jobs = sample.take(begun), npe[begun], [jobs[i] for i in begun]
        seen, errors = sample.prepared, None if errors is None else errors[:, begun]
    if weighed:
        weighed["galaxies"] = weigh_rows(posterior, seen, npe, config)
    domain = check_survey(posterior, catalog, run_dir, config) if settings.checked_galaxies else None
    own_s = time.process_time() - began
    galaxies = _about(sample, npe) | _stack(setup, fits)
    agreement = compare(npe, galaxies["mcmc"], galaxies["converged"])
    galaxies |= {"shift_sigma": agreement.shift_sigma, "width_ratio": agreement.width_ratio}
    about = np.where(np.isfinite(galaxies["best_npe"]), galaxies["best_npe"], seen.flux)
    galaxies["sigma"] = noise.sigma(about, errors)
    galaxies["chi2"] = chi_square(noise.residuals(seen.flux, galaxies["best_npe"], seen.good, errors))
    percent = np.abs(residual_percent(seen.flux, galaxies["best_npe"], seen.good))
    converged = [fit for fit in fits if fit.converged]
    done = [job.row for job, fit in zip(jobs, fits, strict=True) if not fit.error]
    records = Ledger(folder / "ledger").records()
    summary = {
        "parameters": list(prior.names),
        "galaxies": len(fits),
        "calibration": calibration.summary(prior.names),
        "agreement": agreement.summary(prior.names, galaxies["weight"])
        | {"failed": len(fits) - len(done)}
        | _distances(prior, converged),
        "mcmc": _chains(fits, settings.mcmc.engine),
        "predictive": {
            "reduced_chi2_median": median_of(galaxies["chi2"] / galaxies["n_good"]),
            "residual_percent_median": median_of(np.array([median_of(row) for row in percent], dtype=float)),
        },
        "cost": cost_summary(
            stages,
            [fit.core_s for fit in converged],
            catalog.n_rows,
            max((records[row]["cores"] for row in done), default=os.cpu_count() or 1),
            engine=settings.mcmc.engine,
            other_core_s=[fit.likelihoods * fit.other_core_s for fit in converged],
            elsewhere=posterior.card.get("cost"),
        ),
        "core_s": own_s + workers_s + sum(records[row]["core_s"] for row in done),
    }
    if levels := (recorded_recipe(posterior_path) or {}).get("levels"):
        # The table's own levels, on simulations that they were not learned from.
        shares = shares_below(calibration)
        after = central_coverage(shares, [levels[name] for name in prior.names])
        summary["recalibration"] = coverage_told(shares, config.map.quantiles, prior.names, after)
    worst = np.where(galaxies["converged"], galaxies["wasserstein_sigma"].max(axis=1), np.nan)
    mapped: Any = zarr.open_group(str(posterior_path), mode="r")
    predictors = read_predictors(mapped, sample.selection.rows, prior, len(catalog.grid))
    _, summary["trust"] = fit_trust(predictors, worst, settings.tolerance_sigma, config.seed)
    if weighed:
        draws = config.importance.draws
        summary["importance"] = {name: importance_summary(found, draws) for name, found in weighed.items()}
        galaxies |= {name: getattr(weighed["galaxies"], name) for name in ("ess", "pareto_k", "log_evidence")}
        galaxies["log_weight"] = smoothed_log_weights(posterior, seen, npe)
    if domain is not None:
        summary["domain"] = domain.summary()
    survey = None if domain is None else domain.arrays()
    write_audit(run_dir / "audit.zarr", prior, catalog.grid, config.map.quantiles, calibration, galaxies, survey)
    write_json(run_dir / "audit.json", summary)
    return summary


def _about(sample: Sample, npe: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    seen = sample.prepared
    return {
        "row": sample.selection.rows,
        "weight": sample.selection.weight,
        "galaxy_id": sample.galaxy_id,
        "redshift": sample.redshift,
        "snr": sample.snr,
        "truth": sample.truth,
        "npe": npe,
        "flux": seen.flux,
        "good": seen.good,
        "n_good": seen.n_good,
    }


def _stack(setup: FitSetup, fits: Sequence[GalaxyFit]) -> dict[str, NDArray[Any]]:
    """Arrays of all fits, galaxies first; right in shape also where there are none."""
    pattern = GalaxyFit.failed(setup, "")
    renamed = {"draws": "mcmc", "band": "predictive"}
    stacked = {}
    for name, value in vars(pattern).items():
        if name == "error":
            continue
        values = [getattr(fit, name) for fit in fits]
        dtype = np.asarray(value).dtype
        stacked[renamed.get(name, name)] = np.array(values, dtype=dtype).reshape(len(fits), *np.shape(value))
    return stacked


def _distances(prior: Prior, fits: Sequence[GalaxyFit]) -> dict[str, Any]:
    """Medians over the converged chains; None where there are none."""
    each = np.array([fit.wasserstein_sigma for fit in fits]).reshape(-1, prior.ndim)
    return {
        "median_wasserstein_sigma": dict(zip(prior.names, map(median_of, each.T), strict=True)),
        "median_sliced_distance": median_of(np.array([fit.sliced_distance for fit in fits], dtype=float)),
        "median_c2st": median_of(np.array([fit.c2st for fit in fits], dtype=float)),
        "max_r_hat": max((float(fit.r_hat.max()) for fit in fits if np.isfinite(fit.r_hat).all()), default=None),
    }


def _chains(fits: Sequence[GalaxyFit], engine: str) -> dict[str, Any]:
    """Whose spectra the chains used, what a likelihood cost, and how far it was from Prospector's."""
    done = [fit for fit in fits if not fit.error]
    total = sum(fit.likelihoods for fit in done)
    other = median_of(np.array([fit.other_core_s for fit in done]))
    own = sum(fit.core_s for fit in done) / total if total else None
    return {
        "engine": engine,
        "likelihoods": total,
        "core_s_per_likelihood": own,
        "core_s_per_prospector_likelihood": own if engine == "prospector" else other,
        "core_s_per_batched_likelihood": own if engine == "batched" else other,
        "max_log_likelihood_difference": max((fit.log_likelihood_difference for fit in done), default=None),
    }
