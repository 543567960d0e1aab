"""The audit of a whole run, on the same cores as everything that it is compared with.

`digs-survey run catalogs/sample.zarr --config quick --retrain` with `--galaxies` chains on spectra in batches, each
checked against Prospector: what the audit takes, how busy its jobs keep the cores (their processor time over the wall
time of them all, from the first that begins to the last that ends), and what posteriors cost. Likelihoods a second are
those of a whole ensemble's half, which is what emcee asks for at once; log-likelihoods of both are held together.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._form import finish, parser, repeat
from digs_survey.audit.mcmc.target import GalaxyPosterior
from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import SurveyConfig, load_config
from digs_survey.noise.model import NoiseModel
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.store.ledger import Ledger

SAMPLE = Path(__file__).resolve().parents[1] / "catalogs" / "sample.zarr"
SPREAD = 0.02
"""Of the theta whose likelihoods are timed about the truth, in units of the prior's range."""
_CALLS = 50
"""In a row, as a chain asks for batches."""


def main() -> None:
    options = parser("audit", __doc__ or "")
    options.add_argument("--galaxies", type=int, help="given to emcee (default: 100)")
    options.add_argument("--walkers", type=int, default=128, help="of each ensemble (default: %(default)s)")
    args = options.parse_args()
    galaxies = args.galaxies or (4 if args.quick else 100)
    overrides = [f"audit.galaxies={galaxies}", f"audit.mcmc.walkers={args.walkers}"]
    if args.quick:
        overrides += ["simulate.simulations=20000", "train.epochs=2", "audit.calibration_simulations=200"]
    config = load_config("quick", overrides)
    slow, fast, difference = _rates(config, 3 if args.quick else 7)
    with tempfile.TemporaryDirectory() as name:
        run_dir = Path(name) / "run"
        command = [sys.executable, "-m", "digs_survey", "run", str(SAMPLE), "--config", "quick", "--retrain"]
        settings = [part for setting in overrides for part in ("--set", setting)]
        subprocess.run([*command, "--run-dir", str(run_dir), "--quiet", *settings], check=True, capture_output=True)
        stage: dict[str, Any] = json.loads((run_dir / "manifest.json").read_text())["stages"]["audit"]
        audit: dict[str, Any] = json.loads((run_dir / "audit.json").read_text())
        records = list(Ledger(run_dir / "audit-jobs" / "ledger").records().values())
    cores, cost = audit["cost"]["cores"], audit["cost"]
    spent = sum(record["core_s"] for record in records)
    span = max(r["finished"] for r in records) - min(r["finished"] - r["core_s"] for r in records)
    rates = {"vectorised": statistics.median(fast), "prospector": statistics.median(slow)}
    finish(
        f"audit of {galaxies} galaxies with {args.walkers} walkers each on {cores} cores",
        [
            ("likelihoods by Prospector, one core", slow, "/s"),
            (f"likelihoods in batches of {args.walkers // 2}, one core", fast, "/s"),
            ("their ratio", [a / b for a, b in zip(fast, slow, strict=True)], ""),
            ("the audit's stage", [stage["wall_s"]], "s"),
            ("a galaxy's job, all ensembles and checks", [r["core_s"] for r in records], "core-s"),
            ("cores busy with them", [100 * spent / (span * cores)], "%"),
            ("converged", [audit["agreement"]["converged"]], ""),
            ("galaxies mapped for one chain in batches", [cost["galaxies_per_mcmc_fit_map_only"]], ""),
            ("break-even", [cost["break_even_galaxies"]], "galaxies"),
        ],
        {
            "benchmark": "audit",
            "cores": cores,
            "galaxies": galaxies,
            "walkers": args.walkers,
            "vectorised_calls_per_s": rates["vectorised"],
            "prospector_calls_per_s": rates["prospector"],
            "ratio": rates["vectorised"] / rates["prospector"],
            "max_relative_log_likelihood_difference": difference,
            "audit_s": stage["wall_s"],
            "busy": spent / (span * cores),
            "converged": audit["agreement"]["converged"],
            "galaxies_per_mcmc_fit": cost["galaxies_per_mcmc_fit_map_only"],
            "galaxies_per_mcmc_fit_95": cost["galaxies_per_mcmc_fit_map_only_95"],
            "break_even_galaxies": cost["break_even_galaxies"],
            "break_even_galaxies_95": cost["break_even_galaxies_95"],
        },
        args.json,
    )


@threadpool_limits.wrap(limits=1)
def _rates(config: SurveyConfig, times: int) -> tuple[list[float], list[float], float]:
    """Likelihoods/s by Prospector and in batches, and the largest relative difference of their logarithms."""
    prior, noise = config.make_prior(), NoiseModel.from_config(config.noise)
    catalog, rng = Catalog.open(SAMPLE), np.random.default_rng(1)
    row = prepare(catalog.rows(0, 1), catalog.grid.frame, config.model.zred, config.map.min_good_fraction)
    columns = catalog.columns(0, 1)
    truth = np.array([float(columns[f"true_{name}"][0]) for name in prior.names])
    prospector, batched = (
        GalaxyPosterior(simulator, noise, prior, row.flux[0], row.good[0])
        for simulator in (
            ProspectorSimulator(config.model, prior, catalog.grid),
            BatchedModel.from_config(config.model, prior, catalog.grid),
        )
    )
    half = config.audit.mcmc.walkers // 2
    move = SPREAD * (prior.high - prior.low) * rng.normal(size=(half, prior.ndim))
    theta = np.clip(truth + move, prior.low, prior.high)
    slow, fast = repeat([lambda: prospector(theta), lambda: [batched(theta) for _ in range(_CALLS)]], times)
    exact = prospector(theta)
    difference = float(np.abs(batched(theta) / exact - 1).max())
    return [half / s for s in slow], [_CALLS * half / s for s in fast], difference


if __name__ == "__main__":
    main()
