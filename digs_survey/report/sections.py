"""What each section of the page shows: pictures and rows of tables, made from a run's data.

A section is None, or empty, where the run has nothing for it; the page then says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from digs_survey.parameters import PARAMETERS
from digs_survey.quality import DESCRIPTIONS, NO_POSTERIOR
from digs_survey.report.figures import agreement, calibration, galaxy, survey
from digs_survey.report.figures.style import Picture
from digs_survey.report.headline import SHIFT_TOLERANCE, nested
from digs_survey.report.load import RunData, names_of
from digs_survey.spectra import WavelengthGrid

__all__ = [
    "GALAXIES_SHOWN",
    "GalaxyCard",
    "ParameterRow",
    "agreement_section",
    "calibration_section",
    "catalog_section",
    "cost_section",
    "facts",
    "galaxy_cards",
    "galaxy_rows",
    "learning_section",
]

GALAXIES_SHOWN = 4
_FEWEST_DRAWS = 50


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
    parameters: list[ParameterRow]
    spectrum: Picture
    corner: Picture | None


def facts(run: RunData) -> dict[str, Any]:
    """Return what was run: everything that names the catalog, the model and the code."""
    catalog = nested(run.manifest, "inputs", "catalog") or {}
    config, noise = run.config, run.config.noise
    kind = f"{100 * noise.fraction:g} % of the flux"
    if noise.kind == "catalog":
        kind = f"the catalog's inverse variances, with {kind} added in quadrature"
    elif noise.space == "log10":
        kind += ", Gaussian in log10 flux"
    return {
        "name": Path(str(catalog.get("path", "unknown"))).name,
        "catalog": str(catalog.get("path", "unknown")),
        "rows": catalog.get("rows"),
        "fingerprint": str(catalog.get("fingerprint", "unknown")),
        "source": {"bc03": "BC03-MILES through Prospector", "fsps": "FSPS through Prospector"}[config.model.source],
        "smoothing": config.model.smoothing_kms,
        "nebular": config.model.nebular,
        "noise": kind,
        "grid": str(_grid(run)) if run.card else "not known: there is no model/card.json",
        "prior": config.make_prior().parameters,
        "seed": run.manifest.get("seed", config.seed),
        "created": str(run.manifest.get("created", "unknown")),
        "command": str(run.manifest.get("command", "unknown")),
        "commit": str(run.manifest.get("git_commit") or "unknown"),
        "config_hash": str(run.manifest.get("config_hash", "unknown")),
        "digs_survey": str(run.manifest.get("digs_survey", "unknown")),
        "versions": {str(k): str(v) for k, v in (run.manifest.get("versions") or {}).items()},
        "unfinished": {
            str(name): str(stage.get("status"))
            for name, stage in (run.manifest.get("stages") or {}).items()
            # The report is written while its own stage is still running.
            if stage.get("status") != "done" and name != "report"
        },
    }


def _grid(run: RunData) -> WavelengthGrid:
    return WavelengthGrid.from_dict((run.card or {})["grid"])


def _axis(run: RunData) -> str:
    grid = _grid(run) if run.card else None
    return (
        rf"{grid.frame}-frame wavelength in {grid.medium} [$\mathrm{{\AA}}$]"
        if grid
        else r"wavelength [$\mathrm{\AA}$]"
    )


def learning_section(run: RunData) -> Picture | None:
    """Return the learning curve."""
    if run.history is None:
        return None
    return survey.learning_curve(run.history["epoch"], run.history["train_loss"], run.history["validation_loss"])


def calibration_section(run: RunData) -> dict[str, list[Picture]] | None:
    """Return recovery, ranks, rank CDF and coverage, one picture a parameter each."""
    data = run.calibration
    if data is None:
        return None
    draws = int(data.attrs["draws"])
    pvalues = nested(run.audit, "calibration", "ks_pvalue") or {}
    quantiles = data["quantile"].values
    low, median, high = (int(np.argmin(np.abs(quantiles - q))) for q in (0.16, 0.5, 0.84))
    pictures: dict[str, list[Picture]] = {"recovery": [], "ranks": [], "cdf": [], "coverage": []}
    for k, name in enumerate(names_of(data)):
        theta, percentiles = data["theta"].values[:, k], data["percentiles"].values[:, k]
        used = np.isfinite(percentiles).all(axis=1)
        rank = data["rank"].values[used, k]
        pictures["recovery"].append(
            calibration.recovery(name, theta, percentiles[:, low], percentiles[:, median], percentiles[:, high])
        )
        if rank.size:
            pictures["ranks"].append(calibration.rank_histogram(name, rank, draws))
            pictures["cdf"].append(calibration.rank_cdf(name, rank, draws, pvalues.get(name)))
            level, covered = data["level"].values, data["coverage"].values[:, k]
            pictures["coverage"].append(calibration.coverage(name, level, covered, rank.size))
    return pictures


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
            "core_seconds": float(data["core_seconds"].values[g]),
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
        axis=_axis(run),
    )
    fits = f"spectrum of galaxy {galaxy_id} with the best fits of NPE and emcee{state}, and residuals"
    pairs = f"corner plot of galaxy {galaxy_id}: NPE over emcee{state}"
    marks = truth if known else None
    return GalaxyCard(
        galaxy_id=galaxy_id,
        converged=converged,
        steps=int(data["steps"].values[g]),
        tau=_largest(data["autocorrelation_time"].values[g]),
        reduced_chi2=_reduced_chi2(data, g),
        truth_known=known,
        parameters=rows,
        spectrum=galaxy.spectrum(
            shown,
            converged,
            f"spectrum of galaxy {galaxy_id} with the best fits of NPE and emcee{state}, and residuals",
        ),
        corner=None
        if npe is None
        else galaxy.corner(
            names,
            npe,
            mcmc,
            bounds,
            truth if known else None,
            f"corner plot of galaxy {galaxy_id}: NPE over emcee{state}",
        ),
    )


def agreement_section(run: RunData) -> dict[str, Any] | None:
    """Return the shift, width and residual figures over all audited galaxies."""
    data = run.galaxies
    if data is None:
        return None
    names, converged = names_of(data), data["converged"].values.astype(bool)
    middle = int(np.argmin(np.abs(_share(data["band"].values) - 0.5)))
    predicted = data["predictive"].values[:, middle]
    good = np.where(data["good"].values.astype(bool), 100.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = good * (data["flux"].values - predicted) / predicted
        noise = good * data["sigma"].values / predicted
    return {
        "shifts": agreement.shifts(names, data["shift_sigma"].values, converged, SHIFT_TOLERANCE),
        "widths": agreement.widths(names, data["width_ratio"].values, converged),
        "residuals": agreement.residuals(data["wavelength"].values, percent, noise, _axis(run)),
    }


def _share(band: NDArray) -> NDArray:
    return band / 100 if np.max(band) > 1 else band


def cost_section(run: RunData) -> dict[str, Any] | None:
    """Return the cost figure and the rows of the cost table."""
    cost = run.audit.get("cost")
    if not cost:
        return None
    rows = nested(run.manifest, "inputs", "catalog", "rows")
    stages = list(cost.get("stages") or [])
    known = {stage["stage"]: stage["core_s"] for stage in stages}
    parts = [known[name] for name in ("simulate", "train") if known.get(name) is not None]
    fixed = sum(parts) if len(parts) == 2 else None
    # The audit cannot count itself; its own record is in the manifest once it is done.
    for name, record in (run.manifest.get("stages") or {}).items():
        if name not in known and name != "report" and record.get("status") == "done":
            stages.append({"stage": name, **{key: record.get(key) for key in ("wall_s", "core_s", "rows")}})
    npe, mcmc = cost.get("npe_core_s_per_galaxy"), cost.get("mcmc_core_s_per_galaxy")
    picture = survey.cost(fixed, npe, mcmc, cost.get("break_even_galaxies"), rows) if npe else None
    return {"picture": picture, "stages": stages, "numbers": cost, "fixed_s": fixed}


def catalog_section(run: RunData) -> dict[str, Any] | None:
    """Return the quality table, the distributions of medians and the table's first rows."""
    if run.catalog is None:
        return None
    names = [name for name, counts in run.catalog.counts.items() if counts.any()]
    return {
        "summary": run.catalog,
        "bits": [
            {
                "bit": int(flag),
                "name": flag.name,
                "meaning": DESCRIPTIONS[flag],
                "rows": rows,
                "lost": bool(flag & NO_POSTERIOR),
            }
            for flag, rows in run.catalog.bits.items()
        ],
        "medians": [survey.medians(name, run.catalog.edges[name], run.catalog.counts[name]) for name in names],
        "units": {name: PARAMETERS[name].unit for name in names},
    }


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


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
