"""Agreement for every row, and better posteriors where it is low: importance weights, then emcee.

A row's agreement is what the audit has learned (:mod:`~digs_survey.audit.agreement_model`). Rows with the lowest
agreement come first, within ``escalate.core_hours``: their draws are weighed, which does where the weights are good;
the others are fitted by emcee. Rows that the audit has fitted have emcee's posterior at no extra cost.
``results.parquet`` has, in the order of the catalog, the best posterior that each row has got, and whose it is.

Where the survey as a whole is not inside what was simulated, the table has no agreement above
``escalate.agreement_cap``: a posterior that agrees with the exact one of a model that is not the survey's says little.
Which rows get a better posterior is decided before that, since a better posterior of the same model does not help.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.audit.agreement_model import MIN_ROWS, AgreementModel
from digs_survey.audit.agreement_predictors import read_predictors
from digs_survey.audit.domain.domain_check import OUTSIDE_VERDICTS
from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, galaxy_jobs
from digs_survey.audit.sample import prepare_rows
from digs_survey.catalog import Catalog
from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.identity import RunIdentity
from digs_survey.importance.psis import PARETO_K_LIMIT
from digs_survey.infer.map_catalog import derived_quantities
from digs_survey.infer.quantiles import draw_quantiles
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.refine.reweigh import ReweighSetup, WeightedRows, reweigh_rows
from digs_survey.results.columns import TIERS
from digs_survey.results.final import RefinedRow, RefinedRows, final_part
from digs_survey.results.table import part_name
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import is_file
from digs_survey.store.storage import checksum, read_json, rows_of_shard, shard_count, write_bytes, write_json

if TYPE_CHECKING:
    from digs_survey.infer.derived import DerivedQuantities

__all__ = ["above_cap", "escalate", "in_words"]

_LOG = logging.getLogger(__name__)
_BLOCK = 65_536
_MARGIN = 16
_Task = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class _Escalation:
    """What all parts of an escalation work with."""

    run_dir: Path
    identity: RunIdentity
    config: SurveyConfig
    catalog: Catalog
    task: _Task
    address: str | None

    @property
    def folder(self) -> Path:
        """Where weighed blocks, fits and what was decided are kept."""
        return self.run_dir / "escalate-jobs"


def escalate(
    run_dir: Path,
    identity: RunIdentity,
    config: SurveyConfig,
    catalog_path: Path,
    *,
    ledger: Ledger,
    task: _Task,
    ray_address: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Write ``results.parquet`` and ``escalate.json``, and go on after a kill.

    Parameters
    ----------
    run_dir : Path
        With a finished audit. Weighed blocks and fits are kept in ``escalate-jobs/``.
    identity : RunIdentity
        Of the posterior and catalog that were mapped.
    config : SurveyConfig
        Its escalate, map and audit sections are used. Its model, prior and noise must be the posterior's.
    catalog_path : Path
    ledger : Ledger
        Marks the parts of the table that are written.
    task : callable
        Takes a name, a total and a unit, and shows progress.
    ray_address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the rows of each part that is written.

    Returns
    -------
    dict
        What escalate.json holds: ``agreement_threshold`` and ``agreement_cap``; ``rows`` of each tier;
        ``without_agreement`` and ``low_agreement``, the rows with a posterior of which nothing is known, and those that
        keep one whose agreement is below the threshold; ``capped``, the rows whose agreement was lowered to the cap,
        and ``verdict``, that on the survey (None if it was not checked); what was ``weighed`` and ``fitted``, how many
        of these did, and the core-seconds of both.
    """
    job = _Escalation(
        run_dir, identity, identity.adopt(config), Catalog.open(catalog_path, identity.filters), task, ray_address
    )
    result: Any = zarr.open_group(str(run_dir / "posterior.zarr"), mode="r")
    audit = read_json(run_dir / "audit.json")
    learned, verdict = audit.get("row_agreement") or {}, (audit.get("domain") or {}).get("verdict")
    model = None if learned.get("model") is None else AgreementModel.from_dict(learned["model"])
    agreement = _agreement_of_rows(result, job, model)
    with_posterior = (result["quality"][:] & NO_POSTERIOR) == 0
    # NaN compares as false, so that rows without an agreement are left alone.
    low = with_posterior & (agreement < config.escalate.agreement_threshold)
    refined, told = _decided(job, agreement, low)
    low[refined.rows] = False
    cap = config.escalate.agreement_cap
    capped = with_posterior & above_cap(agreement, verdict, cap)
    agreement[capped] = cap
    about: dict[str, Any] = {"agreement_threshold": config.escalate.agreement_threshold, "verdict": verdict}
    about |= {name: learned.get(name) for name in ("tolerance_sigma", "auc", "auc_95", "rows")}
    bits = np.zeros(low.size, dtype=np.int64)
    bits[low] |= int(QualityFlag.LOW_AGREEMENT)
    bits[capped] |= int(QualityFlag.AGREEMENT_CAPPED)
    _write_table(job, ledger, agreement, refined, bits, about, advance)
    tiers = np.bincount(refined.tier, minlength=len(TIERS))
    tiers[0] = int(with_posterior.sum()) - refined.rows.size
    summary = {
        "format": formats.AUDIT,
        "agreement_threshold": config.escalate.agreement_threshold,
        "rows": dict(zip(TIERS, tiers.tolist(), strict=True)),
        "without_agreement": int((with_posterior & np.isnan(agreement)).sum()),
        "low_agreement": int(low.sum()),
        "agreement_cap": cap,
        "capped": int(capped.sum()),
        "verdict": verdict,
        **told,
    }
    write_json(run_dir / "escalate.json", summary)
    return summary


