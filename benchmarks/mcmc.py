"""emcee on spectra in batches against Prospector's, one core: likelihoods a second, and seconds to a converged chain.

The galaxies are the first of catalogs/sample.zarr. Chains start about the truth, as those of the audit start from
neural draws, and run with the preset digs2022's settings until they are longer than 50 autocorrelation times. What
Prospector would take for the same chain is the number of its likelihoods over Prospector's rate; the chain's own time
has emcee's in it too.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._form import finish, parser, repeat
from digs_survey.audit.mcmc.chain import run_chain, start_points
from digs_survey.audit.mcmc.target import GalaxyPosterior
from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import load_config
from digs_survey.noise.model import NoiseModel
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.prospector import ProspectorSimulator

SAMPLE = Path(__file__).resolve().parents[1] / "catalogs" / "sample.zarr"
SPREAD = 0.02
"""Of the starting points about the truth, in units of the prior's range."""


def main() -> None:
    options = parser("mcmc", __doc__ or "")
    options.add_argument("--walkers", type=int, nargs="+", default=[32, 64, 128], help="(default: %(default)s)")
    args = options.parse_args()
    galaxies, times, most = (1, 3, args.walkers[:1]) if args.quick else (4, 7, args.walkers)

    config = load_config("digs2022")
    prior, noise = config.make_prior(), NoiseModel.from_config(config.noise)
    catalog, rng = Catalog.open(SAMPLE), np.random.default_rng(1)
    rows = prepare(catalog.rows(0, galaxies), catalog.grid.frame, config.model.zred, config.map.min_good_fraction)
    columns = catalog.columns(0, galaxies)
    truth = np.stack([np.asarray(columns[f"true_{name}"], dtype=float) for name in prior.names], axis=1)
    prospector = ProspectorSimulator(config.model, prior, catalog.grid)
    batched = BatchedModel.from_config(config.model, prior, catalog.grid)

    def near(row: int, count: int) -> np.ndarray:
        move = SPREAD * (prior.high - prior.low) * rng.normal(size=(count, prior.ndim))
        return np.clip(truth[row] + move, prior.low, prior.high)

    exact, fast = (GalaxyPosterior(s, noise, prior, rows.flux[0], rows.good[0]) for s in (prospector, batched))
    halves = [walkers // 2 for walkers in most]
    slow_s, *fast_s = repeat([partial(exact, near(0, 100)), *(partial(fast, near(0, n)) for n in halves)], times)
    slow_rate = [100 / s for s in slow_s]
    fast_rates = [[n / s for s in seconds] for n, seconds in zip(halves, fast_s, strict=True)]
    table = [("Prospector", slow_rate, "likelihoods/s")]
    table += [(f"batched, {n} at once", rate, "likelihoods/s") for n, rate in zip(halves, fast_rates, strict=True)]

    chains = []
    for walkers in most:
        settings = config.audit.mcmc.model_copy(update={"walkers": walkers})
        found = []
        for row in range(galaxies):
            posterior = GalaxyPosterior(batched, noise, prior, rows.flux[row], rows.good[row])
            start = start_points(near(row, 1_000), prior, walkers, seed=row)
            found.append(run_chain(posterior, [start], settings, seed=row))
        by_prospector = [chain.evaluations / statistics.median(slow_rate) for chain in found]
        table += [
            (f"chain of {walkers} walkers", [chain.core_s for chain in found], "core-s"),
            (f"chain of {walkers} walkers, steps", [chain.steps for chain in found], ""),
            (f"chain of {walkers} walkers, by Prospector", by_prospector, "core-s (likelihoods / rate)"),
        ]
        chains.append(
            {
                "walkers": walkers,
                "converged": sum(chain.converged for chain in found),
                "core_s": statistics.fmean(chain.core_s for chain in found),
                "steps": statistics.fmean(chain.steps for chain in found),
                "autocorrelation_time": statistics.fmean(float(c.autocorrelation_time.max()) for c in found),
                "core_s_by_prospector": statistics.fmean(by_prospector),
            }
        )
    finish(
        f"emcee's likelihoods and converged chains of {galaxies} galaxies (spread: over galaxies), one core",
        table,
        {
            "benchmark": "mcmc",
            "cores": 1,
            "galaxies": galaxies,
            "repeats": times,
            "prospector_likelihoods_per_s": statistics.median(slow_rate),
            "batched_likelihoods_per_s": {
                str(n): statistics.median(r) for n, r in zip(halves, fast_rates, strict=True)
            },
            "chains": chains,
        },
        args.json,
    )


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
