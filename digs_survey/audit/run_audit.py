"""The audit stage: calibration, MCMC on a sample of the catalog, predictive checks, the survey as a whole, cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.audit.agreement_model import Compared, fit_agreement
from digs_survey.audit.agreement_predictors import read_predictors
from digs_survey.audit.audit_store import write_audit
from digs_survey.audit.audited_rows import chain_summary, distance_summary, sample_arrays, stack_fits
from digs_survey.audit.calibration.calibrate import calibrate_model, calibrate_posterior
from digs_survey.audit.calibration.calibration import Calibration
from digs_survey.audit.calibration.recalibration import (
    central_coverage,
    coverage_told,
    shares_below,
    survey_conditions,
)
from digs_survey.audit.cost import cost_summary
from digs_survey.audit.domain.domain_check import check_survey
from digs_survey.audit.mcmc.agreement import compare, median_of
from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, GalaxyJob, galaxy_jobs
from digs_survey.audit.residuals import chi_square, residual_percent
from digs_survey.audit.sample import Sample, read_sample
from digs_survey.audit.sensitivity.fault_table import measure_sensitivity, worst_faults
from digs_survey.audit.simulated_agreement import Weighed, compare_simulations
from digs_survey.audit.weighing import importance_summary, smoothed_log_weights, weigh_calibration, weigh_rows
from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.cluster.cores import usable_cores
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import SurveyConfig
from digs_survey.identity import RunIdentity
from digs_survey.sps.param_file import ParamFile
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import recorded_recipe
from digs_survey.store.storage import write_json

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["run_audit"]

_LOG = logging.getLogger(__name__)


def run_audit(
    run_dir: Path,
    identity: RunIdentity,
    config: SurveyConfig,
    catalog_path: Path,
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    ray_address: str | None = None,
    param_file: ParamFile | None = None,
    advance: Callable[[int], None] = lambda galaxies: None,
) -> dict[str, Any]:
    """Audit the posterior of a run; write ``audit.zarr`` and ``audit.json``, and go on after a kill.

    Parameters
    ----------
    run_dir : Path
        Holds ``posterior.zarr`` and ``calibration.zarr`` (simulations of their own stream).
        Finished MCMC fits are kept in ``audit-jobs/``.
    identity : RunIdentity
        Of the posterior and catalog that were mapped.
    config : SurveyConfig
        Its audit, map and importance sections are used. Its model, prior and noise must be the posterior's.
    catalog_path : Path
        Columns ``true_<parameter>``, where the catalog has them, are taken as the truth.
    stages : sequence of mapping
        What earlier stages took: ``stage``, ``wall_s``, ``core_s``, ``rows``.
    ray_address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    param_file : ParamFile, optional
        The file that the model is of, if it is of one.
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
        If the configuration sets another model, prior or noise than the posterior's.
    RunDirectoryError
        If what an earlier stage writes is missing or belongs to another catalog.
    StageError
        If no MCMC fit succeeded, or simulations could not be calibrated on.
    """
    began = time.process_time()
    audit = _Audit.of(run_dir, identity, config, catalog_path, param_file)
    sampled = _sample(audit)
    with ray_session(ray_address):
        calibration = _calibrate(audit, ray_address)
        workers_s, weighed = calibration.core_s, {}
        if audit.weighs:
            weighed["simulations"], used_s = weigh_calibration(
                audit.posterior, audit.calibration_path, audit.config, workers=None, address=ray_address
            )
            workers_s += used_s
        simulated = None
        if audit.config.audit.agreement_simulations:
            simulated, used_s = compare_simulations(
                audit.posterior,
                audit.calibration_path,
                audit.posterior_path,
                audit.config,
                workers=None,
                address=ray_address,
            )
            workers_s += used_s
        outcomes = fit_galaxies(
            audit.setup, sampled.jobs, audit.jobs_folder, address=ray_address, advance=advance, budget_s=audit.budget_s
        )
    sampled, fits = _begun(sampled, outcomes)
    if audit.weighs:
        weighed["galaxies"] = weigh_rows(audit.posterior, sampled.prepared, sampled.npe, audit.config)
    domain = None
    if audit.config.audit.checked_galaxies:
        domain = check_survey(audit.posterior, identity, audit.catalog, run_dir, audit.config)
    sensitivity = _sensitivity(audit)
    recalibrated = _recalibrated(audit, calibration)
    own_s = time.process_time() - began
    galaxies = _galaxies(audit, sampled, fits)
    summary = {
        "format": formats.AUDIT,
        "posterior": identity.posterior_hash,
        "parameters": list(identity.prior.names),
        "galaxies": len(fits),
        "calibration": calibration.summary(identity.prior.names),
        **_compared(audit, galaxies, fits),
        **_cost(audit, sampled, fits, stages, own_s + workers_s),
        **recalibrated,
        "row_agreement": _row_agreement(audit, sampled, galaxies, simulated),
    }
    if weighed:
        draws = audit.config.importance.draws
        summary["importance"] = {name: importance_summary(found, draws) for name, found in weighed.items()}
        galaxies |= {name: getattr(weighed["galaxies"], name) for name in ("ess", "pareto_k", "log_evidence")}
        galaxies["log_weight"] = smoothed_log_weights(audit.posterior, sampled.prepared, sampled.npe)
    if domain is not None:
        summary["domain"] = domain.summary()
    if sensitivity:
        summary["sensitivity"] = sensitivity
    survey = None if domain is None else domain.arrays()
    quantiles = audit.config.map.quantiles
    write_audit(run_dir / "audit.zarr", identity.prior, identity.grid, quantiles, calibration, galaxies, survey)
    write_json(run_dir / "audit.json", summary)
    return summary


@dataclass(frozen=True)
class _Audit:
    """What all parts of an audit work with."""

    run_dir: Path
    identity: RunIdentity
    config: SurveyConfig
    catalog: Catalog
    posterior: FrozenPosterior
    param_file: ParamFile | None

    @classmethod
    def of(
        cls,
        run_dir: Path,
        identity: RunIdentity,
        config: SurveyConfig,
        catalog_path: Path,
        param_file: ParamFile | None,
    ) -> _Audit:
        from digs_survey.estimator.posterior import FrozenPosterior

        catalog, posterior = Catalog.open(catalog_path, identity.filters), FrozenPosterior.of(identity)
        posterior.check_grid(catalog.grid)
        return cls(run_dir, identity, identity.adopt(config), catalog, posterior, param_file)

    @property
    def posterior_path(self) -> Path:
        return self.run_dir / "posterior.zarr"

    @property
    def calibration_path(self) -> Path:
        return self.run_dir / "calibration.zarr"

    @property
    def jobs_folder(self) -> Path:
        return self.run_dir / "audit-jobs"

    @property
    def weighs(self) -> bool:
        return self.config.importance.rows != "none"

    @property
    def setup(self) -> FitSetup:
        return FitSetup(self.identity, self.config.audit.mcmc, self.param_file)

    @property
    def budget_s(self) -> float | None:
        hours = self.config.audit.core_hours
        return None if hours is None else 3600 * hours


@dataclass(frozen=True)
class _Sampled:
    """The sampled rows: draws of their neural posteriors, their errors, and their jobs for emcee."""

    sample: Sample
    npe: NDArray[np.float64]
    errors: NDArray[np.float64] | None
    jobs: list[GalaxyJob]

    @property
    def prepared(self) -> PreparedRows:
        return self.sample.prepared


def _sample(audit: _Audit) -> _Sampled:
    sample = read_sample(audit.catalog, audit.posterior_path, audit.identity, audit.config)
    seen = sample.prepared
    npe = audit.posterior.sample(seen.flux, audit.config.map.draws)
    errors = audit.identity.noise.errors_of(seen.flux, seen.ivar, seen.good)
    rows, predictive = sample.selection.rows.tolist(), audit.config.audit.predictive_draws
    return _Sampled(sample, npe, errors, galaxy_jobs(rows, seen, errors, npe, predictive))


def _sensitivity(audit: _Audit) -> list[dict[str, Any]]:
    """Measure what faults would do to this posterior, say which would cost most unseen, and return what is known."""
    rows = audit.config.audit.sensitivity_rows
    if not rows:
        return []
    measured = measure_sensitivity(audit.posterior, audit.config.map, rows, audit.identity.seed)
    found = [one.to_dict() for one in measured]
    _LOG.info("audit: %s", worst_faults(found))
    return found


def _begun(sampled: _Sampled, outcomes: Sequence[GalaxyFit | None]) -> tuple[_Sampled, list[GalaxyFit]]:
    """Leave out the rows that the budget had no room for."""
    begun = np.array([i for i, fit in enumerate(outcomes) if fit is not None], dtype=int)
    fits = [fit for fit in outcomes if fit is not None]
    if begun.size < len(sampled.jobs):
        _LOG.warning("audit: audit.core_hours had room for %d of %d fits", begun.size, len(sampled.jobs))
        errors = None if sampled.errors is None else sampled.errors[:, begun]
        jobs = [sampled.jobs[i] for i in begun]
        sampled = _Sampled(sampled.sample.take(begun), sampled.npe[begun], errors, jobs)
    return sampled, fits


def _calibrate(audit: _Audit, address: str | None) -> Calibration:
    settings = audit.config.audit
    return calibrate_posterior(
        audit.posterior,
        audit.calibration_path,
        audit.identity.noise,
        audit.identity.seed,
        settings.calibration_draws,
        audit.config.map.quantiles,
        limit=settings.calibration_simulations,
        min_good_fraction=audit.config.map.min_good_fraction,
        workers=None,
        address=address,
    )


def _galaxies(audit: _Audit, sampled: _Sampled, fits: Sequence[GalaxyFit]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the group ``galaxies`` of audit.zarr, without those of importance weights."""
    noise, seen = audit.identity.noise, sampled.prepared
    galaxies = sample_arrays(sampled.sample, sampled.npe) | stack_fits(audit.setup, fits)
    agreement = compare(sampled.npe, galaxies["mcmc"], galaxies["converged"])
    galaxies |= {"shift_sigma": agreement.shift_sigma, "width_ratio": agreement.width_ratio}
    about = np.where(np.isfinite(galaxies["best_npe"]), galaxies["best_npe"], noise.spectrum_of(seen.flux))
    galaxies["sigma"] = noise.sigma(about, sampled.errors)
    galaxies["chi2"] = chi_square(noise.residuals(seen.flux, galaxies["best_npe"], seen.good, sampled.errors))
    # Beside the observation the models are shown with their calibration.
    about = galaxies["best_npe"]
    shown = {name: noise.calibrated(seen.flux, galaxies[name]) for name in ("best_npe", "best_mcmc")}
    if shown["best_npe"] is not about:
        shown["predictive"] = galaxies["predictive"] * (shown["best_npe"] / about)[:, None]
    galaxies |= shown
    if seen.bands:
        galaxies |= _of_bands(galaxies, seen) | {"filter": np.array(audit.identity.filters)}
    return galaxies


