"""Stretches that simulations lack: as many, as long and as evenly spread as asked, filled as a catalog's are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noises import KINDS, Case

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.gaps import fill, fill_flux
from digs_survey.catalog.prepare import prepare
from digs_survey.config import MissingConfig
from digs_survey.estimator.training.fresh_noise import noisy_rows
from digs_survey.noise.missing import missing_elements

ELEMENTS = 60


def stretches(row: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def lost(config: MissingConfig, rows: int = 40_000) -> np.ndarray:
    return missing_elements(config, np.random.default_rng(0).random((rows, config.columns)), ELEMENTS)


def test_stretches_are_as_asked():
    missing = lost(MissingConfig(probability=0.3, stretches=1, elements=(3, 7)))
    some = missing.any(axis=1)
    assert some.mean() == pytest.approx(0.3, abs=0.01)
    found = [stretches(row) for row in missing[some]]
    assert {len(row) for row in found} == {1}
    inside = [b - a for ((a, b),) in found if a > 0 and b < ELEMENTS]
    assert set(inside) == {3, 4, 5, 6, 7}
    assert np.bincount(inside)[3:] / len(inside) == pytest.approx([0.2] * 5, abs=0.03)
    # An element at an end is as likely to be missing as one in the middle.
    share = missing.mean(axis=0)
    np.testing.assert_allclose(share, share.mean(), rtol=0.15)


def test_up_to_as_many_stretches_as_asked():
    missing = lost(MissingConfig(probability=1.0, stretches=3, elements=(1, 1)))
    count = missing.sum(axis=1)
    assert count.min() == 1
    assert count.max() == 3
    # Two of three stretches of one element in sixty seldom fall on the same.
    assert np.bincount(count)[1:] / len(count) == pytest.approx([1 / 3] * 3, abs=0.04)


def test_numbers_next_to_one_stay_on_the_grid():
    config = MissingConfig(probability=1.0, stretches=2, elements=(2, 5))
    for number in (0.0, np.nextafter(1, 0)):
        missing = missing_elements(config, np.full((1, config.columns), number), ELEMENTS)
        assert missing.sum() == 1
        assert missing[0, 0 if number == 0 else -1]


def test_fill_is_numpys_interpolation_to_the_bit():
    rng = np.random.default_rng(1)
    values, known = rng.lognormal(size=(300, 25)), rng.random((300, 25)) > rng.random((300, 1))
    element = np.arange(25)
    known[5] = False
    filled, flux = fill(values, known), fill_flux(values, known)
    for row in range(300):
        use = known[row]
        if not use.any():
            assert np.isnan(filled[row]).all()
            np.testing.assert_array_equal(flux[row], values[row])
            continue
        np.testing.assert_array_equal(filled[row], np.interp(element, element[use], values[row, use]))
        log = np.interp(element, element[use], np.log(values[row, use]))
        np.testing.assert_array_equal(flux[row], np.where(use, values[row], np.exp(log)))


@pytest.mark.parametrize("probability", [0.0, 0.7])
@pytest.mark.parametrize("features", ["log10", "asinh"])
@pytest.mark.parametrize("name", KINDS)
def test_training_is_shown_what_prepared_rows_hold(name, features, probability):
    gaps = {"missing": {"probability": probability, "stretches": 2, "elements": [2, 12]}}
    case, whole = Case(name, ELEMENTS, features, **gaps), Case(name, ELEMENTS)
    keeps = case.noise.keeps_negative
    spectra = torch.tensor(np.broadcast_to(case.flux, (400, ELEMENTS)), dtype=torch.float32)
    seen = noisy_rows(spectra, case.noise, 1, "test").numpy()
    noisy = noisy_rows(spectra, whole.noise, 1, "test").numpy()
    assert seen.dtype == np.float32
    good = seen == noisy
    assert good.any(axis=1).all()
    lost = ~good if keeps else ~good & (noisy > 0)
    assert lost.any(axis=1).mean() == pytest.approx(probability, abs=0.1)
    rows = CatalogRows(
        flux=noisy.astype(float),
        ivar=np.ones(seen.shape),
        good=good,
        redshift=np.full(400, 1e-5),
        galaxy_id=np.arange(400),
        quality=np.zeros(400, dtype=np.int64),
        maggies=np.zeros((400, 0)),
        maggies_ivar=np.zeros((400, 0)),
    )
    ready = prepare(rows, "rest", 1e-5, 0.01, keeps_negative=keeps)
    np.testing.assert_allclose(seen, ready.flux, rtol=1e-5, atol=1e-6 * case.flux.max())
    np.testing.assert_array_equal(ready.good, good)
    drawn = case.noise.draw(np.broadcast_to(case.flux, (400, ELEMENTS)), np.random.default_rng(0))
    assert (drawn > 0).all() == ((noisy > 0).all() or not keeps)


def test_asinh_features_keep_negative_flux_but_not_where_noise_is_in_its_log():
    kept = {name: Case(name, ELEMENTS, "asinh").noise.keeps_negative for name in KINDS}
    assert kept == {name: not name.startswith("log10") for name in KINDS}
    case = Case("constant-white", ELEMENTS, "asinh", missing={"probability": 1.0, "elements": [5, 5]})
    noisy = np.linspace(-3, 3, ELEMENTS)[None]
    seen = case.noise.apply_missing(noisy, np.array([[0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(seen, noisy, atol=1e-12)
    noisy[0, 30] = 1e3
    assert (case.noise.apply_missing(noisy, np.array([[0.5, 0.5, 0.5]])) != noisy).sum() == 5


def test_rows_of_negative_flux_do_not_become_nan():
    case = Case("constant-white", ELEMENTS, "log10", missing={"probability": 1.0, "elements": [5, 30]})
    noisy = -np.ones((3, ELEMENTS))
    noisy[1, 7] = 2.0
    seen = case.noise.apply_missing(noisy, np.full((3, 3), 0.5))
    np.testing.assert_array_equal(seen[[0, 2]], -1.0)
    np.testing.assert_array_equal(seen[1], 2.0)
