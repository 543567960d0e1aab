"""A run directory whose posterior is known exactly, for the tests of the report.

log flux is linear in theta, the noise is Gaussian in log flux and theta has a Gaussian prior well inside
the box of the real one: the posterior is Gaussian with known mean and covariance, its percentiles are
calibrated, and ranks are uniform. Costs and dates are made up.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import xarray as xr
from pyarrow import parquet
from scipy.stats import kstest, norm

from digs_survey import formats
from digs_survey.audit.agreement_model import Compared, fit_agreement
from digs_survey.audit.calibration.calibration import calibrate
from digs_survey.audit.cost import cost_summary
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.results.columns import TIERS
from digs_survey.store.storage import write_json

QUANTILES = np.array([0.025, 0.16, 0.5, 0.84, 0.975])
LEVELS = np.round(np.arange(0.02, 1.0, 0.02), 2)
NOISE = 0.05


class LinearGaussian:
    """log flux = base + jacobian . (theta - centre) + N(0, 0.05), with theta ~ N(centre, (range / 8)^2)."""

    def __init__(self) -> None:
        self.prior = Prior()
        self.wave = np.arange(3760.0, 8061.0, 50.0)
        u = (self.wave - 5900) / 2200
        lines = sum(a * np.exp(-0.5 * ((self.wave - w) / 45) ** 2) for w, a in ((4863, 0.4), (5008, 0.5), (6565, 1.0)))
        self.base = np.log(6e-9) - 0.5 * u - 0.5 / (1 + np.exp((self.wave - 4000) / 60)) + 0.5 * lines
        step = 1 / (1 + np.exp(-(self.wave - 4000) / 120))
        shape = [
            np.full_like(u, np.log(10)),
            0.10 * np.sin(4 * u) + 0.1 * u,
            -0.9 + 0.7 * u,
            0.12 * step - 0.1 * u,
            0.3 * lines - 0.05 * u,
        ]
        self.jacobian = np.stack(shape, axis=1)
        self.centre = 0.5 * (self.prior.low + self.prior.high)
        self.spread = (self.prior.high - self.prior.low) / 8
        self.covariance = np.linalg.inv(self.jacobian.T @ self.jacobian / NOISE**2 + np.diag(self.spread**-2.0))
        self.width = np.sqrt(np.diag(self.covariance))

    def theta(self, rng, count):
        return self.centre + self.spread * rng.normal(size=(count, self.prior.ndim))

    def flux(self, theta):
        return np.exp(self.base + (theta - self.centre) @ self.jacobian.T)

    def mean(self, flux):
        return self.centre + (np.log(flux) - self.base) @ self.jacobian @ self.covariance / NOISE**2

    def draws(self, rng, mean, count):
        shape = (*mean.shape[:-1], count, self.prior.ndim)
        return mean[..., None, :] + rng.normal(size=shape) @ np.linalg.cholesky(self.covariance).T

    def percentiles(self, mean):
        return mean[..., None] + self.width[:, None] * norm.ppf(QUANTILES)


def build_run(
    folder, *, rows=400, simulations=500, galaxies=5, converged=4, failed=0, known_truth=True, name="sample.zarr"
):
    """Write a run directory and return it with its audit.json; the last ``failed`` galaxies have no chain."""
    folder = Path(folder)
    (folder / "model").mkdir(parents=True)
    model, rng = LinearGaussian(), np.random.default_rng(7)
    (folder / "config.toml").write_text("seed = 2022\n[noise]\nkind = 'fractional'\n[train]\nepochs = 40\n")
    write_json(folder / "model" / "card.json", _card(model))
    _history(folder / "model" / "history.csv", rng)
    observed = model.flux(model.theta(rng, rows)) * np.exp(NOISE * rng.normal(size=(rows, model.wave.size)))
    ids = [f"SDSS J{1000 + k}" for k in range(rows)]
    _posterior(folder, model, observed, ids, name)
    audit = {"parameters": list(model.prior.names), "galaxies": galaxies}
    audit["calibration"] = _calibration(folder, model, rng, simulations)
    audit |= _galaxies(folder, model, rng, observed[:galaxies], ids[:galaxies], converged, failed, known_truth)
    audit["cost"] = _cost(rows)
    write_json(folder / "audit.json", audit)
    write_json(folder / "manifest.json", _manifest(rows, name))
    return folder, audit


def add_survey(folder, audit, found):
    """Write what holding the survey against simulations found
    (:class:`~digs_survey.audit.domain.domain_check.DomainCheck`)."""
    write_json(folder / "audit.json", audit | {"domain": found.summary()})
    arrays, dims = found.arrays(), {"population": ["population"], "row": ["galaxy"]}
    for name, values in arrays.items():
        first = "simulation" if name.startswith("simulated") else "galaxy"
        stacked = ["reference" if name == "residual_errors" else "population", "wavelength"]
        dims[name] = dims.get(name) or (stacked if values.ndim == 2 else [first])
    xr.Dataset(
        {name: (dims[name], values) for name, values in arrays.items()}, {"wavelength": found.grid.wavelength}
    ).to_zarr(folder / "audit.zarr", group="survey", zarr_format=3, consolidated=False)


def add_agreement(folder, audit, rows=60):
    """Learn agreement from made-up disagreements, and give every row of the table an agreement and a tier."""
    rng = np.random.default_rng(3)

    def both(count):
        doubt = rng.normal(size=count)
        return Compared({"weights": doubt}, np.exp(doubt + 0.5 * rng.normal(size=count) - 1.5))

    model, learned = fit_agreement(both(5), both(rows), 0.3, seed=1)
    write_json(folder / "audit.json", audit | {"row_agreement": learned})
    table = parquet.read_table(folder / "percentiles.parquet")
    agreement = model.agreement(rng.normal(size=(table.num_rows, 1)))
    tier = np.where(agreement < 0.5, 1, 0)
    parquet.write_table(
        table.append_column("agreement", pa.array(agreement)).append_column("tier", pa.array(tier)),
        folder / "results.parquet",
    )
    told = {"wanted": int(tier.sum()), "weighed": int(tier.sum()), "accepted": int(tier.sum()) - 2}
    told |= {"agreement_threshold": 0.5, "without_agreement": 0, "low_agreement": 2, "fitted": 2, "converged": 0}
    told |= {"verdict": "not described", "agreement_cap": 0.5, "capped": 3}
    told |= {"rows": dict(zip(TIERS, (int((tier == 0).sum()) + 2, int(tier.sum()) - 2, 0), strict=True))}
    write_json(
        folder / "escalate.json",
        told | {"core_s": {"weights": 9.0, "emcee": 40.0}, "budget_core_s": 60.0},
    )


def _text(values, dim="galaxy"):
    return dim, np.array(values, dtype=object)


def _card(model):
    return {
        "parameters": model.prior.to_dict(),
        "grid": {"wavelength_angstrom": model.wave.tolist(), "frame": "rest", "medium": "vacuum"},
        "noise": {"kind": "fractional", "fraction": NOISE, "space": "flux"},
    }


def _history(path, rng):
    epoch = np.arange(1, 41)
    train = -6.2 + 9 * np.exp(-epoch / 4) + 0.01 * rng.normal(size=40)
    columns = [epoch, train, train + 0.05, 2e-3 * np.cos(epoch / 26) ** 2, 11.0 * epoch]
    np.savetxt(
        path,
        np.stack(columns, 1),
        "%.6g",
        ",",
        header="epoch,train_loss,validation_loss,learning_rate,wall_s",
        comments="",
    )


def _posterior(folder, model, observed, ids, name):
    percentiles = model.percentiles(model.mean(observed)).astype("f4")
    quality = np.zeros(len(ids), dtype="i8")
    quality[3] = QualityFlag.FEW_GOOD_ELEMENTS | QualityFlag.NONFINITE_FLUX
    quality[5:9] = QualityFlag.FILLED_ELEMENTS
    percentiles[3] = np.nan
    xr.Dataset(
        {
            "percentiles": (("galaxy", "parameter", "quantile"), percentiles),
            "quality": ("galaxy", quality),
            "n_good": ("galaxy", np.full(len(ids), model.wave.size, "i4")),
        },
        {"galaxy_id": _text(ids), "parameter": _text(model.prior.names, "parameter"), "quantile": QUANTILES},
    ).to_zarr(folder / "posterior.zarr", zarr_format=3, consolidated=False)
    columns = {"galaxy_id": ids, "survey_name": [name] * len(ids)}
    for k, par in enumerate(model.prior.names):
        columns |= {f"{par}_p{100 * q:g}": percentiles[:, k, j] for j, q in enumerate(QUANTILES)}
    parquet.write_table(
        pa.table(columns | {"n_good": [model.wave.size] * len(ids), "quality": quality}), folder / "percentiles.parquet"
    )


def _calibration(folder, model, rng, simulations, draws=400):
    names = list(model.prior.names)
    theta = model.theta(rng, simulations)
    mean = model.mean(model.flux(theta) * np.exp(NOISE * rng.normal(size=(simulations, model.wave.size))))
    sample = model.draws(rng, mean, draws)
    rank = (sample < theta[:, None]).sum(axis=1)
    uniform = np.random.default_rng(1).random((simulations, len(names) + 1))
    again = np.random.default_rng(2).random((simulations, 8))
    made = calibrate(theta, sample, prior=model.prior, uniform=uniform, again=again).summary(names)
    if made["verdict"]:
        made["verdict"]["planted"] = {"20 % too narrow": True, f"{names[0]} without correlation": False}
    z = (mean - theta) / model.width
    coverage = (np.abs(z)[None] < norm.ppf(0.5 + LEVELS / 2)[:, None, None]).mean(axis=1)
    xr.Dataset(
        {
            "theta": (("simulation", "parameter"), theta),
            "percentiles": (("simulation", "parameter", "quantile"), model.percentiles(mean)),
            "rank": (("simulation", "parameter"), rank.astype("i4")),
            "coverage": (("level", "parameter"), coverage),
        },
        {"parameter": _text(names, "parameter"), "quantile": QUANTILES, "level": LEVELS},
        {"draws": draws},
    ).to_zarr(folder / "audit.zarr", group="calibration", zarr_format=3, consolidated=False)
    by_name = lambda values: {par: float(v) for par, v in zip(names, values, strict=True)}  # noqa: E731
    return made | {
        "ks_pvalue": by_name([kstest((rank[:, k] + 0.5) / (draws + 1), "uniform").pvalue for k in range(len(names))]),
        "coverage": {str(q): by_name((np.abs(z) < norm.ppf(0.5 + q / 2)).mean(axis=0)) for q in (0.5, 0.68, 0.9, 0.95)},
        "pull_mean": by_name(z.mean(axis=0)),
        "pull_std": by_name(z.std(axis=0)),
        "mean_half_width": by_name(model.width),
    }


def _galaxies(folder, model, rng, flux, ids, converged, failed, known_truth, draws=1500):
    names, count = list(model.prior.names), len(flux)
    mean = model.mean(flux)
    npe = model.draws(rng, mean + 0.15 * model.width * rng.normal(size=mean.shape), draws)
    npe = npe.mean(axis=1, keepdims=True) + 1.06 * (npe - npe.mean(axis=1, keepdims=True))
    mcmc = model.draws(rng, mean, draws)
    is_converged, lost = np.arange(count) < converged, np.arange(count) >= count - failed
    mcmc[lost] = np.nan
    shift = (np.median(npe, axis=1) - np.median(mcmc, axis=1)) / mcmc.std(axis=1)
    ratio = npe.std(axis=1) / mcmc.std(axis=1)
    spectra = model.flux(npe[:, :64])
    best_npe, best_mcmc = model.flux(npe.mean(axis=1)), model.flux(mcmc.mean(axis=1))
    best_npe[lost] = best_mcmc[lost] = spectra[lost] = np.nan
    good = np.ones_like(flux, dtype=bool)
    good[:, 12:14] = False
    chi2 = (((flux - best_npe) / (NOISE * best_npe)) ** 2 * good).sum(axis=1)
    truth = mean + model.width * rng.normal(size=mean.shape) if known_truth else np.full_like(mean, np.nan)
    theta, spectrum = ("galaxy", "parameter"), ("galaxy", "wavelength")
    xr.Dataset(
        {
            "row": ("galaxy", np.arange(count) * 3),
            "galaxy_id": _text(ids),
            "redshift": ("galaxy", np.full(count, 1e-5)),
            "snr": ("galaxy", np.full(count, 20.0)),
            "weight": ("galaxy", np.ones(count)),
            "truth": (theta, truth),
            "npe": (("galaxy", "draw", "parameter"), npe),
            "mcmc": (("galaxy", "mcmc_draw", "parameter"), mcmc),
            "converged": ("galaxy", is_converged),
            "steps": ("galaxy", np.where(lost, 0, np.where(is_converged, 2000, 4000))),
            "autocorrelation_time": (
                theta,
                np.where(lost, np.nan, np.where(is_converged, 30.0, 130.0))[:, None] * np.linspace(0.8, 1, len(names)),
            ),
            "acceptance": ("galaxy", np.full(count, 0.31)),
            "core_s": ("galaxy", np.full(count, 210.0)),
            "shift_sigma": (theta, shift),
            "width_ratio": (theta, ratio),
            "flux": (spectrum, flux),
            "sigma": (spectrum, NOISE * flux),
            "good": (spectrum, good),
            "best_npe": (spectrum, best_npe),
            "best_mcmc": (spectrum, best_mcmc),
            "predictive": (
                ("galaxy", "band", "wavelength"),
                np.quantile(spectra, [0.16, 0.5, 0.84], axis=1).swapaxes(0, 1),
            ),
            "chi2": ("galaxy", chi2),
            "n_good": ("galaxy", good.sum(axis=1)),
        },
        {"parameter": _text(names, "parameter"), "wavelength": model.wave, "band": [0.16, 0.5, 0.84]},
    ).to_zarr(folder / "audit.zarr", group="galaxies", zarr_format=3, consolidated=False)
    mean_of = lambda values, how: {  # noqa: E731
        par: float(how(v)) if converged else None
        for par, v in [*zip(names, values[is_converged].T, strict=True), ("all", values[is_converged])]
    }
    return {
        "agreement": {
            "converged": int(is_converged.sum()),
            "mean_abs_shift_sigma": mean_of(np.abs(shift), np.mean),
            "mean_width_ratio": mean_of(ratio, np.mean),
            "mean_width_ratio_error": mean_of(ratio, lambda v: v.std() / np.sqrt(len(v))),
            "median_width_ratio": mean_of(ratio, np.median),
        },
        "predictive": {
            "reduced_chi2_median": None if lost.all() else float(np.nanmedian(chi2 / good.sum(axis=1))),
            "residual_percent_median": 3.4,
        },
    }


def _cost(rows):
    stages = [
        ("simulate", 210.0, 400.0, 60_000),
        ("train", 260.0, 500.0, 60_000),
        ("map", 4.0, 2.1e-3 * rows, rows),
        ("audit", 500.0, 980.0, 5),
    ]
    named = [dict(zip(("stage", "wall_s", "core_s", "rows"), s, strict=True)) for s in stages]
    return cost_summary(named, [205.0, 215.0], rows, 2, other_core_s=[10.0, 11.0])


def _manifest(rows, name):
    done = {
        "status": "done",
        "started": "2026-01-05T10:00:00+00:00",
        "finished": "2026-01-05T10:04:00+00:00",
        "key": {},
    }
    return json.loads(
        json.dumps(
            {
                "format": formats.MANIFEST,
                "digs_survey": "0.1.0",
                "created": "2026-01-05T10:00:00+00:00",
                "git_commit": "0123abcd" * 5,
                "command": f"digs-survey run {name} --config quick",
                "seed": 2022,
                "config_hash": "ab" * 32,
                "versions": {"python": "3.11.9", "torch": "2.13.0", "sbi": "0.27.0"},
                "inputs": {"catalog": {"path": name, "rows": rows, "fingerprint": "cd" * 32}},
                "stages": {
                    s: done | {"wall_s": 10.0, "core_s": 20.0, "rows": rows}
                    for s in ("simulate", "train", "map", "audit")
                },
            }
        )
    )
