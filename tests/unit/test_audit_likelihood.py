import numpy as np
import pytest

from digs_survey.audit.likelihood import ProspectorPosterior
from digs_survey.config import NoiseConfig
from digs_survey.parameters import Prior
from digs_survey.simulate.noise import NoiseModel

PRIOR, WAVE = Prior(), np.linspace(4000, 7000, 30)


class Simulator:
    def __init__(self):
        self.calls = 0

    def spectrum(self, theta):
        self.calls += 1
        return 10 ** (theta[0] - 19) * (1 + theta[2] * (WAVE / 5000) ** theta[1])


CASES = [
    NoiseConfig(),
    NoiseConfig(fraction=0.2, space="log10"),
    NoiseConfig(kind="catalog", fraction=0.05),
]


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.kind}-{c.space}")
def test_equals_the_density_that_simulations_are_drawn_from(config):
    rng = np.random.default_rng(0)
    relative = rng.uniform(0.02, 0.2, WAVE.size) if config.kind == "catalog" else None
    noise = NoiseModel.from_config(config, relative=None if relative is None else relative[None])
    simulator, good = Simulator(), np.arange(WAVE.size) % 7 != 0
    observed = noise.draw(simulator.spectrum(PRIOR.from_unit_cube(np.full(5, 0.5))), rng)
    observed[~good] = np.nan
    posterior = ProspectorPosterior(simulator, noise, PRIOR, WAVE, observed, good, relative)
    for theta in PRIOR.from_unit_cube(rng.uniform(0.4, 0.6, (20, 5))):
        model = simulator.spectrum(theta)
        expected = noise.log_likelihood(observed, model, good, relative)
        assert posterior.log_likelihood(model) == pytest.approx(float(expected), rel=1e-10, abs=1e-10)
        assert posterior(theta) == pytest.approx(float(expected + PRIOR.log_prob(theta)), rel=1e-10)


def test_outside_the_prior_the_model_is_not_asked():
    simulator, noise = Simulator(), NoiseModel.from_config(NoiseConfig())
    posterior = ProspectorPosterior(simulator, noise, PRIOR, WAVE, np.ones(30), np.ones(30, bool))
    middle = 0.5 * (PRIOR.low + PRIOR.high)
    for k in range(5):
        for bound, step in ((PRIOR.low, -1e-9), (PRIOR.high, 1e-9)):
            theta = middle.copy()
            theta[k] = bound[k] + step
            assert posterior(theta) == -np.inf
    assert simulator.calls == 0
    assert np.isfinite(posterior(PRIOR.low))
    assert simulator.calls == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_spectrum_that_is_not_positive_and_finite_has_no_likelihood(bad):
    noise = NoiseModel.from_config(NoiseConfig())
    good = np.ones(30, bool)
    posterior = ProspectorPosterior(Simulator(), noise, PRIOR, WAVE, np.ones(30), good)
    model = np.ones(30)
    model[3] = bad
    assert posterior.log_likelihood(model) == -np.inf
    good[3] = False
    masked = ProspectorPosterior(Simulator(), noise, PRIOR, WAVE, np.ones(30), good)
    assert np.isfinite(masked.log_likelihood(model))
