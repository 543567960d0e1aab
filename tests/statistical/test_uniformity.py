"""The audit's verdict passes the exact posterior as often as it says, and catches one that is wrong in any way."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from benchmarks._linear_gaussian import NAMES, NOISE, LinearGaussian
from digs_survey.audit.calibration.calibration import calibrate
from digs_survey.audit.calibration.conditional import bin_summary, bin_tests, split
from digs_survey.audit.calibration.faults import pairing_fault, standard_faults
from digs_survey.audit.calibration.uniformity import SIGNIFICANCE, departures, joint_fractions

PROBLEM = LinearGaussian()
SIMULATIONS, DRAWS = 600, 200


def audit(theta, draws, rng):
    return calibrate(theta, draws, prior=PROBLEM, uniform=rng.random((len(theta), 6))).summary(NAMES)


def verdicts(trials, plant=lambda draws, rng: draws, noise=NOISE):
    found = []
    for trial in range(trials):
        rng = np.random.default_rng([5, trial])
        theta, draws = PROBLEM.simulate(rng, SIMULATIONS, DRAWS, noise)
        found.append(audit(theta, plant(draws, rng), rng)["verdict"])
    return found


def test_a_right_posterior_passes_in_95_of_100_audits():
    found = verdicts(100)
    # It is meant to in 98; of 100 such audits 5 fail in one of twenty choices of the seeds.
    assert sum(not verdict["calibrated"] for verdict in found) <= 5
    # The correction of so many tests is not so strong that nothing could ever fail.
    pvalues = np.array([verdict["pvalue"] for verdict in found])
    assert (pvalues < 0.5).mean() > 0.2
    assert all(verdict["calibrated"] == (verdict["pvalue"] > SIGNIFICANCE) for verdict in found)


PAIRING = pairing_fault(lambda n: np.random.default_rng(2).normal(size=(n, 5)), pool=100_000)


@pytest.mark.parametrize("fault", [*standard_faults(NAMES), PAIRING], ids=lambda fault: fault.name)
def test_every_planted_fault_is_found_with_power_above_90_percent(fault):
    found = verdicts(10, fault.plant)
    assert sum(not verdict["calibrated"] for verdict in found) >= 9
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_a_wrong_noise_level_is_found(factor):
    assert not any(verdict["calibrated"] for verdict in verdicts(5, noise=factor * NOISE))


def test_each_kind_of_test_finds_its_own_fault():
    faults = {fault.name: fault for fault in standard_faults(NAMES)}

    def kinds(name):
        (verdict,) = verdicts(1, faults[name].plant)
        return {(found["kind"], found["quantity"]) for found in verdict["found"]}

    assert ("rank", "b") in kinds("b shifted by 0.3 sigma")
    assert ("distance", "all") in kinds("20 % too narrow")
    lost = kinds("b without correlation")
    assert any(kind == "pair" and "b" in quantity.split(" x ") for kind, quantity in lost)
    assert not {("rank", name) for name in NAMES} & lost


def test_departures_are_those_that_were_planted():
    rng = np.random.default_rng(1)
    theta, draws = PROBLEM.simulate(rng, 4000, 400)
    middle = np.median(draws, axis=1, keepdims=True)
    width = draws.std(axis=1, keepdims=True)
    found = audit(theta, middle + 1.3 * (draws - middle) + 0.4 * width, rng)["departures"]
    for name in NAMES:
        assert found["shift_sigma"][name] == pytest.approx(0.4, abs=4 * found["shift_sigma_error"][name])
        assert found["width_factor"][name] == pytest.approx(1.3, abs=4 * found["width_factor_error"][name])
        assert 0 < found["width_factor_error"][name] < 0.02
    # The errors are those of many trials.
    many = np.random.default_rng(2).random((300, 500, 2))
    values = [departures(one) for one in many]
    for name in ("shift_sigma", "width_factor"):
        scatter = np.std([value[name] for value in values], axis=0)
        assert scatter == pytest.approx(np.mean([value[f"{name}_error"] for value in values], axis=0), rel=0.15)


def test_joint_fractions_by_hand():
    rng = np.random.default_rng(4)
    theta, draws = PROBLEM.simulate(rng, 3, 50)
    fractions = joint_fractions(theta, draws)
    assert fractions.shape == (3, 11)
    for simulation in range(3):
        everyone = np.vstack([theta[simulation], draws[simulation]])
        deviation = everyone - everyone.mean(axis=0)
        distance = np.einsum("si,ij,sj->s", deviation, np.linalg.inv(np.cov(deviation.T)), deviation)
        products = [deviation[:, i] * deviation[:, j] for i, j in itertools.combinations(range(5), 2)]
        expected = [((q[1:] < q[0]).sum() + 0.5) / 51 for q in (distance, *products)]
        np.testing.assert_allclose(fractions[simulation], expected)
    # Draws that coincide in a direction say nothing about it.
    flat = draws.copy()
    flat[..., 2] = theta[:, None, 2]
    assert np.isfinite(joint_fractions(theta, flat)).all()


def test_a_fault_that_averages_out_is_found_in_bins():
    rng = np.random.default_rng(3)
    place, z = rng.random(2000), rng.normal(size=2000)
    fraction = stats.norm.cdf(z * np.where(place < 0.5, 0.75, 1.32))
    assert stats.kstest(np.abs(2 * fraction - 1), "uniform").pvalue > 0.01
    tests = {test.kind: test.pvalue for test in bin_tests(place, fraction, "median", "a")}
    assert tests["spread by median"] < 1e-6
    assert tests["rank by median"] > 0.01
    bins = bin_summary(place, fraction)
    assert [entry["simulations"] for entry in bins] == [400] * 5
    assert bins[0]["low"] == place.min()
    assert bins[-1]["high"] == place.max()
    assert bins[0]["coverage"] > 0.75 > 0.6 > bins[-1]["coverage"]
    assert bins[0]["width_factor"] == pytest.approx(1 / 0.75, rel=0.12)


def test_no_bins_of_what_does_not_vary_or_is_not_known():
    assert split(np.full(500, 20.0)) == []
    assert split(np.full(500, np.nan)) == []
    assert split(np.arange(99.0)) == []
    assert [len(members) for members in split(np.arange(101.0))] == [21, 20, 20, 20, 20]
    assert bin_tests(np.full(500, 20.0), np.random.default_rng(0).random(500), "S/N", "a") == []
