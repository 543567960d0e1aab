"""Noise of photometry: drawn as it is stated, and of the same density in the likelihood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from row_noise import ELEMENTS, QUIET, dense_covariance, row_noise, spectra
from scipy.stats import multivariate_normal

from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.noise.observation import join_clean, join_observed, split_observed
from digs_survey.noise.row_noise import RowNoise

FILTERS = ("sdss_u0", "sdss_g0", "sdss_r0", "wise_w1")
WHOLE = {"missing_band": 0.0, "without_photometry": 0.0, "without_spectrum": 0.0}


def noise_of(observing: dict[str, object] | None = None, **settings: object) -> RowNoise:
    photometry = PhotometryConfig(filters=FILTERS, **settings)
    made = row_noise(QUIET if observing is None else observing)
    return replace(made, config=made.config.model_copy(update={"photometry": photometry}))


def drawn(noise: RowNoise, rows: int, seed: int = 1) -> tuple[np.ndarray, ...]:
    """Noiseless maggies, then observed ones and their inverse errors, and whether a row has a spectrum."""
    rng = np.random.default_rng(seed)
    flux, redshift = spectra(rows)
    maggies = flux.mean(axis=1, keepdims=True) * rng.uniform(0.3, 3, (rows, len(FILTERS)))
    observed = noise.draw(join_clean(np.hstack([flux, maggies]), redshift), rng)
    seen, inverse, _ = split_observed(observed)
    return maggies, seen[:, ELEMENTS:], inverse[:, ELEMENTS:], (inverse[:, :ELEMENTS] > 0).any(axis=1), redshift


def test_errors_are_those_of_the_settings():
    maggies, seen, inverse, _, redshift = drawn(noise_of(floor=0.1, snr=(5.0, 500.0), **WHOLE), 20_000)
    counted = noise_of().bands.bands.counted(redshift)
    np.testing.assert_array_equal(inverse > 0, counted)
    # W1 sees more than 2.5 micron at rest of near galaxies.
    assert counted[:, 1:3].all()
    assert 0.05 < counted[:, 3].mean() < 0.2
    residual = ((seen - maggies) * inverse)[counted]
    # The floor follows the observed flux: where noise is up, so is the error. That makes a floor's share of sigma.
    assert -0.11 < residual.mean() < -0.05
    assert residual.std() == pytest.approx(1, abs=0.05)
    # No band has a smaller error than its floor.
    assert (1 / inverse[counted] >= 0.1 * seen[counted] * (1 - 1e-12)).all()
    own = np.sqrt(np.clip(1 / inverse[:, 1:3] ** 2 - (0.1 * np.clip(seen[:, 1:3], 0, None)) ** 2, 0, None))
    ratio = np.log(own[:, 0] / own[:, 1])
    assert np.median(ratio) == pytest.approx(0, abs=0.05)
    assert np.diff(np.quantile(ratio, [0.16, 0.84])) / 2 == pytest.approx(0.7 * np.sqrt(2), rel=0.1)


def test_rows_lack_bands_photometry_or_spectrum_as_often_as_asked():
    noise = noise_of(missing_band=0.2, without_photometry=0.3, without_spectrum=0.25)
    _, _, inverse, with_spectrum, _ = drawn(noise, 20_000)
    without_photometry = ~(inverse > 0).any(axis=1)
    assert with_spectrum.mean() == pytest.approx(0.75, abs=0.02)
    # A row that lacks all of its bands by chance has none either.
    assert without_photometry.mean() == pytest.approx(0.3, abs=0.03)
    assert (inverse[~without_photometry, 1] > 0).mean() == pytest.approx(0.8, abs=0.02)
    assert not (without_photometry & ~with_spectrum).mean() > 0.01


def test_spectra_are_observed_as_they_are_without_photometry():
    flux, redshift = spectra(50)
    rng = np.random.default_rng(3)
    plain, noise = row_noise(), noise_of({}, **WHOLE)
    uniform = rng.random((50, plain.conditions + ELEMENTS))
    normal = rng.standard_normal((50, plain.normals(ELEMENTS)))
    expected = plain.observe_with(join_clean(flux, redshift), uniform, normal)
    bands = len(FILTERS)
    more = np.insert(normal, [ELEMENTS] * bands, rng.standard_normal((50, bands)), axis=1)
    wider = np.hstack([uniform, rng.random((50, noise.conditions + bands - plain.conditions))])
    both = join_clean(np.hstack([flux, flux[:, :bands]]), redshift)
    found = noise.observe_with(both, wider, more)
    seen, inverse, _ = split_observed(found)
    np.testing.assert_array_equal(seen[:, :ELEMENTS], split_observed(expected)[0])
    np.testing.assert_array_equal(inverse[:, :ELEMENTS], split_observed(expected)[1])
    on_torch = noise.observe_with(*(torch.as_tensor(values) for values in (both, wider, more)))
    np.testing.assert_allclose(on_torch.numpy(), found, rtol=1e-9, atol=1e-15)


def test_twice_as_bright_has_twice_the_errors():
    flux, redshift = spectra(40)
    noise = noise_of({})
    both = np.hstack([flux, flux[:, : len(FILTERS)]])
    one, two = (noise.draw(join_clean(f * both, redshift), np.random.default_rng(4)) for f in (1.0, 2.0))
    (seen, inverse, _), (seen2, inverse2, _) = split_observed(one), split_observed(two)
    np.testing.assert_allclose(seen2, 2 * seen, rtol=1e-12)
    np.testing.assert_allclose(inverse2, inverse / 2, rtol=1e-12)


def test_the_likelihood_is_that_of_the_dense_covariance(monkeypatch):
    rng = np.random.default_rng(5)
    elements, bands = 9, len(FILTERS)
    noise = replace(noise_of(), grid=None)
    model = rng.uniform(1, 3, (3, elements + bands))
    inverse = rng.uniform(3, 30, elements + bands)
    inverse[[2, 10]] = 0.0
    good = inverse > 0
    observed = join_observed(np.where(good, model[0] * rng.normal(1, 0.1, good.size), 0.0), inverse, np.array(0.2))
    spectrum = join_observed(observed[:elements], inverse[:elements], np.array(0.2))
    expected = []
    for flux in model:
        covariance = np.diag(1 / np.where(good, inverse, 1.0) ** 2)[np.ix_(good, good)]
        inside = dense_covariance(spectrum, flux[:elements], good[:elements], noise.config)
        covariance[: len(inside), : len(inside)] = inside
        expected.append(multivariate_normal(flux[good], covariance).logpdf(observed[: good.size][good]))
    np.testing.assert_allclose(noise.log_likelihood(observed, model), expected, rtol=1e-10)
    chi2, density = noise.goodness(observed, model)
    np.testing.assert_allclose(density, expected, rtol=1e-10)
    np.testing.assert_allclose(np.nansum(noise.residuals(observed, model) ** 2, axis=1), chi2, rtol=1e-9)
    # No calibration polynomial reaches the bands.
    np.testing.assert_array_equal(noise.calibrated(observed, model)[:, elements:], model[:, elements:])
    monkeypatch.setenv("DIGS_SURVEY_PLAIN_SAMPLER", "1")
    np.testing.assert_allclose(noise._goodness(observed, model)[1], expected, rtol=1e-10)


def test_photometry_alone_has_a_likelihood():
    noise = replace(noise_of(), grid=None)
    model = np.array([[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 8.0]])
    inverse = np.array([0.0, 0.0, 0.0, 10.0, 10.0, 0.0, 10.0])
    observed = join_observed(np.where(inverse > 0, model[0], 0.0), inverse, np.array(0.2))
    density = noise.log_likelihood(observed, model)
    assert density[0] == pytest.approx(3 * (np.log(10) - 0.5 * np.log(2 * np.pi)))
    assert density[0] - density[1] == pytest.approx(0.5 * 100 * (1 + 4 + 16))


def test_redrawn_rows_have_the_errors_of_the_row():
    noise = noise_of({}, **WHOLE)
    flux, redshift = spectra(30)
    clean = np.hstack([flux, np.repeat(flux[:, :1], len(FILTERS), axis=1)])
    observed = noise.draw(join_clean(clean, redshift), np.random.default_rng(6))
    normal = np.random.default_rng(7).standard_normal((30, noise.normals(clean.shape[1])))
    again = noise.redraw(clean, observed, normal, None)
    np.testing.assert_array_equal(split_observed(again)[1], split_observed(observed)[1])
    inverse = split_observed(observed)[1][:, ELEMENTS:]
    changed = (split_observed(again)[0] - clean)[:, ELEMENTS:] * inverse
    np.testing.assert_allclose(changed[inverse > 0], normal[:, ELEMENTS:-6][inverse > 0], rtol=1e-6, atol=1e-9)
