"""Photometry of a catalog's rows, and its section of the configuration."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.catalog.photometry import PhotometryColumns
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid

GRID = WavelengthGrid(np.arange(4000.0, 4400.0, 50.0))
FILTERS = ("sdss_g0", "sdss_r0", "twomass_J")
NMGY = {"units": "nmgy"}


def catalog(folder, rows=4, **columns):
    shape = rows, len(GRID)
    write_catalog(
        folder / "c.zarr",
        grid=GRID,
        flux=np.ones(shape),
        ivar=np.ones(shape),
        mask=np.zeros(shape, dtype=np.uint8),
        redshift=np.full(rows, 0.1),
        galaxy_id=np.arange(rows),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
        columns=columns,
        rows_per_shard=2,
    )
    return Catalog.open(folder / "c.zarr")


def band(name, flux, ivar, attrs=NMGY, ivar_attrs=None):
    return {f"phot_{name}": (np.array(flux), attrs), f"phot_{name}_ivar": (np.array(ivar), ivar_attrs or {})}


def test_fluxes_of_any_unit_are_read_as_maggies(tmp_path):
    rng = np.random.default_rng(1)
    flux, ivar = rng.uniform(1, 9, (2, 4)), rng.uniform(1, 9, (2, 4))
    opened = catalog(
        tmp_path,
        **band("sdss_g0", flux[0], ivar[0], ivar_attrs={"units": "nmgy-2"}),
        **band("sdss_r0", flux[1], ivar[1], {"units": "uJy"}, {"units": "1 / uJy2"}),
    )
    columns = PhotometryColumns(opened, FILTERS)
    assert columns.missing == ("twomass_J",)
    read = columns.rows(1, 4)
    scales = np.array([1e-9, 1e-6 / 3631])
    np.testing.assert_allclose(read.flux[:, :2], (flux * scales[:, None]).T[1:], rtol=1e-12)
    np.testing.assert_allclose(read.ivar[:, :2], (ivar / scales[:, None] ** 2).T[1:], rtol=1e-12)
    assert not read.flux[:, 2].any()
    assert not read.ivar[:, 2].any()
    assert not read.bad.any()


def test_bands_that_a_galaxy_lacks_are_no_fault_and_impossible_values_are(tmp_path):
    flux = [1.0, np.nan, 3.0, 4.0, np.inf, np.inf, 7.0, -8.0]
    ivar = [0.0, 2.0, np.nan, -4.0, 5.0, 0.0, np.inf, 8.0]
    read = PhotometryColumns(catalog(tmp_path, 8, **band("sdss_g0", flux, ivar)), ["sdss_g0"]).rows(0, 8)
    assert read.bad.tolist() == [False, False, False, True, True, False, True, False]
    # A negative flux is a measurement.
    np.testing.assert_allclose(read.flux[:, 0], [0, 0, 0, 0, 0, 0, 0, -8e-9])
    np.testing.assert_allclose(read.ivar[:, 0], [0, 0, 0, 0, 0, 0, 0, 8e18])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"phot_sdss_g0": (np.ones(4), NMGY)}, "phot_sdss_g0: expected its inverse variance in phot_sdss_g0_ivar"),
        ({"phot_sdss_g0_ivar": (np.ones(4), {})}, "phot_sdss_g0_ivar: expected the flux in phot_sdss_g0 beside it"),
        (band("sdss_g0", np.ones(4), np.ones(4), {}), "phot_sdss_g0: expected attribute units, such as 'nmgy'"),
        (
            band("sdss_g0", np.ones(4), np.ones(4), {"units": "nanomaggies"}),
            "phot_sdss_g0: expected units that astropy.units reads, .* found 'nanomaggies'",
        ),
        (
            band("sdss_g0", np.ones(4), np.ones(4), {"units": "erg / (s cm2 Angstrom)"}),
            "phot_sdss_g0: expected units of maggies or of Jy",
        ),
        (band("sdss_g0", np.ones(4), np.ones(4), {"units": "-1 mgy"}), "expected units with a positive scale"),
        (
            band("sdss_g0", np.ones(4), np.ones(4), ivar_attrs={"units": "mgy-2"}),
            "phot_sdss_g0_ivar: expected units 1 / nmgy2, those of phot_sdss_g0 .* found 'mgy-2'",
        ),
        (band("sdss_g0", np.array(list("abcd")), np.ones(4)), "phot_sdss_g0: expected numbers, found another type"),
        (
            band("sdss_g", np.ones(4), np.ones(4)),
            "phot_sdss_g: expected the name of a filter of sedpy, found 'sdss_g'; did you mean sdss_g0",
        ),
    ],
)
def test_columns_that_break_the_rule_are_named(tmp_path, columns, message):
    with pytest.raises(CatalogError, match=message):
        PhotometryColumns(catalog(tmp_path, **columns), FILTERS)


def test_all_violations_are_listed_and_columns_of_the_survey_are_left_alone(tmp_path):
    one = band("sdss_g0", np.ones(4), np.ones(4), {})
    opened = catalog(tmp_path, phot_quality=(np.ones(4), {}), phot_sdss_r0=(np.ones(4), NMGY), **one)
    with pytest.raises(CatalogError) as caught:
        PhotometryColumns(opened, FILTERS)
    assert "photometry in 2 place(s)" in str(caught.value)
    assert PhotometryColumns(opened, ["twomass_J"]).missing == ("twomass_J",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": ["sdss_g"]}, "found 'sdss_g'; did you mean sdss_g0, sdss_z0 or sdss_u0"),
        ({"filters": ["sdss_g0", "sdss_g0"]}, "expected each filter once, found 'sdss_g0' 2 times"),
        ({"floor": 0.1}, "floor: there is no photometry without filters"),
        ({"filters": ["sdss_g0", "sdss_r0"], "floor": [0.1, 0.1, 0.1]}, "expected one number or 2, .* found 3"),
        ({"filters": ["sdss_g0"], "floor": -0.1}, "greater than or equal to 0"),
        ({"filters": ["sdss_g0"], "snr": [9, 3]}, "snr: expected the least value first, found 9 and 3"),
        ({"filters": ["sdss_g0"], "rest_angstrom": [9, 3]}, "rest_angstrom: expected the least value first"),
        ({"filters": ["sdss_g0"], "without_photometry": 0.5, "without_spectrum": 0.5}, "expected a sum below 1"),
        ({"filters": ["sdss_g0"], "depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        PhotometryConfig(**settings)


def test_floors_are_one_for_each_filter():
    assert PhotometryConfig(filters=["sdss_g0", "sdss_r0"]).floors == (0.05, 0.05)
    assert PhotometryConfig(filters=["sdss_g0", "sdss_r0"], floor=[0.1, 0.2]).floors == (0.1, 0.2)
    assert PhotometryConfig().floors == ()
