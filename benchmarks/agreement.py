"""What agreement is worth: learned on simulations with few weighed draws, and judged by many.

``python -m benchmarks.agreement`` takes the posteriors that ship with the package. For calibration simulations of each
it learns agreement as an audit without a converged chain does, and holds it against the distance of many weighed draws,
also for simulations whose few weights were not good.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from scipy import stats

from digs_survey.audit.agreement_model import Compared, fit_agreement
from digs_survey.audit.simulated_agreement import compare_simulations
from digs_survey.config import load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.psis import PARETO_K_LIMIT
from digs_survey.noise.observation import split_clean
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.sps.batched import BatchedModel


def measure(name: str, count: int, draws: int) -> str:
    """Return a row of the table for one posterior."""
    posterior = FrozenPosterior.load(shipped()[name])
    settings = ["map.predictive_draws=32", f"audit.agreement_simulations={count}", f"importance.draws={draws}"]
    config = load_config(name, [*settings, "importance.rows=none"])
    model = BatchedModel.from_config(posterior.model, posterior.prior, posterior.grid)
    what = model, posterior.prior, posterior.noise, config.seed, "calibration"
    theta, clean = simulated_spectra(*what, 0, count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.zarr"
        group = zarr.open_group(str(path), mode="w")
        flux, redshift = split_clean(clean) if posterior.noise.config.by_row else (clean, None)
        for key, values in (("theta", theta), ("flux", flux), ("redshift", redshift)):
            if values is not None:
                group.create_array(key, data=np.asarray(values))
        began = time.process_time()
        few, _ = compare_simulations(posterior, path, Path(folder) / "none", config)
        used_s = time.process_time() - began
        many, _ = compare_simulations(posterior, path, Path(folder) / "none", load_config(name, settings + WEIGHTS))
    nothing = Compared({key: np.zeros(0) for key in few.predictors}, np.zeros(0))
    fitted, told = fit_agreement(nothing, few.compared, config.audit.tolerance_sigma, config.seed)
    if fitted is None:
        return f"| {name} | {few.good.sum()} of {few.good.size} simulations have good weights: too few |"
    agreement = fitted.agreement(np.stack([few.predictors[key] for key in fitted.names], axis=-1))
    known = (many.pareto_k < PARETO_K_LIMIT) & np.isfinite(agreement)
    agreement, within = agreement[known], many.distance[known] < config.audit.tolerance_sigma
    area = stats.mannwhitneyu(agreement[within], agreement[~within]).statistic / (within.sum() * (~within).sum())
    return (
        f"| {name} | {few.good.size}, {few.good.mean():.0%} | {told['auc']:.2f}, {told['rank_correlation']:.2f} | "
        f"{area:.2f} | {agreement.mean():.3f}, {within.mean():.3f} | {1e3 * used_s / few.good.size:.0f} ms |"
    )


WEIGHTS = ["importance.rows=all"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--draws", type=int, default=8_000, help="weighed to judge by")
    asked = parser.parse_args()
    print(
        "| posterior | weighed, good | held out: AUC, rank correlation | AUC by many draws | mean, within | core time |"
    )
    print("|---|---|---|---|---|---|")
    for name in shipped():
        print(measure(name, asked.simulations, asked.draws), flush=True)


if __name__ == "__main__":
    main()
