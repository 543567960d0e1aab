"""The posterior for rows of any noise beside emcee, on simulated rows of all kinds.

The rows have the noise, gaps and redshifts of ``noise.observing``. Each is fitted as the audit fits one: the engine and
the settings of ``[audit.mcmc]`` of the preset survey. Shown are how many chains converged, and by parameter and by
S/N the widths of the neural posterior, and of its draws with importance weights, over emcee's, and by how many of
emcee's half-widths the medians are off. Rows whose weights are worth less than 50 draws are left out of the weighted
figures, and counted. Two runs of emcee itself differ by a few per cent in width, and a few hundredths of a half-width
in the median.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._form import finish, parser
from benchmarks._survey import MIN_ESS, SNR_EDGES, WeighedDraws, add_model_option, simulated_rows, survey_folder
from digs_survey.audit.mcmc.agreement import Agreement, compare
from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, galaxy_jobs
from digs_survey.audit.select import signal_to_noise
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.artefact import identify
from digs_survey.estimator.posterior import FrozenPosterior

_SEED = 79
NEURAL, WEIGHTED = "neural", "weighted"


def main() -> None:
    options = parser("survey_chains", __doc__ or "")
    add_model_option(options)
    options.add_argument("--galaxies", type=int, help="simulated rows (default: 50; 2 with --quick)")
    options.add_argument("--draws", type=int, default=4_000, help="that are weighed for each (default: %(default)s)")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="of fits that are done, which are not made again")
    args = options.parse_args()
    count = args.galaxies or (2 if args.quick else 50)
    folder = survey_folder(args.model)
    with tempfile.TemporaryDirectory() if args.keep is None else nullcontext(args.keep) as jobs:
        posterior = FrozenPosterior.load(folder)
        rows, fits = fit_rows(folder, posterior, count, Path(jobs))
    weighed = WeighedDraws.of(posterior, rows, args.draws)
    result = {"benchmark": "survey_chains", "model": posterior.hash, "galaxies": len(fits), "draws": args.draws}
    table, figures = compared(posterior.prior.names, rows, fits, weighed)
    finish(f"{len(fits)} simulated rows, emcee as the preset survey audits", table, result | figures, args.json)


def fit_rows(
    folder: Path, posterior: FrozenPosterior, count: int, jobs_folder: Path
) -> tuple[PreparedRows, list[GalaxyFit]]:
    """Simulate rows and fit them with emcee, on all cores; finished fits lie in ``jobs_folder``."""
    settings = load_config("survey")
    _, rows = simulated_rows(posterior, _SEED, "chains", count)
    if len(rows.flux) < count:
        raise ConfigError(
            f"expected {count} simulated rows with a posterior, found {len(rows.flux)}; change --galaxies"
        )
    start, noise = posterior.sample(rows.flux, settings.map.draws), posterior.noise
    errors = noise.errors_of(rows.flux, rows.ivar, rows.good)
    jobs = galaxy_jobs(range(count), rows, errors, start, settings.audit.predictive_draws)
    setup = FitSetup(identify(folder, seed=_SEED), settings.audit.mcmc)
    return rows, [fit for fit in fit_galaxies(setup, jobs, jobs_folder) if fit is not None]


def agreements(weighed: WeighedDraws, fits: list[GalaxyFit]) -> dict[str, Agreement]:
    """Return how the neural posterior and the weighted one agree with emcee."""
    chains = np.array([fit.draws for fit in fits])
    neural = compare(weighed.theta, chains, [fit.converged for fit in fits])
    shift = (weighed.median - np.median(chains, axis=1)) / neural.width
    usable = neural.converged & (weighed.ess >= MIN_ESS)
    return {NEURAL: neural, WEIGHTED: Agreement(shift, weighed.width / neural.width, neural.width, usable)}


def compared(
    names: tuple[str, ...], rows: PreparedRows, fits: list[GalaxyFit], weighed: WeighedDraws
) -> tuple[list[tuple[str, list[float], str]], dict[str, Any]]:
    """Return the table and the figures by name."""
    agreement = agreements(weighed, fits)
    converged = np.array([fit.converged for fit in fits])
    # A fit that failed has neither.
    done = [fit for fit in fits if not fit.error]
    worst = np.array([fit.r_hat.max() for fit in done])
    core_s = [fit.job_core_s for fit in done]
    snr = signal_to_noise(rows.spectrum, rows.ivar, rows.good)
    table: list[tuple[str, list[float], str]] = [
        ("converged", [float(converged.sum())], f"of {len(fits)}; {len(fits) - len(done)} failed"),
        ("R-hat, the largest of a row's parameters", worst.tolist(), ""),
        ("steps of each ensemble", [float(fit.steps) for fit in done], ""),
        ("a fit, all ensembles and checks", core_s, "core-s"),
        (f"rows whose weights are worth < {MIN_ESS} draws", [float((weighed.ess < MIN_ESS).sum())], f"of {len(fits)}"),
    ]
    figures: dict[str, Any] = {
        "converged": int(converged.sum()),
        "failed": len(fits) - len(done),
        "r_hat_median": float(np.median(worst)),
        "r_hat_largest": float(worst.max()),
        "core_s_mean": float(np.mean(core_s)),
        "low_ess": int((weighed.ess < MIN_ESS).sum()),
    }
    for kind, found in agreement.items():
        ratio, shift = (values[found.converged] for values in (found.width_ratio, found.shift_sigma))
        figures[kind] = found.summary(names)
        for k, name in enumerate(names if len(ratio) else ()):
            mean, size = ratio[:, k].mean(), np.abs(shift[:, k]).mean()
            table.append((f"{kind}: {name}, width over emcee's", ratio[:, k].tolist(), f"mean {mean:.3f}"))
            table.append((f"{kind}: {name}, shift", shift[:, k].tolist(), f"sigma, mean size {size:.3f}"))
        figures[kind]["by_snr"] = {}
        for low, high in zip(SNR_EDGES[:-1], SNR_EDGES[1:], strict=True):
            here = found.converged & (snr >= low) & (snr < high)
            if not here.any():
                continue
            where, ratio = f"S/N {low:g}-{high:g}", found.width_ratio[here]
            size = np.abs(found.shift_sigma[here])
            figures[kind]["by_snr"][where] = {
                "galaxies": int(here.sum()),
                "mean_width_ratio": dict(zip(names, ratio.mean(axis=0).tolist(), strict=True)),
                "mean_abs_shift_sigma": dict(zip(names, size.mean(axis=0).tolist(), strict=True)),
            }
            about = f"{here.sum()} rows, all parameters"
            table.append((f"{kind}: {where}, mean width over emcee's", ratio.mean(axis=0).tolist(), about))
            table.append((f"{kind}: {where}, mean size of the shift", size.mean(axis=0).tolist(), f"sigma, {about}"))
    figures["rows"] = {
        "snr": snr.tolist(),
        "redshift": [float(z) for z in rows.flux[:, -1]],
        "good_share": rows.good.mean(axis=1).tolist(),
        "converged": converged.tolist(),
        "steps": [fit.steps for fit in fits],
        "r_hat": [None if fit.error else float(fit.r_hat.max()) for fit in fits],
        "core_s": [None if fit.error else fit.job_core_s for fit in fits],
        "ess": weighed.ess.tolist(),
    }
    return table, figures


if __name__ == "__main__":
    main()
