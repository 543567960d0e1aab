"""Posterior draws: our sampler against sbi's own on the same network, one core, percentiles left out.

Both draw the same number of samples for the same spectra. The network is the paper's (25 x 10, no embedding)
or the preset quick's; its weights are random, which costs the same as trained ones.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks._form import finish, parser, repeat
from digs_survey.config import load_config
from digs_survey.estimator.loop import prepare_estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.simulate.noise import NoiseModel
from digs_survey.spectra import WavelengthGrid

DRAWS = 1_000


def main() -> None:
    options = parser("sample", __doc__ or "")
    options.add_argument("--preset", default="digs2022", help="whose network (default: %(default)s)")
    args = options.parse_args()
    galaxies, sbi_galaxies, times = (50, 10, 3) if args.quick else (400, 50, 7)
    torch.set_num_threads(1)

    config = load_config(args.preset)
    prior, grid, noise = (
        config.make_prior(),
        WavelengthGrid.from_config(config.grid),
        NoiseModel.from_config(config.noise),
    )
    rng = np.random.default_rng(1)
    theta = prior.from_unit_cube(rng.random((2_000, prior.ndim)))
    flux = _spectra(theta, grid, rng)
    estimator = prepare_estimator(config, theta, flux, noise).eval()
    with tempfile.TemporaryDirectory() as folder:
        posterior = FrozenPosterior.freeze(Path(folder), [estimator], config, grid, noise, training={})
    features = estimator.features(torch.as_tensor(flux))

    @torch.no_grad()
    def theirs() -> None:
        v = estimator.flow.sample((DRAWS,), estimator.features.context(features[:sbi_galaxies]))
        centre, scale = estimator.features.centring(features[:sbi_galaxies])
        estimator.features.coordinates.to_theta((v * scale + centre).numpy())

    ours_s, theirs_s = repeat([lambda: posterior.sample(flux[:galaxies], DRAWS), theirs], times)
    ours_rate = [galaxies / s for s in ours_s]
    theirs_rate = [sbi_galaxies / s for s in theirs_s]
    ratios = [a / b for a, b in zip(ours_rate, theirs_rate, strict=True)]
    network = f"{config.train.hidden_features} x {config.train.transforms}"
    finish(
        f"{DRAWS} draws a galaxy from a {network} flow, one core; against sbi's own sampling of the same flow",
        [
            ("ours", ours_rate, "galaxies/s"),
            ("sbi", theirs_rate, "galaxies/s"),
            ("ratio", ratios, ""),
        ],
        {
            "benchmark": "sample",
            "network": network,
            "draws": DRAWS,
            "cores": 1,
            "repeats": times,
            "galaxies_per_s": statistics.median(ours_rate),
            "sbi_galaxies_per_s": statistics.median(theirs_rate),
            "ratio": statistics.median(ratios),
        },
        args.json,
    )


def _spectra(theta: np.ndarray, grid: WavelengthGrid, rng: np.random.Generator) -> np.ndarray:
    """Make smooth spectra of the right shape and scale; the cost of drawing does not depend on them."""
    slope = rng.normal(size=(len(theta), 4)) @ np.vander(np.linspace(-1, 1, len(grid)), 4).T
    return (10 ** (theta[:, :1] - 17 + 0.3 * slope)).astype(np.float32)


if __name__ == "__main__":
    main()
