"""Features fitted by least squares: those of the stated posterior, blind to gaps, and wary of what they do not know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.fitted_features import FittedFeatures
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_clean, join_observed, split_observed
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid

GRID = WavelengthGrid(np.arange(3600.0, 8600.0, 40.0))
ELEMENTS, COMPONENTS = len(GRID), 5
SHAPE = 3 * COMPONENTS + 4
"""Coefficients, their variances and precisions, two of those for the amplitude, redshift and misfit."""
NOISE = NoiseConfig(kind="row", calibration_order=3, calibration_width=0.05)
CALIBRATION = 0.05 * np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, ELEMENTS), 3)[:, 1:]
"""Polynomials (wavelength, term) by the standard deviations of their coefficients."""


def spectra(theta: np.ndarray) -> np.ndarray:
    """Spectra (n, wavelength) with a trace of each parameter that no smooth calibration error looks like."""
    mass, *rest = theta.T[:, :, None]
    x = np.linspace(-1, 1, ELEMENTS)
    lines = [np.exp(-0.5 * ((x - centre) / 0.04) ** 2) for centre in (-0.7, -0.3, 0.1, 0.5)]
    shape = sum(0.3 * value * (line - 0.4 * np.roll(line, 9)) for value, line in zip(rest, lines, strict=True))
    return 10 ** (mass - 17) * (1.2 - 0.5 * x) * np.exp(shape)


def simulations(rows: int, seed: int = 0, **observing: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, noiseless flux with redshifts, and theta."""
    rng = np.random.default_rng(seed)
    theta = Prior().from_unit_cube(rng.random((rows, 5)))
    clean = join_clean(spectra(theta), rng.uniform(0.001, 0.6, rows))
    noise = NoiseModel.from_config(NOISE.model_copy(update={"observing": NOISE.observing.model_copy(update=observing)}))
    return noise.on(GRID).draw(clean, rng), clean, theta


def made(rows: int = 3000, seed: int = 0, noise: NoiseConfig = NOISE, **settings: object) -> FittedFeatures:
    features = FittedFeatures(ELEMENTS, TrainConfig(**{"components": COMPONENTS} | settings), Prior(), noise)
    if rows:
        features.fit(*simulations(rows, seed))
    return features


@pytest.fixture(scope="module")
def features():
    return made()


@pytest.fixture(scope="module")
def uncalibrated():
    """Features that know of no calibration errors."""
    return made(noise=NOISE.model_copy(update={"calibration_order": 0}))


def seen(features: FittedFeatures, observed: np.ndarray) -> np.ndarray:
    return features(torch.as_tensor(observed)).numpy()


def before_scaling(features: FittedFeatures, observed: np.ndarray) -> dict[str, np.ndarray]:
    """Amplitudes in the unit of the flux, and features as they are before they are brought to unit variance."""
    found = seen(features, observed).astype(float)
    amplitude = found[:, 0] * float(features.amplitude_std) + float(features.amplitude_mean)
    shape = found[:, 1:] * features.scale.double().numpy() + features.centre.double().numpy()
    variance, precision = np.split(shape[:, COMPONENTS:-2], 2, axis=1)
    return {
        "amplitude": 10**amplitude * float(features.unit),
        "coefficients": shape[:, :COMPONENTS],
        "log_variance": variance[:, 1:],
        "amplitude_log_variance": variance[:, 0],
        "log_precision": precision[:, 1:],
        "amplitude_log_precision": precision[:, 0],
        "redshift": shape[:, -2],
        "log_misfit": shape[:, -1],
    }