def _of_bands(galaxies: Mapping[str, NDArray[Any]], seen: PreparedRows) -> dict[str, NDArray[Any]]:
    """Return the arrays of spectra without the bands behind their elements, and those of the bands."""
    start, stop = seen.elements, seen.good.shape[1]
    bands: dict[str, NDArray[Any]] = {"band_flux": seen.flux[:, start:stop], "band_good": seen.good[:, start:]}
    for name in ("sigma", "best_npe", "best_mcmc", "predictive"):
        bands[name], bands[f"band_{name}"] = galaxies[name][..., :start], galaxies[name][..., start:]
    del bands["band_predictive"]
    return bands


def _compared(
    audit: _Audit, galaxies: Mapping[str, NDArray[Any]], fits: Sequence[GalaxyFit]
) -> dict[str, dict[str, Any]]:
    """Return how the neural posteriors agree with emcee's, what the chains were like, and how spectra fit."""
    names = audit.identity.prior.names
    agreement = compare(galaxies["npe"], galaxies["mcmc"], galaxies["converged"])
    percent = np.abs(residual_percent(galaxies["flux"], galaxies["best_npe"], galaxies["good"]))
    return {
        "agreement": agreement.summary(names, galaxies["weight"])
        | {"failed": sum(bool(fit.error) for fit in fits)}
        | distance_summary(audit.identity.prior, [fit for fit in fits if fit.converged]),
        "mcmc": chain_summary(fits, audit.config.audit.mcmc.engine),
        "predictive": {
            "reduced_chi2_median": median_of(galaxies["chi2"] / galaxies["n_good"]),
            "residual_percent_median": median_of(np.array([median_of(row) for row in percent], dtype=float)),
        },
    }


