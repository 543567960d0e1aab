"""The table of faults: which rows count as biased, what is said of the worst, and rows with faults in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from digs_survey.audit.sensitivity.fault_table import NO_FAULT, Sensitivity, _sensitivity, worst_faults
from digs_survey.audit.sensitivity.simulated_faults import ALL_FAULTS, Simulator, _known, faulty_rows
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.noise.observation import split_observed

SHIPPED = Path(__file__).parents[2] / "digs_survey" / "pretrained"


@pytest.fixture(scope="module", params=["survey", "digs2022"])
def simulator(request):
    """One whose spectra are given: the model's would take seconds."""
    posterior = FrozenPosterior.load(SHIPPED / request.param)
    found = Simulator(posterior, None, 6, 3, 0.05)
    rng = np.random.default_rng(0)
    theta = posterior.prior.from_unit_cube(rng.random((6, posterior.prior.ndim)))
    clean = 1e-8 * (1 + 0.3 * np.sin(posterior.grid.wavelength / 300)) * np.ones((6, 1))
    if posterior.noise.config.by_row:
        clean = np.concatenate([clean, np.full((6, 1), 0.2)], axis=1)
    found.__dict__["drawn"] = (theta, clean)
    return found


def test_every_fault_has_a_name_that_is_known(simulator):
    names = simulator.posterior.prior.names
    absent = {"line spread 1.75 times as wide" if "sigma_smooth" in names else "line spread wider than the prior"}
    if "tage" not in names:
        absent.add("older than the prior")
    assert set(_known(simulator)) == set(ALL_FAULTS) - absent
    with pytest.raises(ValueError, match="found a step of 11 %"):
        next(faulty_rows(simulator, ("a step of 11 %",)))


def test_faults_change_what_they_name_and_nothing_else(simulator):
    by_row = simulator.posterior.noise.config.by_row
    rows = simulator.plain.rows
    elements = rows.good.shape[1]
    step = np.where(np.arange(elements) > 60, 0.9, 1.0) * np.ones((6, 1))
    stepped = simulator.times(step)
    np.testing.assert_allclose(stepped.spectrum, rows.spectrum * step, rtol=1e-12)
    np.testing.assert_allclose(stepped.ivar * step**2, rows.ivar, rtol=1e-12)
    lost = np.arange(elements) < 40
    gap = simulator.without(np.broadcast_to(lost, rows.good.shape))
    assert not gap.good[:, :40].any()
    np.testing.assert_array_equal(gap.good[:, 40:], rows.good[:, 40:])
    np.testing.assert_array_equal(gap.spectrum[gap.good], rows.spectrum[gap.good])
    assert np.isfinite(gap.flux).all()
    if by_row:
        assert not split_observed(gap.flux)[1][:, :40].any()


def test_noise_is_as_many_times_what_it_is_taken_for(simulator):
    clean = simulator.drawn[1]
    noise = simulator.posterior.noise
    scatter = []
    for factor in (0.5, 1.0, 2.0):
        rows = simulator.observe(clean, factor)
        errors = noise.errors_of(rows.flux, rows.ivar, rows.good)
        model = clean[:, : rows.good.shape[1]]
        scatter.append(np.nanstd(noise.residuals(rows.flux, model, rows.good, errors)))
    np.testing.assert_allclose(scatter, (0.5, 1.0, 2.0), rtol=0.1)


def test_rows_that_were_biased_before_do_not_count():
    posterior = type("Posterior", (), {"prior": type("P", (), {"ndim": 2, "names": ("a", "b")})})
    pulls = np.array([[4.0, 0], [0, 5], [0, 6], [1, 1], [np.nan, 0]])
    flagged = np.array([True, False, True, True, False])
    found = _sensitivity("x", posterior, (pulls, flagged), np.array([4.0, 0, 0, 0, 0]), "inside")
    assert (found.rows, found.biased, found.flagged) == (4, 0.5, 0.75)
    assert (found.flagged_of_biased, found.worst, found.unnoticed) == (0.5, "b", 0.25)
    nothing = _sensitivity("x", posterior, (pulls[3:], flagged[3:]), np.zeros(2), "inside")
    assert (nothing.flagged_of_biased, nothing.interval, nothing.unnoticed) == (None, None, 0)


def test_the_worst_are_named_first():
    def one(fault, biased, caught, verdict="inside"):
        return Sensitivity(fault, 100, biased, 0.5, caught, None, None, verdict).to_dict()

    found = [one(NO_FAULT, 0.5, 0.0), one("little", 0.1, 0.9), one("much", 0.4, 0.5), one("seen", 0.9, 1.0)]
    line = worst_faults(found)
    assert "by: much (20% of the rows), little (1% of the rows). Rule" in line
    assert NO_FAULT not in line
    assert "seen" not in line
    assert "check of the survey" not in line
    both = worst_faults([*found, one("shared", 0.2, 0.5, "not described")])
    assert both.startswith(line)
    assert both.endswith("where all rows have them: shared (10% of the rows).")
    assert (
        worst_faults([one("seen", 0.9, 1.0)]) == "Every simulated row that one of the faults biases gets a quality bit."
    )
