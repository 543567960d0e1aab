"""Importance weights of 1,000 draws a galaxy, one core: the spectra, the noise's likelihood and the weights' figures.

What the network adds, drawing and its density, is measured by benchmarks.sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._form import finish, parser, repeat
from digs_survey.config import NoiseConfig, load_config
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import weigh
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel

DRAWS = 1_000
NOISES = {
    "fractional": NoiseConfig(),
    "photons and read-out": NoiseConfig(kind="catalog", fraction=0.02, poisson_share=0.5),
    "correlated": NoiseConfig(kernel=(1.0, 0.3)),
}


def main() -> None:
    options = parser("importance", __doc__ or "")
    options.add_argument("--source", default="bc03", choices=("bc03", "fsps"), help="(default: %(default)s)")
    args = options.parse_args()
    galaxies, times = (8, 3) if args.quick else (32, 7)
    config = load_config("digs2022", [f"model.source={args.source}"])
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    model = BatchedModel.from_config(config.model, prior, grid)
    rng = np.random.default_rng(1)
    centre = 0.1 + 0.8 * rng.random((galaxies, 1, prior.ndim))
    theta = prior.from_unit_cube(np.clip(centre + 0.03 * rng.normal(size=(galaxies, DRAWS, prior.ndim)), 0, 1))
    flux = NoiseModel.from_config(NOISES["fractional"]).draw(model.spectra(theta[:, 0]), rng)
    good, ivar = np.ones(flux.shape, dtype=bool), (0.05 * flux) ** -2.0
    log_weights = SpectrumLikelihood(model, NoiseModel.from_config(NOISES["fractional"]))(theta, flux, good)

    def likelihood(noise: NoiseModel) -> None:
        SpectrumLikelihood(model, noise)(theta, flux, good, noise.errors_of(flux, ivar, good))

    def spectra() -> None:
        for draws in theta:
            model.spectra(draws)

    def figures() -> None:
        weigh(theta, log_weights, config.map.quantiles)

    steps: dict[str, Callable[[], None]] = {
        "spectra alone": spectra,
        "weights' figures alone": figures,
        **{
            f"likelihood, {name} noise": partial(likelihood, NoiseModel.from_config(noise))
            for name, noise in NOISES.items()
        },
    }
    with threadpool_limits(limits=1):
        seconds = dict(zip(steps, repeat(list(steps.values()), times), strict=True))
    first = f"likelihood, {next(iter(NOISES))} noise"
    whole = [galaxies / (a + b) for a, b in zip(seconds[first], seconds["weights' figures alone"], strict=True)]
    shares = {
        name: [a / b - 1 for a, b in zip(seconds[f"likelihood, {name} noise"], seconds["spectra alone"], strict=True)]
        for name in NOISES
    }
    finish(
        f"Importance weights of {DRAWS} draws a galaxy, {args.source}, {len(grid)} elements, one core",
        [
            *((name, [1e3 * s / galaxies for s in found], "ms/galaxy") for name, found in seconds.items()),
            *((f"{name} noise over its spectra", share, "") for name, share in shares.items()),
            ("likelihood and figures, fractional noise", whole, "galaxies/s"),
        ],
        {
            "benchmark": "importance",
            "source": args.source,
            "draws": DRAWS,
            "cores": 1,
            "repeats": times,
            "galaxies_per_s": statistics.median(whole),
            "noise_over_spectra": {name: statistics.median(share) for name, share in shares.items()},
        },
        args.json,
    )


if __name__ == "__main__":
    main()