def _cost(
    audit: _Audit,
    sampled: _Sampled,
    fits: Sequence[GalaxyFit],
    stages: Sequence[Mapping[str, Any]],
    rest_core_s: float,
) -> dict[str, Any]:
    """Return the cost of the neural posterior beside that of chains, and the core-seconds of the audit itself."""
    records = Ledger(audit.jobs_folder / "ledger").records()
    done = [job.row for job, fit in zip(sampled.jobs, fits, strict=True) if not fit.error]
    converged = [fit for fit in fits if fit.converged]
    cost = cost_summary(
        stages,
        [fit.core_s for fit in converged],
        audit.catalog.n_rows,
        max((records[row]["cores"] for row in done), default=usable_cores()),
        engine=audit.config.audit.mcmc.engine,
        other_core_s=[fit.likelihoods * fit.other_core_s for fit in converged],
        elsewhere=audit.posterior.card.get("cost"),
    )
    return {"cost": cost, "core_s": rest_core_s + sum(records[row]["core_s"] for row in done)}


def _recalibrated(audit: _Audit, calibration: Calibration) -> dict[str, Any]:
    """Return the coverage of the table's own levels, on simulations that they were not learned from."""
    levels = (recorded_recipe(audit.posterior_path) or {}).get("levels")
    if not levels:
        return {}
    if audit.identity.noise.config.by_row:
        # They are for the conditions of the catalog's rows, and not for all that the posterior was trained for.
        calibration = calibrate_model(
            audit.posterior,
            audit.config.audit.calibration_simulations,
            audit.identity.seed,
            draws=audit.config.audit.calibration_draws,
            min_good_fraction=audit.config.map.min_good_fraction,
            noise=survey_conditions(audit.posterior, audit.config, audit.catalog),
        )
    names, shares = audit.identity.prior.names, shares_below(calibration)
    after = central_coverage(shares, [levels[name] for name in names])
    return {"recalibration": coverage_told(shares, audit.config.map.quantiles, names, after)}


def _row_agreement(
    audit: _Audit, sampled: _Sampled, galaxies: Mapping[str, NDArray[Any]], simulated: Weighed | None
) -> dict[str, Any]:
    """Learn agreement from the audited rows and from simulations; return the entry of audit.json."""
    worst = np.where(galaxies["converged"], galaxies["wasserstein_sigma"].max(axis=1), np.nan)
    mapped: Any = zarr.open_group(str(audit.posterior_path), mode="r")
    rows, prior = sampled.sample.selection.rows, audit.identity.prior
    audited = Compared(read_predictors(mapped, rows, prior, len(audit.identity.grid)), worst)
    compared = None if simulated is None else simulated.compared
    _, told = fit_agreement(audited, compared, audit.config.audit.tolerance_sigma, audit.identity.seed)
    return told | {"weights": None if simulated is None else simulated.summary()}