def _decided(
    job: _Escalation, agreement: NDArray[np.float32], low: NDArray[np.bool_]
) -> tuple[RefinedRows, dict[str, Any]]:
    """Return the refined rows, and what was done for them.

    Budgets and failures are not the same twice: what was decided once holds for every part of the table.
    """
    decided, spent = (job.folder / name for name in ("refined.npz", "told.json"))
    if not is_file(decided):
        found, told = _refine(job, agreement, low)
        write_json(spent, told)
        settings = job.config.map
        sizes = job.identity.prior.ndim, len(settings.quantities), len(settings.quantiles)
        RefinedRows.of(found, *sizes).save(decided)
    return RefinedRows.load(decided), read_json(spent)


def _write_table(
    job: _Escalation,
    ledger: Ledger,
    agreement: NDArray[np.float32],
    refined: RefinedRows,
    bits: NDArray[np.int64],
    about: Mapping[str, Any],
    advance: Callable[[int], None],
) -> None:
    """Write the parts of ``results.parquet`` that are not written yet."""
    count, settings = job.catalog.n_rows, job.config.map
    per_shard = settings.shard_size(count)
    advance(ledger.totals()[0])
    for shard in ledger.pending(shard_count(count, per_shard)):
        rows = rows_of_shard(shard, count, per_shard)
        with ledger.attempt(shard):
            part = final_part(
                job.run_dir / "percentiles.parquet" / part_name(shard),
                agreement[rows],
                refined.within(rows.start, rows.stop),
                bits[rows],
                (job.identity.prior.names, settings.quantities),
                settings.quantiles,
                about,
            )
            write_bytes(job.run_dir / "results.parquet" / part_name(shard), part)
            digest = checksum(np.frombuffer(part, dtype=np.uint8))
            ledger.mark(shard, rows=rows.stop - rows.start, checksum=digest, core_s=0.0, first=rows.start)
        advance(rows.stop - rows.start)


def above_cap(agreement: NDArray[np.floating], verdict: str | None, cap: float) -> NDArray[np.bool_]:
    """Tell which rows (row,) have an agreement that the verdict on the survey does not allow; NaN is allowed."""
    return agreement > (cap if verdict in OUTSIDE_VERDICTS else 1.0)


def in_words(summary: Mapping[str, Any]) -> str:
    """Say in a line what :func:`escalate` returned."""
    rows = ", ".join(f"{count:,} by {name}" for name, count in summary["rows"].items())
    if summary["without_agreement"] == sum(summary["rows"].values()):
        return f"posteriors {rows}; agreement is not known: fewer than {MIN_ROWS} spectra have a known exact posterior"
    line = (
        f"posteriors {rows}; {summary['low_agreement']:,} rows keep a neural posterior that agrees with the exact one "
        f"with a chance below {summary['agreement_threshold']:g}"
    )
    if summary["verdict"] in OUTSIDE_VERDICTS:
        line += (
            f"; the survey as a whole is {OUTSIDE_VERDICTS[summary['verdict']]}, so that no row has an agreement above "
            f"{summary['agreement_cap']:g}: {summary['capped']:,} rows were lowered to it (AGREEMENT_CAPPED)"
        )
    return line


def _agreement_of_rows(result: Any, job: _Escalation, model: AgreementModel | None) -> NDArray[np.float32]:
    count, elements = job.catalog.n_rows, len(job.identity.grid)
    agreement = np.full(count, np.nan, dtype=np.float32)
    if model is None:
        return agreement
    for start in range(0, count, _BLOCK):
        block = slice(start, min(start + _BLOCK, count))
        found = read_predictors(result, block, job.identity.prior, elements)
        agreement[block] = model.agreement(np.stack([found[name] for name in model.names], axis=-1))
    return agreement


def _fitted_by_audit(run_dir: Path, config: SurveyConfig, derive: DerivedQuantities | None) -> dict[int, RefinedRow]:
    """Posteriors of the audited rows whose chain converged."""
    galaxies: Any = zarr.open_group(str(run_dir / "audit.zarr"), mode="r")["galaxies"]
    arrays = (galaxies[name][:] for name in ("row", "converged", "mcmc", "redshift"))
    found = zip(*arrays, strict=True)
    return {int(row): _of_chain(draws, z, config, derive) for row, converged, draws, z in found if converged}


