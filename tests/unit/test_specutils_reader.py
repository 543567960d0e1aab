"""What specutils loads becomes spectra; without it, the error says what to install."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import survey_files as make
from astropy import units
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

from digs_survey.catalog import Catalog
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.reading import read_file
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.specutils_reader import SpecutilsReader
from digs_survey.errors import MissingDependencyError

STORED = units.Unit("1e-17 erg / (s cm2 Angstrom)")
WAVE = make.TABLE_WAVE * units.AA


def spectrum(**changes: object) -> SimpleNamespace:
    """The known spectrum with the attributes of a ``specutils.Spectrum``."""
    flux = make.known(make.TABLE_WAVE) * STORED
    given = {"spectral_axis": WAVE, "flux": flux, "mask": None, "spectral_axis_index": flux.ndim - 1}
    given["uncertainty"] = StdDevUncertainty(np.full(flux.shape, make.ERROR), unit=STORED)
    return SimpleNamespace(**(given | changes))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch):
    """Stand in for the package: a list of spectra, or an error, is what every file holds."""

    def use(loaded: object) -> SpecutilsReader:
        def read(path: str, **chosen: str) -> object:
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

        monkeypatch.setitem(sys.modules, "specutils", SimpleNamespace(SpectrumList=SimpleNamespace(read=read)))
        return SpecutilsReader(Redshifts(str(make.REDSHIFT)), "vacuum")

    return use


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "one.fits").write_bytes(b"")
    return tmp_path / "one.fits"


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full(200, make.ERROR), unit=STORED),
        StdDevUncertainty(np.full(200, make.ERROR * 1e-17), unit=units.Unit("erg / (s cm2 Angstrom)")),
        VarianceUncertainty(np.full(200, make.ERROR**2), unit=STORED**2),
        InverseVariance(np.full(200, make.ERROR**-2), unit=STORED**-2),
        StdDevUncertainty(np.full(200, make.ERROR)),
    ],
)
def test_every_kind_of_uncertainty_is_understood(loads, path, uncertainty):
    mask = np.arange(200) == 7
    (found,) = read_file(loads([spectrum(uncertainty=uncertainty, mask=mask)]), path)
    assert (found.galaxy_id.tolist(), found.redshift.tolist()) == (["one"], [make.REDSHIFT])
    assert np.flatnonzero(~found.good[0]).tolist() == [7]
    np.testing.assert_allclose(found.flux[0][~mask], make.known(make.TABLE_WAVE)[~mask])
    np.testing.assert_allclose(found.ivar[0][~mask], make.ERROR**-2, rtol=1e-6)


def test_frequencies_and_fluxes_per_frequency_are_converted(loads, path):
    scale = make.per_frequency(make.TABLE_WAVE) / make.known(make.TABLE_WAVE)
    given = spectrum(
        spectral_axis=(make.LIGHT / make.TABLE_WAVE) * units.Hz,
        flux=make.per_frequency(make.TABLE_WAVE) * units.uJy,
        uncertainty=StdDevUncertainty(make.ERROR * scale, unit=units.uJy),
    )
    (found,) = read_file(loads([given]), path)
    np.testing.assert_allclose(found.wavelength, make.TABLE_WAVE, rtol=1e-8)
    np.testing.assert_allclose(found.flux[0], make.known(make.TABLE_WAVE), rtol=1e-6)
    np.testing.assert_allclose(found.ivar[0], make.ERROR**-2, rtol=1e-6)


def test_rows_and_several_spectra_have_names_of_their_own(loads, path):
    flux = np.tile(make.known(make.TABLE_WAVE), (3, 1))
    error = np.full(flux.shape, make.ERROR)
    rows = spectrum(flux=flux * STORED, uncertainty=StdDevUncertainty(error, unit=STORED), spectral_axis_index=1)
    turned = spectrum(flux=flux.T * STORED, uncertainty=StdDevUncertainty(error.T, unit=STORED), spectral_axis_index=0)
    names = [found.galaxy_id.tolist() for found in read_file(loads([rows, turned]), path)]
    assert names == [[f"one_{number}_{row}" for row in range(3)] for number in range(2)]


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (RuntimeError("no loader"), "specutils cannot load it: RuntimeError: no loader"),
        ([spectrum(uncertainty=None)], "expected uncertainties"),
        ([spectrum(flux=np.ones((2, 2, 200)) * STORED, spectral_axis_index=2)], "a cube"),
        ([spectrum(flux=np.ones(200) * units.ct, uncertainty=StdDevUncertainty(np.ones(200)))], "flux density"),
    ],
)
def test_what_cannot_be_spectra_says_why(loads, path, loaded, reason):
    (left,) = read_file(loads(loaded), path)
    assert reason in left.reason


def test_without_specutils_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "specutils", None)
    with pytest.raises(MissingDependencyError, match="pip install specutils"):
        SpecutilsReader(Redshifts("0.1"), "vacuum")


def test_a_real_file_is_loaded_by_the_package_itself(tmp_path):
    pytest.importorskip("specutils")
    flux = fits.BinTableHDU.from_columns(
        [
            fits.Column("wave", "D", unit="Angstrom", array=make.TABLE_WAVE),
            fits.Column("flux", "D", unit="erg / (s cm2 Angstrom)", array=make.known(make.TABLE_WAVE) * 1e-17),
            fits.Column("err", "D", unit="erg / (s cm2 Angstrom)", array=np.full(200, make.ERROR * 1e-17)),
        ]
    )
    fits.HDUList([fits.PrimaryHDU(), flux]).writeto(tmp_path / "one.fits")
    reader = SpecutilsReader(Redshifts("0.2"), "vacuum", "tabular-fits")
    ingest([tmp_path / "one.fits"], tmp_path / "a.zarr", reader, source="spectra by specutils")
    catalog = Catalog.open(tmp_path / "a.zarr")
    rows = catalog.rows(0, 1)
    np.testing.assert_allclose(rows.flux[0] * 1e17, make.known(make.TABLE_WAVE), rtol=1e-5)
    np.testing.assert_allclose(rows.ivar[0] * 1e-34, make.ERROR**-2, rtol=1e-5)