def columns_of(features: FittedFeatures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean spectrum (wavelength,), that of the amplitude's error (wavelength, 1), and components (wavelength, K)."""
    mean, basis = features.mean.numpy(), features.basis.numpy()
    return mean, 0.3 * mean[:, None], basis[:, 1 : 1 + COMPONENTS]


def test_features_of_the_training_split_are_white(features):
    observed, _, _ = simulations(3000)
    found = seen(features, observed)
    assert found.shape == (3000, 1 + SHAPE)
    assert features.shape_features == SHAPE
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.2)
    # Those of a spectrum's shape have unit variance under the prior before they are scaled, and noise takes from it.
    spread = before_scaling(features, observed)["coefficients"].std(axis=0)
    assert ((spread > 0.2) & (spread < 1.1)).all()


def in_the_span(features: FittedFeatures, rows: int, error: float) -> tuple[np.ndarray, ...]:
    """Coefficients and amplitudes drawn at random, the spectra that have them, and errors that are all the same."""
    rng = np.random.default_rng(5)
    coefficients, amplitude = rng.normal(size=(rows, COMPONENTS)), 10 ** rng.uniform(-8, -4, rows)
    mean, _, basis = columns_of(features)
    flux = amplitude[:, None] * (mean + coefficients @ basis.T)
    return coefficients, amplitude, flux, error * np.broadcast_to(amplitude[:, None] * mean.mean(), flux.shape)


def test_coefficients_of_spectra_in_the_span_of_the_basis_come_back(features):
    coefficients, amplitude, flux, errors = in_the_span(features, 20, 1e-4)
    redshift = np.linspace(0.01, 0.5, 20)
    found = before_scaling(features, join_observed(flux, 1 / errors, redshift))
    np.testing.assert_allclose(found["amplitude"], amplitude, rtol=1e-4)
    np.testing.assert_allclose(found["coefficients"], coefficients, atol=1e-3)
    np.testing.assert_allclose(found["redshift"], redshift, atol=1e-6)
    assert (found["log_misfit"] < np.log(0.1)).all()


def test_a_calibration_error_is_told_from_the_coefficients_by_those_who_know_of_it(features, uncalibrated):
    moved = []
    for which in (features, uncalibrated):
        coefficients, amplitude, flux, errors = in_the_span(which, 20, 1e-3)
        bent = flux * (1 + 0.04 * np.linspace(-1, 1, ELEMENTS))
        found = before_scaling(which, join_observed(bent, 1 / errors, np.full(20, 0.1)))
        moved.append(np.abs(found["coefficients"] - coefficients).mean())
    assert moved[0] < 0.1
    assert moved[1] > 3 * moved[0]


def first_guess(weight: np.ndarray, flux: np.ndarray, mean: np.ndarray) -> float:
    """Amplitude by weighted least squares, above zero for any noise."""
    among = (weight * mean**2).sum()
    best = (weight * flux * mean).sum() / among
    guess = 0.5 * (best + np.sqrt(best**2 + 4 / among))
    assert guess == pytest.approx(best, rel=0.01)
    return guess


