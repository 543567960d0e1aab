"""Features of spectrum, photometry, or both: one fit, the same alone and in batches, blind to what a row lacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from digs_survey.config import NoiseConfig, TrainConfig, load_config
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.errors import StageError
from digs_survey.estimator.features import build_features
from digs_survey.estimator.fitted_features import FittedFeatures
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.paired_features import PairedFeatures
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.estimator.training.training_data import Simulations
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import CleanSpectra, join_observed, split_observed
from digs_survey.parameters import SPEC_NORM
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands, redshift_nodes

GRID = WavelengthGrid(np.arange(3800.0, 7000.0, 40.0))
FILTERS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_z0")
REDSHIFT = (0.02, 0.3)
BANDS = Bands(FILTERS, REDSHIFT)
ELEMENTS, COUNT, COMPONENTS = len(GRID), len(FILTERS), 4
LAST = 3 * COMPONENTS + 4
"""Features before those that photometry adds."""


def noise_config(**photometry: object) -> NoiseConfig:
    observing = {"redshift": REDSHIFT, "blue_end_angstrom": (3600, 3700), "floor": (0.005, 0.01)}
    return NoiseConfig(
        kind="row",
        calibration_order=2,
        calibration_width=0.05,
        observing=observing,
        photometry=PhotometryConfig(filters=FILTERS, snr=(10.0, 100.0), **photometry),
    )


def noise_of(config: NoiseConfig) -> NoiseModel:
    return NoiseModel.from_config(config).on(GRID)


@pytest.fixture(scope="module")
def free():
    """A prior with ``spec_norm``."""
    return Prior({SPEC_NORM: (0.1, 1.5)})


def galaxy(wavelength: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Spectra (n, element) of galaxies, each parameter with a trace of its own."""
    mass, metals, dust, age = theta.T[:4, :, None]
    x = np.log(wavelength / 5000)
    metals, dust, age = (value / np.abs(value).max() for value in (metals, dust, age))
    line = np.exp(-0.5 * ((wavelength - 4861) / 60) ** 2) - np.exp(-0.5 * ((wavelength - 5175) / 60) ** 2)
    return 10 ** (mass - 27) * np.exp(-1.5 * dust * x - 0.8 * age * np.tanh((4000 - wavelength) / 200) + metals * line)


def simulations(where: Prior, rows: int, seed: int = 0) -> tuple[np.ndarray, CleanSpectra]:
    """Parameters, and noiseless spectra with light."""
    rng = np.random.default_rng(seed)
    theta = where.from_unit_cube(rng.random((rows, where.ndim)))
    redshift, light = rng.uniform(*REDSHIFT, rows), galaxy(BANDS.grid.wavelength, theta)
    norm = theta[:, where.index(SPEC_NORM), None] if SPEC_NORM in where.names else 1.0
    return theta, CleanSpectra(norm * galaxy(GRID.wavelength, theta), redshift, BANDS.maggies(light, redshift), light)


def drawn(where: Prior, rows: int, seed: int = 0, **photometry: object) -> tuple[np.ndarray, np.ndarray, CleanSpectra]:
    """Observations, parameters, and noiseless spectra."""
    theta, clean = simulations(where, rows, seed)
    noise = noise_of(noise_config(**photometry))
    return noise.draw(clean[slice(0, rows)], np.random.default_rng(seed + 1)), theta, clean


def made(where: Prior, rows: int = 2000) -> PairedFeatures:
    network = TrainConfig(components=COMPONENTS, whitening="least_squares", amplitude="equivariant")
    features = build_features(ELEMENTS, network, where, noise_config())
    assert isinstance(features, PairedFeatures)
    if rows:
        observed, theta, clean = drawn(where, rows)
        features.fit(observed, clean[slice(0, rows)], theta, clean.light)
    return features


@pytest.fixture(scope="module")
def features(free):
    return made(free)


def seen(features: FittedFeatures, observed: np.ndarray) -> np.ndarray:
    return features(torch.as_tensor(observed)).numpy()