def _of_chain(
    draws: NDArray[np.float64], redshift: float, config: SurveyConfig, derive: DerivedQuantities | None
) -> RefinedRow:
    quantiles, derived = config.map.quantiles, np.empty((0, len(config.map.quantiles)))
    if derive is not None:
        # Without noise by row, the model of each row is at one redshift, and not at the row's.
        at = redshift if config.noise.by_row else np.nan
        derived = draw_quantiles(derive(draws, at)[None], quantiles)[0]
    return RefinedRow(2, draw_quantiles(draws[None], quantiles)[0], derived)


def _refine(
    job: _Escalation, agreement: NDArray[np.float32], low: NDArray[np.bool_]
) -> tuple[dict[int, RefinedRow], dict[str, Any]]:
    """Refine the rows that are ``low``, those with the lowest agreement first, and say what was done."""
    settings = job.config.escalate
    derive = derived_quantities(job.identity, job.config.map.quantities)
    refined = _fitted_by_audit(job.run_dir, job.config, derive)
    # Ties go by row.
    ordered = np.flatnonzero(low)[np.argsort(agreement[low], kind="stable")]
    wanted = ordered[~np.isin(ordered, list(refined))]
    told = {"wanted": wanted.size, "weighed": 0, "accepted": 0, "fitted": 0, "converged": 0}
    cost = {"weights": 0.0, "emcee": 0.0}
    budget_s = 3600 * settings.core_hours
    if wanted.size and budget_s > 0:
        for block in _weigh(job, wanted, derive, budget_s):
            good = (block.pareto_k <= PARETO_K_LIMIT) & (block.ess >= settings.min_ess)
            told["weighed"] += block.rows.size
            told["accepted"] += int(good.sum())
            cost["weights"] += block.core_s
            for i in np.flatnonzero(good):
                refined[int(block.rows[i])] = RefinedRow(1, block.percentiles[i], block.derived[i])
        left_s = budget_s - cost["weights"]
        rest = [row for row in wanted.tolist() if row not in refined]
        for row, fit in (_fit(job, rest, left_s) if rest and left_s > 0 else {}).items():
            told["fitted"] += 1
            cost["emcee"] += 0.0 if fit.error else fit.job_core_s
            if fit.converged:
                told["converged"] += 1
                redshift = float(job.catalog.rows(row, row + 1).redshift[0])
                refined[row] = _of_chain(fit.draws, redshift, job.config, derive)
    return refined, told | {"core_s": cost, "budget_core_s": budget_s}


def _weigh(
    job: _Escalation, rows: NDArray[np.int64], derive: DerivedQuantities | None, budget_s: float
) -> list[WeightedRows]:
    setup = ReweighSetup(job.catalog.path, job.identity, job.config, derive)
    with job.task("weigh", rows.size, "rows with a low agreement") as advance:
        return reweigh_rows(setup, rows, job.folder / "weights", budget_s, address=job.address, advance=advance)


def _fit(job: _Escalation, rows: list[int], budget_s: float) -> dict[int, GalaxyFit]:
    """Fit rows with emcee in their order, as many as the budget allows."""
    from digs_survey.estimator.posterior import FrozenPosterior

    if not (rows := rows[: _affordable(job.run_dir, budget_s)]):
        return {}
    posterior, identity, settings = FrozenPosterior.of(job.identity), job.identity, job.config.audit
    seen = prepare_rows(job.catalog, rows, identity, job.config)
    npe = posterior.sample(seen.flux, job.config.map.draws)
    errors = identity.noise.errors_of(seen.flux, seen.ivar, seen.good)
    jobs = galaxy_jobs(rows, seen, errors, npe, settings.predictive_draws)
    setup, folder = FitSetup(identity, settings.mcmc), job.folder / "emcee"
    with job.task("fit", len(jobs), "rows that weights do not do for, with emcee") as advance:
        try:
            fits = fit_galaxies(
                setup, jobs, folder, address=job.address, advance=advance, budget_s=budget_s, in_order=True
            )
        except StageError as error:
            _LOG.warning("escalate: %s; these rows keep their neural posteriors", error)
            return {}
    return {row: fit for row, fit in zip(rows, fits, strict=True) if fit is not None}


def _affordable(run_dir: Path, budget_s: float) -> int:
    """How many fits the budget may have room for, with a margin, by what those of the audit took."""
    galaxies: Any = zarr.open_group(str(run_dir / "audit.zarr"), mode="r")["galaxies"]
    spent = galaxies["job_core_s"][:]
    known = spent[np.isfinite(spent) & (spent > 0)]
    if not known.size:
        return _MARGIN
    if known.mean() > budget_s:
        _LOG.warning(
            "escalate: escalate.core_hours leaves %.3g core-s to emcee, one fit of the audit took %.3g: none is begun",
            budget_s,
            known.mean(),
        )
        return 0
    return _MARGIN + int(2 * budget_s / known.mean())
