"""The bad inputs that every reader meets, by file and reason; what is packed is read as what it is."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import survey_files as make
from astropy.io import fits

from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.jwst import JwstReader
from digs_survey.catalog.readers.reading import LeftOut, read_file
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import CatalogError

FITS = (make.desi, make.sdss, make.plate, make.msaexp, make.x1d, make.eso, make.linear)
TABLES = {make.sdss: 1, make.msaexp: 1, make.x1d: 1, make.eso: 1}
"""HDU of a kind's table of pixels."""
FLUX = {make.sdss: "flux", make.msaexp: "flux", make.x1d: "FLUX", make.eso: "FLUX"}
WAVE = {make.sdss: "loglam", make.msaexp: "wave", make.x1d: "WAVELENGTH", make.eso: "WAVE"}
ERROR = {make.sdss: "ivar", make.msaexp: "err", make.x1d: "FLUX_ERROR", make.eso: "ERR"}

named = {"ids": lambda kind: kind.__name__}


def changed(kind: Any, folder: Path, change: Callable[[Any], None]) -> list[Spectra | LeftOut]:
    """Read a file after a change of its HDUs."""
    (path, *_), reader = kind(folder)
    with fits.open(path, mode="update") as hdus:
        change(hdus)
    return list(read_file(reader, path))


def without_column(hdu: Any, name: str) -> Any:
    kept = [column for column in hdu.columns if column.name.upper() != name.upper()]
    return fits.BinTableHDU.from_columns(kept, name=hdu.name)


@pytest.mark.parametrize("kind", FITS, **named)
def test_packed_files_are_read_as_what_they_are(kind, tmp_path):
    (path, *_), reader = kind(tmp_path)
    plain = [found for found in read_file(reader, path) if isinstance(found, Spectra)]
    path.rename(tmp_path / "kept")
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress((tmp_path / "kept").read_bytes()))
    found = [found for found in read_file(reader, packed) if isinstance(found, Spectra)]
    assert len(found) == len(plain) > 0
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one.flux, other.flux)
        np.testing.assert_array_equal(one.ivar, other.ivar)
        assert one.galaxy_id.tolist() == other.galaxy_id.tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FITS, **named)
def test_truncated_files_say_so(kind, packed, tmp_path):
    (path, *_), reader = kind(tmp_path)
    whole = gzip.compress(path.read_bytes()) if packed else path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = list(read_file(reader, path))
    assert not [block for block in found if isinstance(block, Spectra)]
    assert any("ends too early" in left.reason or "expected an HDU" in left.reason for left in found)


@pytest.mark.parametrize("kind", TABLES, **named)
def test_a_missing_column_is_named(kind, tmp_path):
    def change(hdus: Any) -> None:
        hdus[1] = without_column(hdus[1], ERROR[kind])

    found = changed(kind, tmp_path, change)
    assert any(ERROR[kind].upper() in left.reason.upper() for left in found if isinstance(left, LeftOut))


@pytest.mark.parametrize("kind", TABLES, **named)
@pytest.mark.parametrize("order", ["turned", "repeated", "not a number"])
def test_wavelengths_that_are_not_monotonic_are_refused(kind, order, tmp_path):
    def change(hdus: Any) -> None:
        wave = hdus[1].data[WAVE[kind]].reshape(-1)
        wave[3] = {"turned": wave[10], "repeated": wave[2], "not a number": np.nan}[order]
        hdus[1].data[WAVE[kind]] = wave.reshape(hdus[1].data[WAVE[kind]].shape)

    found = changed(kind, tmp_path, change)
    if order == "not a number" and kind is not make.sdss:
        first = next(block for block in found if isinstance(block, Spectra))
        reference, reader = kind(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
        right = next(block for block in read_file(reader, reference[0]) if isinstance(block, Spectra))
        np.testing.assert_allclose(first.wavelength, np.delete(right.wavelength, 3))
        np.testing.assert_allclose(first.flux, np.delete(right.flux, 3, axis=1))
        return
    assert "increasing" in next(left.reason for left in found if isinstance(left, LeftOut))


@pytest.mark.parametrize("kind", TABLES, **named)
@pytest.mark.parametrize("what", ["flux", "error"])
def test_nothing_but_nan_is_no_spectrum(kind, what, tmp_path):
    def change(hdus: Any) -> None:
        hdus[1].data[(FLUX if what == "flux" else ERROR)[kind]] = np.nan

    found = changed(kind, tmp_path, change)
    assert not [block for block in found if isinstance(block, Spectra) and block.galaxy_id[0] != "jw1_8"]
    assert "no usable pixel" in next(left.reason for left in found if isinstance(left, LeftOut))


@pytest.mark.parametrize("kind", [make.msaexp, make.x1d, make.eso], **named)
@pytest.mark.parametrize(
    ("unit", "reason"), [("K", "flux density"), ("erg", "flux density"), ("mag", "flux"), ("", "expected a unit")]
)
def test_units_that_are_none_of_a_flux_are_refused(kind, unit, reason, tmp_path):
    def change(hdus: Any) -> None:
        for number, column in enumerate(hdus[1].columns, start=1):
            if column.name == FLUX[kind]:
                hdus[1].header[f"TUNIT{number}"] = unit
                column.unit = unit or None

    found = changed(kind, tmp_path, change)
    assert reason in found[0].reason


def test_an_image_per_hertz_is_converted_and_not_taken_as_it_is(tmp_path):
    def change(hdus: Any) -> None:
        wave = make.TABLE_WAVE
        hdus[0].data[:] = make.per_frequency(wave)
        hdus[1].data[:] = make.ERROR * make.per_frequency(wave) / make.known(wave)
        hdus[0].header["BUNIT"] = "uJy"

    (found,) = changed(make.linear, tmp_path, change)
    np.testing.assert_allclose(found.flux[0], make.known(make.TABLE_WAVE), rtol=1e-6)
    np.testing.assert_allclose(found.ivar[0], make.ERROR**-2, rtol=1e-6)


@pytest.mark.parametrize("z", [-0.1, 0.0, np.nan, np.inf])
def test_redshifts_that_are_not_positive_cost_their_rows(z, tmp_path):
    files, _ = make.msaexp(tmp_path)
    (left,) = read_file(JwstReader(Redshifts(str(z))), files[0])
    assert "no positive redshift" in left.reason
    good, reader = make.eso(tmp_path)
    with fits.open(good[0], mode="update") as hdus:
        if np.isfinite(z):
            hdus[0].header["Z_SPEC"] = z
        else:
            del hdus[0].header["Z_SPEC"]
    (left,) = read_file(reader, good[0])
    assert ("no positive redshift" if np.isfinite(z) else "expected Z_SPEC") in left.reason


@pytest.mark.parametrize("kind", [make.desi, make.sdss, make.msaexp, make.eso, make.csv], **named)
def test_strict_stops_where_an_identifier_comes_twice(kind, tmp_path):
    files, reader = kind(tmp_path)
    twice = [files[0], *files]
    report = ingest(twice, tmp_path / "a.zarr", reader, source="test")
    assert (report.rows, sum(item.rows for item in report.left_out)) == (1, 1)
    with pytest.raises(CatalogError, match="read before.*" + files[0].name):
        ingest(twice, tmp_path / "b.zarr", reader, source="test", strict=True)
    assert not (tmp_path / "b.zarr").exists()
