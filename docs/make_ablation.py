"""Make the table of docs/ablation.md: what each part of the estimator is worth.

Run from the root of the checkout: ``PYTHONPATH=. python docs/make_ablation.py`` (25 minutes on 2 cores). Every row is
a posterior that was trained on as many noisy pairs as all others, and is tested on the same independent simulations.
Rows that are done are kept in ``runs/ablation`` and not made again; ``--rows NAME ...`` makes some of them only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from benchmarks._form import PAPER_NETWORK, write_table
from digs_survey.audit.calibration.calibrate import calibrate_model
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.training.loop import blank_estimator, fit
from digs_survey.importance.weights import simulated_importance
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel

HERE = Path(__file__).parent
OUT = HERE.parent / "runs" / "ablation"
BEGIN = "<!-- made by docs/make_ablation.py -->"
SEEN, ON_DISK, BATCH = 3_000_000, 400_000, 1_024
"""Noisy pairs that each network is shown in all, that lie on disk where noise is fixed, and that make a batch."""
TESTS, WEIGHED, DRAWS, SEED = 2_000, 500, 1_000, 90


@dataclass(frozen=True)
class Row:
    """One posterior of the table.

    Attributes
    ----------
    name, what : str
    data : {"fresh", "fixed", "nearest"}
        Noise drawn afresh for each batch, drawn once, or drawn once and theta paired with the nearest row of the table.
    base : int
        Noiseless spectra.
    overrides : tuple of str
        Of the reference's configuration.
    """

    name: str
    what: str
    data: str = "fresh"
    base: int = 1_000_000
    overrides: tuple[str, ...] = ()


ROWS = (
    Row("reference", "10⁶ spectra, fresh noise, preset `digs2022`"),
    Row("base-1e5", "10⁵ spectra", base=100_000),
    Row("base-1e4", "10⁴ spectra", base=10_000),
    Row("fixed-1e5", "10⁵ spectra, noise fixed (4·10⁵ pairs)", "fixed", 100_000),
    Row("fixed-1e4", "10⁴ spectra, noise fixed (4·10⁵ pairs)", "fixed", 10_000),
    Row("nearest", "the same, θ paired with the nearest spectrum, as in the paper's code", "nearest", 10_000),
    Row(
        "paper-network",
        "the paper's network and features: 25 × 10, no embedding, each element, amplitude as in the spectrum",
        overrides=PAPER_NETWORK,
    ),
    Row("paper", "the paper's network, features and pairs", "nearest", 10_000, PAPER_NETWORK),
    Row("narrow", "32 × 5", overrides=("train.hidden_features=32", "train.transforms=5")),
    Row("shallow", "64 × 4", overrides=("train.transforms=4",)),
    Row("wide", "128 × 5", overrides=("train.hidden_features=128", "train.transforms=5")),
    Row("deep", "64 × 10", overrides=("train.transforms=10",)),
    Row("no-embedding", "no embedding", overrides=("train.embedding='none'",)),
    Row(
        "conv",
        "convolutional embedding, whitened by element",
        overrides=("train.embedding='conv'", "train.whitening='element'"),
    ),
    Row("element", "whitened by element, not by components", overrides=("train.whitening='element'",)),
    Row("asinh", "asinh flux", overrides=("train.flux_transform='asinh'",)),
    Row("plain", "amplitude as one more feature", overrides=("train.amplitude='feature'",)),
    Row(
        "centred", "amplitude as one more feature and the centre of the mass", overrides=("train.amplitude='centred'",)
    ),
    Row("zuko-maf", "zuko's MAF", overrides=("train.flow='zuko_maf'",)),
    Row("zuko-nsf", "zuko's neural spline flow", overrides=("train.flow='zuko_nsf'",)),
    Row("ensemble", "an ensemble of 3", overrides=("train.ensemble=3",)),
)


class _AsTheyAre(NoiseModel):
    """Noise that is in the spectra already."""

    def perturb(self, flux: Any, normal: Any, errors: Any = None) -> Any:
        return flux


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    chosen = parser.parse_args().rows
    OUT.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        if row.name in chosen:
            config = _config(row)
            settings = {"row": asdict(row) | {"overrides": list(row.overrides)}, "config": config.hash()}
            kept = OUT / f"{row.name}.json"
            if not kept.is_file() or json.loads(kept.read_text())["settings"] != settings:
                kept.write_text(json.dumps({"settings": settings, **_measure(row, config)}))
            print(f"{row.name:16}{kept.read_text()[-330:]}", flush=True)
    results = [(row, json.loads((OUT / f"{row.name}.json").read_text())) for row in ROWS if row.name in chosen]
    _write(results)


def _config(row: Row) -> SurveyConfig:
    config = load_config("digs2022", [f"train.batch_size={BATCH}", *row.overrides])
    rows = row.base if row.data == "fresh" else ON_DISK
    epochs = max(1, round(SEEN / (rows * (1 - config.train.validation_fraction))))
    return load_config(
        "digs2022",
        [f"train.batch_size={BATCH}", *row.overrides, f"train.epochs={epochs}", f"train.patience={epochs}"],
    )


def _measure(row: Row, config: SurveyConfig) -> dict[str, Any]:
    prior, grid, noise = config.make_prior(), WavelengthGrid.from_config(config.grid), NoiseModel(config.noise)
    model = BatchedModel.from_config(config.model, prior, grid)
    theta, flux = (array[: row.base] for array in _simulations())
    if row.data != "fresh":
        theta, flux, noise = *_on_disk(row, config, theta, flux), _AsTheyAre(config.noise)
    core = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        estimators = [
            _train(config, theta, np.asarray(flux, dtype=np.float32), noise, Path(folder), member)
            for member in range(config.train.ensemble)
        ]
        core = time.process_time() - core
        posterior = freeze_posterior(Path(folder), estimators, config, grid, NoiseModel(config.noise), {})
    calibration = calibrate_model(posterior, TESTS, SEED)
    tests = draw_theta(prior, SEED, "calibration", 0, TESTS)
    clean = model.spectra(tests)
    noisy = NoiseModel(config.noise).draw(clean, np.random.default_rng(SEED))
    log_prob = posterior.log_prob(tests[:, None], noisy)
    weighed = simulated_importance(posterior, tests[:WEIGHED], clean[:WEIGHED], NoiseModel(config.noise), DRAWS)
    low, high = np.moveaxis(calibration.percentiles, -1, 0)[[0, -1]]
    return {
        "log_prob": float(log_prob.mean()),
        "half_width": (0.5 * (high - low)).mean(axis=0).tolist(),
        "coverage_68": calibration.coverage([0.68])[0].tolist(),
        "ess": float(np.median(weighed.ess.astype(float) / DRAWS)),
        "core_s": core,
        "parameters": sum(p.numel() for e in estimators for p in e.parameters()),
    }


@cache
def _simulations() -> tuple[NDArray, NDArray]:
    config = load_config("digs2022")
    prior = config.make_prior()
    model = BatchedModel.from_config(config.model, prior, WavelengthGrid.from_config(config.grid))
    count = max(row.base for row in ROWS)
    theta = draw_theta(prior, SEED, "simulate", 0, count)
    return theta, np.concatenate([model.spectra(part).astype(np.float32) for part in np.array_split(theta, 100)])


def _train(config: SurveyConfig, theta: Any, flux: Any, noise: NoiseModel, folder: Path, member: int) -> Any:
    state = fit(config, theta, flux, noise, folder / f"{member}.pt", "ablation", member=member)
    estimator = blank_estimator(config, flux.shape[1], member)
    estimator.load_state_dict(state["best"])
    return estimator


def _on_disk(row: Row, config: SurveyConfig, theta: NDArray, flux: NDArray) -> tuple[NDArray, NDArray]:
    """Noisy pairs that stay as they are: each spectrum with its own theta, or with one that is near to it."""
    prior = config.make_prior()
    source = np.arange(ON_DISK) % row.base
    paired = theta[source]
    if row.data == "nearest":
        paired = draw_theta(prior, SEED, "nearest", 0, ON_DISK)
        source = KDTree(theta).query(paired)[1]
    return paired, NoiseModel(config.noise).draw(flux[source], np.random.default_rng(SEED + 1))


def _write(results: Sequence[tuple[Row, dict[str, Any]]]) -> None:
    names = load_config("digs2022").make_prior().names
    head = ["", "log q(θ\\|x)", *(f"{name}" for name in names), "coverage of 68 %", "ESS/N", "train [core-s]"]
    lines = []
    for row, found in results:
        widths = [f"{width:.3f}" for width in found["half_width"]]
        share = f"{min(found['coverage_68']):.3f} to {max(found['coverage_68']):.3f}"
        cells = [row.what, f"{found['log_prob']:.2f}", *widths, share, f"{found['ess']:.2f}", f"{found['core_s']:.0f}"]
        lines.append(cells)
    write_table(HERE / "ablation.md", BEGIN, head, lines)


if __name__ == "__main__":
    main()