def dense_fit(basis: np.ndarray, covariance: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of coefficients with a standard normal prior, by generalised least squares."""
    inner = basis.T @ np.linalg.solve(covariance, basis) + np.eye(basis.shape[1])
    return np.linalg.solve(inner, basis.T @ np.linalg.solve(covariance, residual)), np.linalg.inv(inner)


def test_coefficients_are_those_of_dense_least_squares_with_the_calibration_marginalised(features):
    observed, _, _ = simulations(15, seed=3)
    flux, inverse, _ = split_observed(observed)
    found = before_scaling(features, observed)
    mean, amplitude, components = columns_of(features)
    columns = np.concatenate([amplitude, components], axis=1)
    plain, guessed, once = 0.0, 0.0, 0.0
    for row in range(15):
        good = inverse[row] > 0
        weight, basis = inverse[row, good] ** 2, columns[good]
        scale = first_guess(weight, flux[row, good], mean[good])
        residual, noise = flux[row, good] / scale - mean[good], np.diag(1 / (weight * scale**2))
        # The calibration multiplies the mean spectrum first, and then the spectrum that was found with it.
        spectrum, fits = mean, []
        for _ in range(2):
            terms = (CALIBRATION * spectrum[:, None])[good]
            noise_and_calibration = noise + terms @ terms.T
            fits.append(dense_fit(basis, noise_and_calibration, residual))
            spectrum = mean + columns @ fits[-1][0]
        expected, covariance = fits[-1]
        factor = 1 + 0.3 * expected[0]
        assert found["amplitude"][row] == pytest.approx(scale * factor, rel=1e-4)
        np.testing.assert_allclose(found["coefficients"][row], expected[1:] / factor, atol=2e-4)
        log_variance = np.log(np.diag(covariance))
        assert found["amplitude_log_variance"][row] == pytest.approx(log_variance[0], abs=1e-4)
        np.testing.assert_allclose(found["log_variance"][row], log_variance[1:], atol=1e-4)
        # Those of A alone, in which nothing is marginalised.
        precision = np.log(np.square(basis / np.sqrt(np.diag(noise))[:, None]).sum(axis=0) + 1)
        assert found["amplitude_log_precision"][row] == pytest.approx(precision[0], abs=1e-4)
        np.testing.assert_allclose(found["log_precision"][row], precision[1:], atol=1e-4)
        every = noise_and_calibration + basis @ basis.T
        misfit = residual @ np.linalg.solve(every, residual) / good.sum()
        assert found["log_misfit"][row] == pytest.approx(np.log(misfit), abs=1e-3)
        plain = max(plain, np.abs(dense_fit(basis, noise, residual)[0][1:] / factor - found["coefficients"][row]).max())
        fixed = dense_fit(components[good], noise_and_calibration, residual)[0]
        guessed = max(guessed, np.abs(fixed - found["coefficients"][row]).max())
        once = max(once, np.abs(fits[0][0] - expected).max())
    assert plain > 0.05
    assert guessed > 0.05
    assert once > 0.02


@pytest.mark.parametrize("error", [0.02, 0.3])
def test_truths_lie_as_far_from_the_coefficients_as_their_errors_say(uncalibrated, error):
    truth, _, flux, errors = in_the_span(uncalibrated, 3000, error)
    noisy = flux + errors * np.random.default_rng(6).normal(size=flux.shape)
    found = before_scaling(uncalibrated, join_observed(noisy, 1 / errors, np.full(3000, 0.1)))
    pull = (found["coefficients"] - truth) / np.exp(0.5 * found["log_variance"])
    np.testing.assert_allclose(pull.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(pull.std(axis=0), 1, atol=0.06)


@pytest.mark.parametrize("width", [0.0, 0.05])
def test_the_amplitudes_error_does_not_leak_into_the_first_coefficient(uncalibrated, width):
    """Rows with the errors, gaps and calibration of a survey."""
    features = made(noise=NOISE.model_copy(update={"calibration_width": width})) if width else uncalibrated
    truth, amplitude, flux, _ = in_the_span(features, 1500, 1.0)
    known = (flux > 0).all(axis=1)
    truth, amplitude, flux = truth[known], amplitude[known], flux[known]
    observing = NOISE.observing.model_copy(update={"snr": (20.0, 60.0), "floor": (1e-4, 1e-4)})
    config = NOISE.model_copy(update={"calibration_width": width, "observing": observing})
    rng = np.random.default_rng(8)
    clean = join_clean(flux, rng.uniform(0.001, 0.6, len(flux)))
    observed = NoiseModel.from_config(config).on(GRID).draw(clean, rng)
    found = before_scaling(features, observed)
    pull = (found["coefficients"] - truth) / np.exp(0.5 * found["log_variance"])
    np.testing.assert_allclose(pull.std(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(pull.mean(axis=0), 0, atol=0.1)
    relative = (found["amplitude"] / amplitude - 1) / (0.3 * np.exp(0.5 * found["amplitude_log_variance"]))
    assert relative.std() == pytest.approx(1, abs=0.06)
    # Were the amplitude taken as it is first guessed, its error would be one of the first coefficient.
    mean, _, components = columns_of(features)
    terms = width / 0.05 * CALIBRATION * mean[:, None]
    leaky = []
    for x, inverse, true in zip(*split_observed(observed)[:2], truth, strict=True):
        good = inverse > 0
        scale = first_guess(inverse[good] ** 2, x[good], mean[good])
        noise = np.diag(1 / (inverse[good] * scale) ** 2) + terms[good] @ terms[good].T
        coefficients, covariance = dense_fit(components[good], noise, x[good] / scale - mean[good])
        leaky.append((coefficients[0] - true[0]) / np.sqrt(covariance[0, 0]))
    assert np.std(leaky) > 2


def test_what_masked_elements_hold_does_not_matter(features):
    observed, _, _ = simulations(50, seed=2)
    masked = split_observed(observed)[1] == 0
    some = masked.any(axis=1)
    assert some.mean() > 0.9
    filled = observed.copy()
    filled[:, :ELEMENTS][masked] = np.random.default_rng(0).normal(0, 1, masked.sum())
    np.testing.assert_array_equal(seen(features, filled), seen(features, observed))
    filled[:, ELEMENTS:-1][masked] = 1e6
    assert (seen(features, filled) != seen(features, observed)).any(axis=1)[some].all()


@pytest.mark.parametrize("factor", [4.0, 23.0, 1e-3])
def test_a_brighter_spectrum_with_larger_errors_has_another_amplitude_alone(features, factor):
    observed, _, _ = simulations(50, seed=2)
    flux, inverse, redshift = split_observed(observed)
    faint, bright = (
        before_scaling(features, o) for o in (observed, join_observed(factor * flux, inverse / factor, redshift))
    )
    np.testing.assert_allclose(bright["amplitude"] / faint["amplitude"], factor, rtol=1e-5)
    for name in set(faint) - {"amplitude"}:
        np.testing.assert_allclose(bright[name], faint[name], atol=1e-5)
    # With the old errors it is another spectrum.
    wrong = before_scaling(features, join_observed(factor * flux, inverse, redshift))
    assert (np.abs(wrong["log_variance"] - faint["log_variance"]).max(axis=1) > 0.1).all()


def test_a_row_alone_is_what_it_is_among_others(features):
    # To the last digits of single precision: those of double precision may depend on its place in a product.
    observed, _, _ = simulations(40, seed=2)
    together = seen(features, observed)
    for row in range(40):
        np.testing.assert_allclose(seen(features, observed[row : row + 1])[0], together[row], rtol=1e-6, atol=1e-6)
    spoilt = observed.copy()
    spoilt[1::2] = 1.0
    np.testing.assert_array_equal(seen(features, spoilt)[::2], together[::2])


@pytest.mark.parametrize("amplitude", ["feature", "centred", "equivariant"])
def test_saved_statistics_give_the_same_features(features, amplitude):
    features = made(600, amplitude=amplitude)
    observed, _, _ = simulations(50, seed=2)
    expected = seen(features, observed)
    fresh, used = made(0, amplitude=amplitude), made(600, seed=7, amplitude=amplitude)
    assert (seen(used, observed) != expected).any()
    for other in (fresh, used):
        other.load_state_dict(features.state_dict())
        np.testing.assert_array_equal(seen(other, observed), expected)
        for mine, its in zip(
            other.centring(torch.as_tensor(expected)), features.centring(torch.as_tensor(expected)), strict=True
        ):
            assert torch.equal(mine, its)
        np.testing.assert_array_equal(
            other.outside(torch.as_tensor(expected)), features.outside(torch.as_tensor(expected))
        )


@pytest.mark.parametrize(("amplitude", "size"), [("feature", 20), ("centred", 20), ("equivariant", 19)])
def test_the_network_sees_the_amplitude_unless_mass_follows_it_by_symmetry(amplitude, size):
    features = made(0, amplitude=amplitude)
    assert features.size == size
    assert 1 + SHAPE == 20
    rows = torch.arange(40.0).reshape(2, 20)
    assert torch.equal(features.context(rows), rows if size == 20 else rows[:, 1:])


def test_rows_like_the_training_split_are_inside_and_others_outside(features):
    def share_outside(observed: np.ndarray) -> float:
        return float(features.outside(torch.as_tensor(seen(features, observed))).float().mean())

    usual, clean, _ = simulations(1000, seed=4)
    assert share_outside(usual) < 0.03
    flux, inverse, redshift = split_observed(usual)
    assert share_outside(join_observed(flux, inverse, redshift + 1)) == 1
    # Without an error floor errors are far below those of any training row.
    sharp, _, _ = simulations(300, seed=4, snr=(3000.0, 5000.0), floor=(1e-9, 1e-9))
    assert share_outside(sharp) == 1
    assert share_outside(join_observed(flux, 10 * inverse, redshift)) > 0.95
    # Another shape than any simulation has.
    wave = 1 + 0.9 * np.sin(np.arange(ELEMENTS))
    assert share_outside(join_observed(flux * wave, inverse, redshift)) > 0.9
    # A mass that is beyond the prior.
    assert share_outside(join_observed(1e8 * flux, 1e-8 * inverse, redshift)) == 1


def test_the_distance_grows_with_what_is_outside(features):
    usual, _, _ = simulations(200, seed=4)
    flux, inverse, redshift = split_observed(usual)
    near, far = (
        features.distance(torch.as_tensor(seen(features, join_observed(flux, inverse, z))))
        for z in (redshift, redshift + 2)
    )
    assert near.median() < 1.5
    assert (far > near).all()


@pytest.mark.parametrize("flux", [-1e-6, 0.0, 1e-6, "mixed"])
@pytest.mark.parametrize("signal_to_noise", [1e-20, 1.0, 1e6, 1e9, 1e20])
def test_features_are_finite_for_any_spectrum_and_the_impossible_is_outside(features, flux, signal_to_noise):
    level = np.where(np.arange(ELEMENTS) % 2, -1e-6, 2e-6) if flux == "mixed" else np.full(ELEMENTS, flux)
    inverse = np.full(ELEMENTS, signal_to_noise / 1e-6)
    found = seen(features, join_observed(level, inverse, np.array(0.1))[None])
    assert np.isfinite(found).all()
    if signal_to_noise >= 1e6:
        assert features.outside(torch.as_tensor(found)).all()


def test_features_are_finite_for_errors_that_have_nothing_to_do_with_the_flux(features):
    rng = np.random.default_rng(0)
    flux = 1e-6 * rng.normal(1, 0.5, (400, ELEMENTS))
    inverse = 1e6 * 10 ** rng.uniform(-5, 15, (400, 1)) * np.ones(ELEMENTS)
    inverse[np.arange(400), rng.integers(ELEMENTS, size=400)] *= 10 ** rng.uniform(0, 12, 400)
    found = seen(features, join_observed(flux, inverse, np.full(400, 0.1)))
    assert np.isfinite(found).all()
    sharp = inverse[:, 0] > 1e9
    assert features.outside(torch.as_tensor(found[sharp])).all()


def test_a_row_without_data_and_a_stand_in_have_finite_features(features):
    nothing = join_observed(np.zeros((1, ELEMENTS)), np.zeros((1, ELEMENTS)), np.array([0.1]))
    for row in (nothing, np.ones_like(nothing)):
        assert np.isfinite(seen(features, row)).all()
    found = before_scaling(features, nothing)
    for name in ("log_variance", "log_precision", "amplitude_log_variance", "amplitude_log_precision"):
        np.testing.assert_allclose(found[name], 0, atol=1e-5)


def test_half_precision_around_them_leaves_features_whole(features):
    observed, _, _ = simulations(20, seed=2)
    expected = seen(features, observed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(seen(features, observed), expected)