def raw(features: FittedFeatures, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (n,) in the unit of the flux, and features (n, k) before they are scaled."""
    found = seen(features, observed).astype(float)
    amplitude = found[:, 0] * float(features.amplitude_std) + float(features.amplitude_mean)
    shape = found[:, 1:] * features.scale.double().numpy() + features.centre.double().numpy()
    return 10**amplitude * float(features.unit), shape


def part_of(observed: np.ndarray, kind: str) -> np.ndarray:
    """The same rows with their spectrum or their photometry alone."""
    flux, inverse, redshift = (np.array(part) for part in split_observed(observed))
    gone = {"spectrum": slice(ELEMENTS, None), "photometry": slice(0, ELEMENTS), "both": slice(0, 0)}[kind]
    flux[:, gone] = inverse[:, gone] = 0
    return join_observed(flux, inverse, redshift)


WHOLE = {"missing_band": 0.0, "without_photometry": 0.0, "without_spectrum": 0.0}


def test_maggies_are_linear_between_the_nodes_of_a_table():
    light = galaxy(BANDS.grid.wavelength, simulations(Prior(), 5)[0])
    nodes, table = redshift_nodes(REDSHIFT), BANDS.table(light.T)
    assert nodes[0] <= REDSHIFT[0]
    assert nodes[-1] >= REDSHIFT[1]
    redshift = np.random.default_rng(1).uniform(*REDSHIFT, 5)
    for row in range(5):
        between = [np.interp(np.log1p(redshift[row]), np.log1p(nodes), table[:, band, row]) for band in range(COUNT)]
        expected = BANDS.maggies(light[row : row + 1], redshift[row : row + 1])[0]
        np.testing.assert_allclose(np.array(between) / (1 + redshift[row]), expected, rtol=1e-9)


def test_no_filters_no_change(free):
    network = TrainConfig(components=COMPONENTS, whitening="least_squares")
    plain = NoiseConfig(kind="row")
    assert type(build_features(ELEMENTS, network, Prior(), plain)) is FittedFeatures
    assert made(free, 0).shape_features == LAST + 2 + 1 + COUNT
    assert made(Prior(), 0).shape_features == LAST + 1 + COUNT


@pytest.mark.parametrize("kind", ["spectrum", "photometry", "both"])
def test_a_row_alone_is_what_it_is_among_others(features, free, kind):
    observed = part_of(drawn(free, 40, 5)[0], kind)
    together = seen(features, observed)
    assert np.isfinite(together).all()
    for row in range(40):
        alone = seen(features, observed[row : row + 1])[0]
        np.testing.assert_allclose(alone, together[row], rtol=2e-6, atol=2e-6)


def test_features_tell_which_bands_and_how_much_of_a_spectrum_have_data(features, free):
    observed = drawn(free, 300, 7, missing_band=0.3)[0]
    inverse = split_observed(observed)[1]
    found = raw(features, observed)[1][:, LAST + 2 :]
    np.testing.assert_allclose(found[:, 0], (inverse[:, :ELEMENTS] > 0).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found[:, 1:], inverse[:, ELEMENTS:] > 0, atol=1e-6)
    assert (0.1 < found.mean(axis=0)).all()
    assert (found.mean(axis=0) < 0.9).all()


def test_spec_norm_is_measured_where_a_row_has_both_and_is_the_priors_elsewhere(features, free):
    observed, theta, _ = drawn(free, 1500, 9, **WHOLE)
    truth = np.log(theta[:, free.index(SPEC_NORM)])
    log_norm, log_variance = raw(features, observed)[1][:, LAST : LAST + 2].T
    pull = (log_norm - truth) / np.exp(0.5 * log_variance)
    assert abs(np.median(pull)) < 0.4
    assert 0.7 < np.diff(np.quantile(pull, [0.16, 0.84]))[0] / 2 < 1.3
    assert np.median(np.exp(0.5 * log_variance)) < 0.15
    points = np.log(0.1 + 1.4 * (np.arange(1000) + 0.5) / 1000)
    for kind in ("spectrum", "photometry"):
        log_norm, log_variance = raw(features, part_of(observed, kind))[1][:, LAST : LAST + 2].T
        np.testing.assert_allclose(log_norm, points.mean(), atol=1e-5)
        np.testing.assert_allclose(log_variance, 2 * np.log(points.std()), atol=1e-5)


def test_the_mass_goes_with_the_light_and_not_with_the_share_of_it_in_the_spectrum(features, free):
    observed, theta, _ = drawn(free, 1500, 11, **WHOLE)
    scatter = {}
    for kind in ("spectrum", "photometry", "both"):
        amplitude, _ = raw(features, part_of(observed, kind))
        scatter[kind] = (np.log10(amplitude) - theta[:, free.index("logmass")]).std()
    assert scatter["photometry"] < 0.1
    assert scatter["both"] < 0.1
    # That of spec_norm comes to it.
    assert scatter["spectrum"] > 0.2


@pytest.mark.parametrize("kind", ["spectrum", "photometry", "both"])
@pytest.mark.parametrize("factor", [8.0, 1e-3])
def test_a_brighter_galaxy_with_larger_errors_has_another_amplitude_alone(features, free, kind, factor):
    flux, inverse, redshift = split_observed(part_of(drawn(free, 50, 3)[0], kind))
    amplitude, shape = raw(features, join_observed(flux, inverse, redshift))
    bright, same = raw(features, join_observed(factor * flux, inverse / factor, redshift))
    some = (inverse > 0).any(axis=1)
    np.testing.assert_allclose(bright[some] / amplitude[some], factor, rtol=1e-5)
    np.testing.assert_allclose(same[some], shape[some], atol=2e-5)


@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("kind", ["spectrum", "photometry", "both"])
def test_coefficients_are_those_of_dense_least_squares(features, free, kind, with_norm):
    where = free if with_norm else Prior()
    features = features if with_norm else made(where)
    observed = part_of(drawn(where, 12, 13, **WHOLE)[0], kind)
    amplitude, shape = raw(features, observed)
    flux, inverse, redshift = split_observed(observed)
    unit, band_unit = float(features.unit), features.band_unit.numpy()
    scale = np.r_[np.full(ELEMENTS, unit), band_unit]
    of_bands = features._at(torch.as_tensor(redshift)).numpy()
    place = np.linspace(-1, 1, ELEMENTS)
    for row in range(12):
        good = inverse[row] > 0
        mean = np.r_[features.mean.numpy(), of_bands[row, :, 0]]
        basis = np.concatenate([features.basis.numpy(), of_bands[row, :, 1:]])
        both = kind == "both" and with_norm
        nuisance = 0.05 * np.polynomial.chebyshev.chebvander(place, 2)
        nuisance[:, 0] = 0.3 * both
        nuisance = np.pad(nuisance, [(0, COUNT), (0, 0)])
        # What the fit was made over, of its own results.
        more = 1 + 0.3 * _first_coefficient(features, observed[row : row + 1])
        guess = amplitude[row] / unit / more
        norm = np.ones(ELEMENTS + COUNT)
        if with_norm:
            norm[:ELEMENTS] = _first_norm(features, observed[row : row + 1], guess)
        x = flux[row] / scale / guess / norm - mean
        weight = np.square(inverse[row] * scale * guess * norm)
        spectrum = mean
        for _ in range(2):
            columns = np.concatenate([basis, nuisance * spectrum[:, None]], axis=1)[good]
            inner = columns.T @ (weight[good, None] * columns) + np.eye(columns.shape[1])
            found = np.linalg.solve(inner, columns.T @ (weight[good] * x[good]))
            spectrum = mean + basis @ found[: 1 + COMPONENTS]
        np.testing.assert_allclose(shape[row, :COMPONENTS], found[1 : 1 + COMPONENTS] / more, atol=2e-4)
        variance = np.diag(np.linalg.inv(inner))
        np.testing.assert_allclose(
            shape[row, COMPONENTS : 2 * COMPONENTS + 1], np.log(variance[: 1 + COMPONENTS]), atol=2e-4
        )
        if with_norm and both:
            term = 1 + COMPONENTS
            expected = np.log(norm[0] * (1 + 0.3 * found[term])), np.log(0.09 * variance[term])
            np.testing.assert_allclose(shape[row, LAST : LAST + 2], expected, atol=2e-4)


def _first_coefficient(features: PairedFeatures, observed: np.ndarray) -> float:
    """That of the amplitude's error, from the fit of the row."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        fit = features._least_squares
        patch.setattr(features, "_least_squares", lambda *what: kept.append(fit(*what)) or kept[-1])
        seen(features, observed)
    return float(kept[0].coefficients[0, 0])


def _first_norm(features: PairedFeatures, observed: np.ndarray, amplitude: float) -> float:
    """First guess of spec_norm: amplitude of the spectrum over that of the light, or the prior's middle."""
    flux, inverse, _ = split_observed(observed[0])
    if not (inverse[:ELEMENTS] > 0).any() or not (inverse[ELEMENTS:] > 0).any():
        return float(np.exp(features.norm.mean))
    mean, unit = features.mean.numpy(), float(features.unit)
    weight = (inverse[:ELEMENTS] * unit) ** 2
    among = (weight * mean**2).sum()
    best = (weight * flux[:ELEMENTS] * mean).sum() / unit / among
    of_spectrum = 0.5 * (best + np.sqrt(best**2 + 4 / among))
    return float(np.clip(of_spectrum / amplitude, 0.1, 1.5))


def test_saved_statistics_give_the_same_features(features, free):
    observed = drawn(free, 30, 2)[0]
    fresh = made(free, 0)
    fresh.load_state_dict(features.state_dict())
    np.testing.assert_array_equal(seen(fresh, observed), seen(features, observed))


def test_rows_without_data_stand_ins_and_wild_redshifts_have_finite_features(features):
    nothing = np.zeros((1, 2 * (ELEMENTS + COUNT) + 1))
    for redshift in (0.1, -5.0, 100.0, np.nan):
        observed = nothing.copy()
        observed[:, -1] = redshift
        assert np.isfinite(np.delete(seen(features, observed), 3 * COMPONENTS + 3, axis=1)).all()
    assert np.isfinite(seen(features, np.ones_like(nothing))).all()


@pytest.mark.parametrize("signal_to_noise", [1e-20, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("flux", [-1.0, 0.0, 1.0])
def test_features_are_finite_for_any_row(features, flux, signal_to_noise):
    scale = np.r_[np.full(ELEMENTS, float(features.unit)), features.band_unit.numpy()]
    observed = np.r_[flux * scale, signal_to_noise / scale, 0.1][None]
    assert np.isfinite(seen(features, observed)).all()


@pytest.fixture(scope="module")
def config():
    settings = {
        "noise.kind": "'row'",
        "noise.calibration_order": 2,
        "noise.observing.redshift": list(REDSHIFT),
        "photometry.filters": list(FILTERS),
        "photometry.snr": [10.0, 100.0],
        "model.age": "'tage_tuniv'",
        "prior.spec_norm": "{ low = 0.1, high = 1.5 }",
        "train.whitening": "'least_squares'",
        "train.components": COMPONENTS,
        "train.amplitude": "'equivariant'",
        "train.hidden_features": 8,
        "train.transforms": 1,
        "train.embedding_features": 8,
    }
    return load_config(None, [f"{key}={value}" for key, value in settings.items()])


def test_a_frozen_posterior_has_the_features_that_training_gave_the_light_of_its_simulations(config, tmp_path):
    where = config.make_prior()
    theta, clean = simulations(where, 1200)
    noise = noise_of(config.noise)
    estimator = prepare_estimator(config, theta, clean, noise)
    assert isinstance(estimator.features, PairedFeatures)
    assert estimator.features.shape_features == LAST + 2 + 1 + COUNT
    observed = noise.draw(simulations(where, 300, 21)[1][slice(0, 300)], np.random.default_rng(2))
    found = seen(estimator.features, observed)
    np.testing.assert_allclose(found[:, :LAST].std(axis=0), 1, atol=0.5)
    frozen = freeze_posterior(tmp_path, [estimator], config, GRID, noise, training={})
    np.testing.assert_array_equal(frozen._features(torch.as_tensor(observed)).numpy(), found)
    for kind in ("spectrum", "photometry", "both"):
        draws = frozen.sample(part_of(observed[:10], kind), 16)
        assert draws.shape == (10, 16, where.ndim)
        assert np.isfinite(where.log_prob(draws)).all()
    with pytest.raises(ValueError, match="light"):
        estimator.features.fit(observed, clean[slice(0, 300)], theta[:300])


def test_maggies_of_a_band_that_does_not_count_may_be_any_number_but_the_spectrum_not(free):
    theta, clean = simulations(free, 20)
    maggies, rows = clean.photometry.copy(), np.arange(0, 20, 3)
    maggies[3, 0] = 0.0
    ((_, flux),) = Simulations(theta, replace(clean, photometry=maggies), free).gather(rows)
    assert flux[1, ELEMENTS] == 0
    np.testing.assert_array_equal(Simulations(theta, clean, free).light(rows), clean.light[rows].astype(np.float32))
    maggies[3, 0] = np.nan
    dark = replace(clean, flux=np.where(np.arange(20)[:, None] == 5, 0.0, clean.flux))
    for wrong in (replace(clean, photometry=maggies), dark):
        with pytest.raises(StageError, match="1 of 20 simulations"):
            Simulations(theta, wrong, free).gather(rows)
