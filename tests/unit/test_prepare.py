"""Catalog rows become posterior input: amplitude, fills, bits, and no row that touches another."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.cosmology import WMAP9

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.prepare import PreparedRows, prepare, reference_factor
from digs_survey.errors import CatalogError
from digs_survey.quality import QualityFlag

ZRED = 1e-5


def make_rows(n: int = 5, elements: int = 20) -> CatalogRows:
    rng = np.random.default_rng(1)
    flux = 1e-17 * np.exp(np.linspace(0, 2, elements)) * rng.uniform(0.5, 2, (n, 1))
    return CatalogRows(
        flux=flux,
        ivar=1 / (0.05 * flux) ** 2,
        good=np.ones((n, elements), dtype=bool),
        redshift=np.linspace(0.02, 0.1, n),
        galaxy_id=np.arange(n),
        quality=np.zeros(n, dtype=np.int64),
        maggies=np.zeros((n, 0)),
        maggies_ivar=np.zeros((n, 0)),
    )


def run(rows: CatalogRows, **how: bool) -> PreparedRows:
    return prepare(rows, "rest", ZRED, 0.8, **how)


def test_reference_factor() -> None:
    factor = reference_factor([ZRED, 0.1, 0.03, 0.1], ZRED)
    assert factor[0] == 1.0
    assert factor[1] == factor[3]
    # near z = 0 the distance is c z / H0, and it grows with a first-order term (1 + (1 - q0) z / 2)
    hubble = 299_792.458 / WMAP9.H0.value
    distance = np.sqrt(factor[2]) * hubble * ZRED
    q0 = 0.5 * WMAP9.Om0 - WMAP9.Ode0
    assert distance == pytest.approx(hubble * 0.03 * (1 + 0.015 * (1 - q0)), rel=1e-3)


def test_amplitude_and_signal_to_noise() -> None:
    rows = make_rows()
    ready = run(rows)
    expected = rows.flux * reference_factor(rows.redshift, ZRED)[:, None]
    np.testing.assert_allclose(ready.flux, expected, rtol=1e-14)
    np.testing.assert_allclose(ready.flux * np.sqrt(ready.ivar), 20.0, rtol=1e-12)
    assert ready.n_good.tolist() == [20] * 5
    assert not ready.quality.any()


def test_fill_is_exact_for_a_power_law_in_the_elements() -> None:
    rows = make_rows()
    truth = run(rows).flux
    rows.flux[1, 7] = np.nan
    rows.flux[1, 12] = -1e-17
    rows.ivar[1, 8] = 0.0
    rows.good[1, 3] = False
    ready = run(rows)
    np.testing.assert_allclose(ready.flux, truth, rtol=1e-12)
    assert np.flatnonzero(~ready.good[1]).tolist() == [3, 7, 8, 12]
    assert (ready.ivar[1] == 0).tolist() == (~ready.good[1]).tolist()
    flags = QualityFlag.NONFINITE_FLUX | QualityFlag.BAD_IVAR | QualityFlag.NONPOSITIVE_FLUX
    flags |= QualityFlag.FILLED_ELEMENTS
    assert ready.quality.tolist() == [0, flags, 0, 0, 0]


def test_negative_flux_is_data_where_it_is_kept() -> None:
    rows = make_rows()
    rows.flux[1, 12] = -1e-17
    rows.flux[2] = -rows.flux[2]
    rows.flux[3, :] = np.linspace(-1, 1, 20) * 1e-17
    rows.good[3, [5, 19]] = False
    rows.flux[4, 7] = np.inf
    ready = run(rows, keeps_negative=True)
    factor = reference_factor(rows.redshift, ZRED)[:, None]
    filled, bad = QualityFlag.FILLED_ELEMENTS, QualityFlag.NONFINITE_FLUX
    assert ready.quality.tolist() == [0, 0, 0, filled, filled | bad]
    assert ready.n_good.tolist() == [20, 20, 20, 18, 19]
    np.testing.assert_array_equal(ready.flux[:3], (rows.flux * factor)[:3])
    np.testing.assert_allclose(ready.ivar[:3], (rows.ivar / factor**2)[:3])
    # Fills are linear in flux, through zero.
    expected = rows.flux[3] * factor[3]
    np.testing.assert_allclose(ready.flux[3, :19], expected[:19], rtol=1e-12)
    assert ready.flux[3, 19] == ready.flux[3, 18]
    assert run(rows).quality[2] & QualityFlag.NONPOSITIVE_FLUX


def test_a_masked_end_takes_the_nearest_good_value() -> None:
    rows = make_rows()
    rows.good[0, :2] = False
    ready = run(rows)
    assert ready.flux[0, 0] == ready.flux[0, 1] == pytest.approx(ready.flux[0, 2])


@pytest.mark.parametrize("redshift", [np.nan, np.inf, 0.0, -0.1, 50.0])
def test_bad_redshift_has_no_posterior(redshift: float) -> None:
    rows = make_rows()
    rows.redshift[2] = redshift
    ready = run(rows)
    assert ready.quality.tolist() == [0, 0, QualityFlag.BAD_REDSHIFT, 0, 0]
    np.testing.assert_array_equal(ready.flux[2], 1.0)


def test_good_fraction_is_the_limit() -> None:
    rows = make_rows()
    rows.good[0, :4] = False  # 16 of 20 is just enough
    rows.good[1, :5] = False
    ready = run(rows)
    assert ready.quality.tolist() == [QualityFlag.FILLED_ELEMENTS, QualityFlag.FEW_GOOD_ELEMENTS, 0, 0, 0]
    np.testing.assert_array_equal(ready.flux[1], 1.0)
    assert ready.n_good.tolist() == [16, 15, 20, 20, 20]


def test_a_garbage_row_leaves_its_neighbours_to_the_byte() -> None:
    clean = run(make_rows())
    rows = make_rows()
    rows.flux[2] = np.resize([np.nan, np.inf, -1e300, 0.0, 1e308], 20)
    rows.ivar[2] = np.resize([np.inf, -1.0, np.nan, 0.0], 20)
    rows.redshift[2] = np.nan
    ready = run(rows)
    others = [0, 1, 3, 4]
    for name in ("flux", "ivar", "good", "quality"):
        assert getattr(ready, name)[others].tobytes() == getattr(clean, name)[others].tobytes()
    assert np.isfinite(ready.flux).all()
    assert (ready.flux > 0).all()
    assert np.isfinite(ready.ivar).all()


def test_flux_that_overflows_the_amplitude_is_not_good() -> None:
    rows = make_rows()
    rows.flux[3] = 1e305
    ready = run(rows)
    assert ready.quality[3] & QualityFlag.FEW_GOOD_ELEMENTS
    assert np.isfinite(ready.flux).all()


def test_bits_of_the_catalog_are_kept() -> None:
    rows = make_rows()
    rows.quality[4] = QualityFlag.DUPLICATE_ID
    assert run(rows).quality.tolist() == [0, 0, 0, 0, QualityFlag.DUPLICATE_ID]


def test_observed_frame_is_refused() -> None:
    with pytest.raises(CatalogError, match="observed"):
        prepare(make_rows(), "observed", ZRED, 0.8)
