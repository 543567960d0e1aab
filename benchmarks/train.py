"""Training: our loop against sbi's own NPE.train() at its defaults, on the same simulations and the same network.

Both train the paper's 25 x 10 masked autoregressive flow on 138 elements, with the same cores. sbi gets
pairs whose noise was drawn before, in batches of 200, with Adam and a tenth for validation; ours draws noise for every
batch, and everything of an epoch counts: noise, features, optimiser, validation and the checkpoint.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._form import PAPER_NETWORK, finish, parser, repeat
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.training.loop import HISTORY, fit
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel

SCHEDULE = 2_000_000 * 87
"""Pairs that the paper's network saw: 87 epochs of 2e6."""


def main() -> None:
    options = parser("train", __doc__ or "")
    options.add_argument("--batch-size", type=int, default=8192, help="ours (default: %(default)s)")
    options.add_argument("--cores", type=int, default=2)
    args = options.parse_args()
    count, epochs, sbi_count, sbi_epochs, times = (40_000, 2, 5_000, 1, 1) if args.quick else (100_000, 3, 20_000, 2, 3)
    settings = {
        "threads_per_worker": args.cores,
        "epochs": epochs,
        "batch_size": args.batch_size,
        "device": "cpu",
    }
    config = load_config("digs2022", [*PAPER_NETWORK, *(f"train.{name}={value}" for name, value in settings.items())])
    prior, noise = config.make_prior(), NoiseModel.from_config(config.noise)
    rng = np.random.default_rng(1)
    theta = prior.from_unit_cube(rng.random((count, prior.ndim)))
    model = BatchedModel.from_config(config.model, prior, WavelengthGrid.from_config(config.grid))
    flux = np.concatenate([model.spectra(block) for block in np.array_split(theta, 20)]).astype(np.float32)
    pairs = torch.as_tensor(np.log10(noise.draw(flux[:sbi_count], rng)), dtype=torch.float32)
    torch.set_num_threads(args.cores)

    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    repeat(
        [
            lambda: ours.append(_ours(config, theta, flux, noise)),
            lambda: theirs.append(_sbi(config, theta[:sbi_count], pairs, sbi_epochs)),
        ],
        times,
    )
    # The first round warms up.
    rates, core_s = ([pair[k] for pair in ours[1:]] for k in (0, 1))
    sbi_rates, sbi_core_s = ([pair[k] for pair in theirs[1:]] for k in (0, 1))
    ratios = [a / b for a, b in zip(rates, sbi_rates, strict=True)]
    minutes = [SCHEDULE / rate / 60 for rate in rates]
    batch_size = config.train.batch_size
    network = f"{config.train.hidden_features} x {config.train.transforms}"
    finish(
        f"training a {network} flow on {flux.shape[1]} elements, {args.cores} cores, ours in batches of {batch_size}",
        [
            ("ours, all included", rates, "pairs/s"),
            ("sbi's NPE.train(), its defaults", sbi_rates, "pairs/s"),
            ("ratio", ratios, ""),
            ("ours: core-seconds for a million pairs", core_s, "s"),
            ("sbi: core-seconds for a million pairs", sbi_core_s, "s"),
            (f"ours: {SCHEDULE:.3g} pairs", minutes, "min"),
        ],
        {
            "benchmark": "train",
            "network": network,
            "elements": flux.shape[1],
            "cores": args.cores,
            "batch_size": batch_size,
            "repeats": times,
            "pairs_per_s": statistics.median(rates),
            "sbi_pairs_per_s": statistics.median(sbi_rates),
            "ratio": statistics.median(ratios),
            "core_s_per_million_pairs": statistics.median(core_s),
            "sbi_core_s_per_million_pairs": statistics.median(sbi_core_s),
            "schedule_pairs": SCHEDULE,
            "schedule_minutes": statistics.median(minutes),
        },
        args.json,
    )


def _ours(
    config: SurveyConfig, theta: NDArray[np.float64], flux: NDArray[np.float32], noise: NoiseModel
) -> tuple[float, float]:
    """Pairs a second, and core-seconds for a million, of whole epochs."""
    with tempfile.TemporaryDirectory() as folder:
        history = fit(config, theta, flux, noise, Path(folder) / "train.pt", "benchmark")["history"]
    held = min(20_000, round(len(theta) * config.train.validation_fraction))
    batch = min(config.train.batch_size, len(theta) - held)
    seen = len(history) * ((len(theta) - held) // batch * batch)
    last = dict(zip(HISTORY, history[-1], strict=True))
    return seen / last["wall_s"], 1e6 * last["core_s"] / seen


def _sbi(config: SurveyConfig, theta: NDArray[np.float64], log_flux: torch.Tensor, epochs: int) -> tuple[float, float]:
    """Pairs a second of sbi's own loop, its validation passes included, and core-seconds for a million."""
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn

    build = posterior_nn("maf", hidden_features=config.train.hidden_features, num_transforms=config.train.transforms)
    # sbi logs its training into the working directory.
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference = NPE(config.make_prior().torch_distribution(), density_estimator=build, show_progress_bars=False)
        inference.append_simulations(torch.as_tensor(theta, dtype=torch.float32), log_flux)
        start, core = time.perf_counter(), time.process_time()
        inference.train(max_num_epochs=epochs)
        seconds, core_s = time.perf_counter() - start, time.process_time() - core
    seen = inference.summary["epochs_trained"][-1] * int(0.9 * len(theta))
    return seen / seconds, 1e6 * core_s / seen


if __name__ == "__main__":
    main()
