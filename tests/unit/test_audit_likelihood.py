from __future__ import annotations

import numpy as np
import pytest
from noises import KINDS, Case

from digs_survey.audit.mcmc.target import GalaxyPosterior
from digs_survey.config import NoiseConfig
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior

PRIOR, WAVE = Prior(), np.linspace(4000, 7000, 30)


class Simulator:
    def __init__(self):
        self.calls = 0

    def spectra(self, theta):
        self.calls += len(theta)
        mass, slope, share = (theta[:, [k]] for k in range(3))
        return 10 ** (mass - 19) * (1 + share * (WAVE / 5000) ** slope)


def galaxy(name: str, masked: bool):
    case, rng = Case(name, WAVE.size), np.random.default_rng(0)
    models = case.flux * rng.uniform(0.7, 1.4, (20, WAVE.size))
    good = np.arange(WAVE.size) % 7 != 0 if masked else np.ones(WAVE.size, dtype=bool)
    observed = np.abs(case.noise.draw(case.flux, rng))
    observed[~good] = np.nan
    return case, observed, models, good


def prospectors(case: Case, observed, model, good) -> float:
    """What prospect.likelihood gives for the uncertainty that the noise has about the model."""
    from prospect.likelihood import lnlike_spec

    obs = {"wavelength": WAVE, "mask": good}
    if not case.logarithmic:
        return lnlike_spec(model, obs=obs | {"spectrum": observed, "unc": case.noise.sigma(model, case.errors)})
    unc = np.full(WAVE.size, np.log10(1 + case.noise.config.fraction))
    density = lnlike_spec(np.log10(model), obs=obs | {"spectrum": np.log10(observed), "unc": unc})
    # From a density per dex to one per unit of flux.
    return density - np.log(observed[good] * np.log(10)).sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_equals_the_density_that_simulations_are_drawn_from(name, masked):
    case, observed, models, good = galaxy(name, masked)
    posterior = GalaxyPosterior(Simulator(), case.noise, PRIOR, observed, good, case.errors)
    expected = case.noise.log_likelihood(observed, models, good, case.errors)
    assert np.isfinite(expected).all()
    assert posterior.log_likelihood(models).tolist() == expected.tolist()
    alone = [posterior.log_likelihood(model[None])[0] for model in models]
    assert alone == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith("white")])
def test_equals_prospectors_where_noise_is_white(name, masked):
    case, observed, models, good = galaxy(name, masked)
    posterior = GalaxyPosterior(Simulator(), case.noise, PRIOR, observed, good, case.errors)
    expected = [prospectors(case, observed, model, good) for model in models]
    assert posterior.log_likelihood(models).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-8)


def test_adds_the_prior():
    simulator, noise = Simulator(), NoiseModel.from_config(NoiseConfig())
    theta = PRIOR.from_unit_cube(np.full((3, 5), [[0.4], [0.5], [0.6]]))
    observed, good = noise.draw(simulator.spectra(theta[:1]), np.random.default_rng(0))[0], np.ones(30, bool)
    posterior = GalaxyPosterior(simulator, noise, PRIOR, observed, good)
    expected = noise.log_likelihood(observed, simulator.spectra(theta)) + PRIOR.log_prob(theta)
    assert posterior(theta).tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_outside_the_prior_the_model_is_not_asked():
    simulator, noise = Simulator(), NoiseModel.from_config(NoiseConfig())
    posterior = GalaxyPosterior(simulator, noise, PRIOR, np.ones(30), np.ones(30, bool))
    middle = 0.5 * (PRIOR.low + PRIOR.high)
    for k in range(5):
        for bound, step in ((PRIOR.low, -1e-9), (PRIOR.high, 1e-9)):
            theta = np.stack([middle, middle])
            theta[:, k] = bound[k] + step
            assert (posterior(theta) == -np.inf).all()
    assert simulator.calls == 0
    mixed = posterior(np.stack([PRIOR.low, PRIOR.high + 1, PRIOR.high]))
    assert np.isfinite(mixed).tolist() == [True, False, True]
    assert simulator.calls == 2


@pytest.mark.parametrize("kernel", [[1.0], [1.0, 0.3]])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_spectrum_that_is_not_positive_and_finite_has_no_likelihood(bad, kernel):
    noise = NoiseModel.from_config(NoiseConfig(kernel=kernel))
    good = np.ones(30, bool)
    posterior = GalaxyPosterior(Simulator(), noise, PRIOR, np.ones(30), good)
    model = np.ones(30)
    model[3] = bad
    assert posterior.log_likelihood(model[None]).tolist() == [-np.inf]
    masked = GalaxyPosterior(Simulator(), noise, PRIOR, np.ones(30), np.arange(30) != 3)
    assert np.isfinite(masked.log_likelihood(model[None])).all()
