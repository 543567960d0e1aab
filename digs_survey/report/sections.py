"""What each section of the page shows: pictures and rows of tables, made from a run's data.

A section is None, or empty, where the run has nothing for it; the page then says what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.config import NoiseConfig
from digs_survey.parameters import PARAMETERS
from digs_survey.quality import DESCRIPTIONS, NO_POSTERIOR, QualityFlag
from digs_survey.report.figures import agreement_plots as agreement
from digs_survey.report.figures import calibration_plots as calibration
from digs_survey.report.figures import survey_plots as survey
from digs_survey.report.figures.style import Picture, label
from digs_survey.report.headline import SHIFT_TOLERANCE, nested
from digs_survey.report.load import RunData, names_of
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.linespread import describe

__all__ = [
    "agreement_section",
    "calibration_section",
    "catalog_section",
    "cost_section",
    "facts",
    "importance_section",
    "learning_section",
    "wavelength_axis",
]

_HISTORIES = {
    "delayed_tau": "delayed-tau",
    "tau": "exponential (tau)",
    "constant": "constant",
    "continuity": "continuity ({} bins of age)",
    "dirichlet": "Dirichlet ({} bins of age)",
}


def facts(run: RunData) -> dict[str, Any]:
    """Return what was run: everything that names the catalog, the model and the code."""
    catalog = nested(run.manifest, "inputs", "catalog") or {}
    config = run.config
    return {
        "name": Path(str(catalog.get("path", "unknown"))).name,
        "catalog": str(catalog.get("path", "unknown")),
        "rows": catalog.get("rows"),
        "fingerprint": str(catalog.get("fingerprint", "unknown")),
        "source": _source(run),
        "history": _HISTORIES[config.model.sfh].format(config.model.sfh_bins),
        "smoothing": describe(config.model, config.make_prior()),
        "nebular": config.model.nebular,
        "param_file": config.model.param_file,
        "noise": _noise(config.noise),
        "grid": str(_grid(run)) if run.card else "not known: there is no model/card.json",
        "prior": config.make_prior().parameters,
        "constants": config.make_prior().constants,
        "ties": config.make_prior().ties,
        "known": PARAMETERS,
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


def _noise(noise: NoiseConfig) -> str:
    fraction = f"{100 * noise.fraction:g} % of the flux"
    if noise.by_row:
        text = "each row's own errors and gaps"
        if noise.calibration_order:
            text += (
                f"; a calibration polynomial of order {noise.calibration_order}, with coefficients of "
                f"{100 * noise.calibration_width:g} %, is marginalised"
            )
        return text
    if noise.kind == "fractional":
        text = fraction + (", Gaussian in log10 flux" if noise.space == "log10" else "")
    else:
        if noise.kind == "catalog":
            text = "the catalog's inverse variances"
            if noise.poisson_share is not None:
                text += f", {100 * noise.poisson_share:g} % of them Poisson"
        elif len(noise.sigma_flam) == 1:
            text = f"{noise.sigma_flam[0]:g} erg/s/cm2/Å at any flux"
        else:
            text = f"constant in each element ({'given' if noise.sigma_flam else 'the median of the catalog'})"
        if noise.fraction:
            text += f", with {fraction} added in quadrature"
    if len(noise.kernel) > 1:
        text += f"; shared between neighbours by the kernel {', '.join(f'{weight:g}' for weight in noise.kernel)}"
    missing = noise.missing
    if missing.probability:
        count = "a stretch" if missing.stretches == 1 else f"up to {missing.stretches} stretches"
        text += f"; {100 * missing.probability:g} % of the simulations lack {count}"
        text += f" of {missing.elements[0]} to {missing.elements[1]} elements"
    return text


def _source(run: RunData) -> str:
    if run.config.model.param_file is not None:
        return f"the parameter file {run.config.model.param_file.name} through Prospector"
    source = {"bc03": "BC03-MILES", "fsps": "FSPS"}[run.config.model.source]
    simulated = nested(run.manifest, "stages", "simulate") or {}
    if "prospector_checked" not in simulated:
        return f"{source} through Prospector"
    return (
        f"{source} in batches; Prospector computed {simulated['prospector_checked']:,} of the spectra as well, "
        f"with differences of {simulated['prospector_max_difference']:.1e} at most"
    )


def _grid(run: RunData) -> WavelengthGrid:
    return WavelengthGrid.from_dict((run.card or {})["grid"])


def wavelength_axis(run: RunData) -> str:
    """Label of the wavelength axis of spectra, with frame, medium and unit."""
    grid = _grid(run) if run.card else None
    what = f"{grid.frame}-frame wavelength in {grid.medium}" if grid else "wavelength"
    return rf"{what} [$\mathrm{{\AA}}$]"


def learning_section(run: RunData) -> Picture | None:
    """Return the learning curve."""
    if run.history is None:
        return None
    return survey.learning_curve(run.history["epoch"], run.history["train_loss"], run.history["validation_loss"])


def calibration_section(run: RunData) -> dict[str, list[Picture]] | None:
    """Return the pictures of each kind, one for each parameter; those of the coverage end with TARP."""
    data = run.calibration
    if data is None:
        return None
    draws = int(data.attrs["draws"])
    pvalues = nested(run.audit, "calibration", "ks_pvalue") or {}
    quantiles = data["quantile"].values
    low, median, high = (int(np.argmin(np.abs(quantiles - q))) for q in (0.16, 0.5, 0.84))
    pictures: dict[str, list[Picture]] = {
        "recovery": [],
        "ranks": [],
        "cdf": [],
        "coverage": [],
        "bins": [],
        "edges": [],
    }
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
    if tarp := nested(run.audit, "calibration", "tarp"):
        level, covered = np.array(tarp["levels"]), np.array(tarp["coverage"])
        pictures["coverage"].append(calibration.tarp(level, covered, tarp["band"]))
    for along, key in (
        ("median of the posterior, {}", "by_median"),
        ("S/N, for {}", "by_snr"),
        ("redshift, for {}", "by_redshift"),
        ("share of good elements, for {}", "by_good_share"),
    ):
        for name, bins in (nested(run.audit, "calibration", key) or {}).items():
            if bins:
                pictures["bins"].append(calibration.conditional(name, along.format(label(name)), bins))
    by_median = nested(run.audit, "calibration", "by_median") or {}
    for p in run.config.make_prior().parameters:
        if strips := nested(run.audit, "calibration", "by_truth", p.name):
            pictures["edges"].append(calibration.edges(p.name, strips, by_median.get(p.name, []), p.distribution.cdf))
    return pictures


def importance_section(run: RunData) -> list[dict[str, Any]]:
    """Return a row of numbers for each kind of spectra whose draws were weighed."""
    names = {"simulations": "simulations", "galaxies": "audited galaxies"}
    found = run.audit.get("importance") or {}
    return [
        {"name": name, "key": key, **found[key]} for key, name in names.items() if (found.get(key) or {}).get("rows")
    ]


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
        "residuals": agreement.residuals(data["wavelength"].values, percent, noise, wavelength_axis(run)),
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
    known = {stage["stage"] for stage in stages}
    # The audit cannot count itself; its own record is in the manifest once it is done.
    for name, record in (run.manifest.get("stages") or {}).items():
        if name not in known and name != "report" and record.get("status") == "done":
            stages.append({"stage": name, **{key: record.get(key) for key in ("wall_s", "core_s", "rows")}})
    npe, baselines = cost.get("npe_core_s_per_galaxy"), cost.get("baselines") or {}
    picture = survey.cost(cost.get("once_core_s"), npe, baselines, rows) if npe else None
    return {"picture": picture, "stages": stages, "numbers": cost, "baselines": baselines}


_ESCALATED = {QualityFlag.LOW_AGREEMENT: "low_agreement", QualityFlag.AGREEMENT_CAPPED: "capped"}
"""Bits that rows get after the map, with their entries in escalate.json."""


def catalog_section(run: RunData) -> dict[str, Any] | None:
    """Return the quality table, the distributions of medians and the table's first rows."""
    if run.catalog is None:
        return None
    names = [name for name, medians in run.catalog.counts.items() if medians.any()]
    counts = {flag: rows for flag, rows in run.catalog.bits.items() if flag not in _ESCALATED}
    if run.escalated is not None:
        counts |= {flag: run.escalated[entry] for flag, entry in _ESCALATED.items()}
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
            for flag, rows in counts.items()
        ],
        "medians": [survey.medians(name, run.catalog.edges[name], run.catalog.counts[name]) for name in names],
        "units": {p.name: p.unit for p in run.config.make_prior().parameters},
    }
