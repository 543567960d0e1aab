"""Whether the audit finds planted faults: its power for each, and how often it calls a right posterior wrong.

Each trial is an audit of its own: simulations, draws of their posteriors with a fault planted in them, ranks of all
kinds, one verdict. First on a linear Gaussian problem, whose posterior is known, then on the spectra of digs2022 with
the posterior that ships with the package. That posterior is an approximation, slightly off, and the more simulations
an audit has the more often they show it: how often it is called wrong as it is stands by itself. The false alarms on
spectra are of its draws resampled by their importance weights, which are those of the exact posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._form import finish, parser
from benchmarks._linear_gaussian import NAMES, NOISE, LinearGaussian
from digs_survey.audit.calibration.calibration import calibrate
from digs_survey.audit.calibration.faults import Fault, pairing_fault, standard_faults
from digs_survey.config import ModelConfig, NoiseConfig
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import log_ratios
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.sps.batched import BatchedModel

WRONG_NOISE = 1.2
"""The data's noise over that which the posterior was made for."""
_RESAMPLED = 3
"""Draws of which one is kept."""

Simulate = Callable[[np.random.Generator, float], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Truths and draws of the posterior, for a generator and a factor on the noise of the data."""


def main() -> None:
    options = parser("power", __doc__ or "")
    options.add_argument("--trials", type=int, help="audits for each fault (default: 200)")
    options.add_argument("--simulations", type=int, help="of each audit (default: 1,000)")
    options.add_argument("--no-spectra", action="store_true", help="the linear Gaussian problem only")
    args = options.parse_args()
    trials = args.trials or (20 if args.quick else 200)
    simulations, draws = args.simulations or (500 if args.quick else 1_000), 200
    problem = LinearGaussian()

    def gaussian(rng: np.random.Generator, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return problem.simulate(rng, simulations, draws, noise * NOISE)

    pairing = pairing_fault(lambda n: np.random.default_rng(2).normal(size=(n, len(NAMES))))
    faults = [*standard_faults(NAMES), pairing]
    rows = [("linear Gaussian", name, share) for name, share in shares(gaussian, problem, NAMES, faults, trials)]
    if not args.no_spectra and not args.quick:
        posterior = FrozenPosterior.load(shipped()["digs2022"])
        prior = posterior.prior
        pairing = pairing_fault(lambda n: draw_theta(prior, 7, "pairing", 0, n))
        faults = [*standard_faults(prior.names), pairing]
        spectra = SpectraProblem(posterior, simulations, draws)
        rows += [
            ("spectra", AS_IT_IS if name == NOTHING else name, share)
            for name, share in shares(spectra, prior, prior.names, faults, trials)
        ]
        rows += [("spectra", *row) for row in shares(spectra.weighted, prior, prior.names, [], trials, noise=False)]
    power = [row for row in rows if row[1] not in (NOTHING, AS_IT_IS)]
    false_alarm = {problem: share for problem, name, share in rows if name == NOTHING}
    finish(
        f"{trials} audits for each fault, of {simulations} simulations with {draws} draws",
        [
            (f"{problem}: {name}", [share], {NOTHING: "false alarms", AS_IT_IS: "called wrong"}.get(name, "power"))
            for problem, name, share in rows
        ],
        {
            "benchmark": "power",
            "trials": trials,
            "simulations": simulations,
            "draws": draws,
            "false_alarm": false_alarm,
            "shipped_called_wrong": next((share for _, name, share in rows if name == AS_IT_IS), None),
            "min_power": min(share for *_, share in power),
            "faults": [
                {"problem": problem, "fault": name, "power": share, "false_alarm": false_alarm[problem]}
                for problem, name, share in power
            ],
        },
        args.json,
    )


NOTHING = "nothing planted"
AS_IT_IS = "the posterior as it ships"


def shares(
    simulate: Simulate,
    prior: Any,
    names: tuple[str, ...],
    faults: list[Fault],
    trials: int,
    *,
    noise: bool = True,
) -> Iterator[tuple[str, float]]:
    """Share of audits that call the posterior wrong: right ones, with each fault, and for data of another noise."""
    found: dict[str, int] = {}
    for trial in range(trials):
        rng = np.random.default_rng([trial, 1])
        theta, draws = simulate(rng, 1.0)
        planted = {NOTHING: (theta, draws)} | {f.name: (theta, f.plant(draws, rng)) for f in faults}
        if noise:
            planted[f"noise {WRONG_NOISE - 1:.0%} above what was assumed"] = simulate(rng, WRONG_NOISE)
        for name, (truth, wrong) in planted.items():
            audit = calibrate(truth, wrong, prior=prior, uniform=rng.random((len(truth), len(names) + 1)))
            found[name] = found.get(name, 0) + (not audit.summary(names)["verdict"]["calibrated"])
    for name, count in found.items():
        yield name, count / trials


class SpectraProblem:
    """Simulations of digs2022 and draws of the posterior that ships with the package."""

    def __init__(self, posterior: FrozenPosterior, simulations: int, draws: int) -> None:
        self.posterior, self.simulations, self.draws = posterior, simulations, draws
        about = ModelConfig.model_validate(posterior.card["model"])
        self.model = BatchedModel.from_config(about, posterior.prior, posterior.grid)

    def __call__(self, rng: np.random.Generator, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw truths, observe their spectra with a factor on the noise, and draw posteriors for the usual noise."""
        theta, seen = self._observe(rng, noise)
        return theta, self.posterior.sample(seen, self.draws)

    def weighted(self, rng: np.random.Generator, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As above, with draws of the exact posterior: resampled from more of them, by their importance weights."""
        theta, seen = self._observe(rng, noise)
        draws = self.posterior.sample(seen, _RESAMPLED * self.draws)
        likelihood = SpectrumLikelihood.of_posterior(self.posterior)
        log_weights = log_ratios(self.posterior, likelihood, draws, seen, np.ones(seen.shape, dtype=bool))
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        steps = (np.arange(self.draws) + rng.random((len(theta), 1))) / self.draws
        chosen = [
            np.searchsorted(row, step).clip(max=row.size - 1) for row, step in zip(cumulative, steps, strict=True)
        ]
        return theta, np.take_along_axis(draws, np.array(chosen)[..., None], axis=1)

    def _observe(self, rng: np.random.Generator, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        config = self.posterior.noise.config
        other = NoiseModel.from_config(NoiseConfig(**config.model_dump() | {"fraction": noise * config.fraction}))
        prior = self.posterior.prior
        theta = prior.from_unit_cube(rng.random((self.simulations, prior.ndim)))
        flux = self.model.spectra(theta).astype(np.float32).astype(float)
        return theta, other.draw(flux, rng)


if __name__ == "__main__":
    main()
