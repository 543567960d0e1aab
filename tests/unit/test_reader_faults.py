"""Inputs that readers once misread: each has its right value here, or its refusal."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import survey_files as make
from astropy.io import fits

import digs_survey as ds
from digs_survey.catalog import Catalog
from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.jwst import JwstReader
from digs_survey.catalog.readers.reading import LeftOut, read_file
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.sdss import SdssReader
from digs_survey.catalog.readers.table_map import load_map
from digs_survey.errors import CatalogError, ConfigError

FLUX = "1e-17 erg / (s cm2 Angstrom)"
WAVE = np.arange(4000.0, 4200.0, 2.0)
PIXELS = 'layout = "pixels"\nmedium = "vacuum"\nwavelength = "w"\nflux = "f"\nredshift = 0.1\n'
ARRAYS = 'layout = "arrays"\nmedium = "vacuum"\nwavelength = "w"\nflux = "f"\nerror = "e"\nredshift = 0.1\n'


def block(wave: np.ndarray = WAVE, n: int = 1, **changes: object) -> ds.Spectra:
    given = {"ivar": np.ones((n, wave.size)), "redshift": np.full(n, 0.1), "galaxy_id": np.arange(n), "flux_unit": FLUX}
    return ds.Spectra(wave, np.ones((n, wave.size)), medium="vacuum", **(given | changes))


def table(path: Path, units: dict[str, str | None], **columns: np.ndarray) -> Path:
    made = []
    for name, values in columns.items():
        width = values.shape[1] if values.ndim == 2 else ""
        made.append(fits.Column(name, f"{width}D", unit=units.get(name), array=values))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)
    return path


def taken(path: Path, toml: str, **choice: object) -> Catalog:
    out = path.parent / "out.zarr"
    ingest([path], out, make.mapped(path.parent, toml), GridChoice(**choice), source="tables")
    return Catalog.open(out)


@pytest.mark.parametrize(
    ("kind", "value", "unit", "flux_unit"),
    [
        ("error", 0.05, None, FLUX),
        ("error", 5e-19, "erg / (s cm2 Angstrom)", FLUX),
        ("error", 5e-18, "W / (m2 um)", FLUX),
        ("ivar", 400.0, None, FLUX),
        ("ivar", 4e36, "s2 cm4 Angstrom2 / erg2", FLUX),
        ("ivar", 4e-12, "uJy^-2", "Jy"),
    ],
)
def test_errors_are_converted_to_the_unit_of_the_flux(tmp_path, kind, value, unit, flux_unit):
    path = table(
        tmp_path / "a.fits", {"w": "Angstrom", "f": flux_unit, "e": unit},
        w=WAVE, f=np.ones(WAVE.size), e=np.full(WAVE.size, value),
    )  # fmt: skip
    rows = taken(path, PIXELS + f'{kind} = "e"\n').rows(0, 1)
    snr = rows.flux[0] * np.sqrt(rows.ivar[0])
    expected = {FLUX: 20.0, "Jy": 2.0}[flux_unit]
    np.testing.assert_allclose(snr, expected, rtol=1e-5)


@pytest.mark.parametrize(("kind", "unit"), [("error", "uJy"), ("ivar", FLUX), ("error", "mag(AB)")])
def test_an_error_that_is_no_error_of_the_flux_is_refused_by_name(tmp_path, kind, unit):
    path = table(
        tmp_path / "a.fits", {"w": "Angstrom", "f": FLUX, "e": unit},
        w=WAVE, f=np.ones(WAVE.size), e=np.ones(WAVE.size),
    )  # fmt: skip
    with pytest.raises(CatalogError, match="e: expected a unit that"):
        taken(path, PIXELS + f'{kind} = "e"\n')


def test_units_of_the_map_come_first_and_those_of_errors_follow_the_flux(tmp_path):
    path = table(
        tmp_path / "a.fits", {"w": "Angstrom", "f": "Jy", "e": "mJy"},
        w=WAVE, f=np.ones(WAVE.size), e=np.full(WAVE.size, 50.0),
    )  # fmt: skip
    rows = taken(path, PIXELS + f'error = "e"\nflux_unit = "{FLUX}"\n').rows(0, 1)
    np.testing.assert_allclose(rows.flux[0] * 1e17, 1.0, rtol=1e-6)
    np.testing.assert_allclose(rows.flux[0] * np.sqrt(rows.ivar[0]), 20.0, rtol=1e-6)
    rows = taken(path, PIXELS + 'error = "e"\nerror_unit = "Jy"\n').rows(0, 1)
    np.testing.assert_allclose(rows.flux[0] * np.sqrt(rows.ivar[0]), 0.02, rtol=1e-6)


@pytest.mark.parametrize("unit", ["mag(AB)", "dex(erg / (s cm2 Angstrom))", "mag"])
def test_magnitudes_are_no_flux(unit):
    with pytest.raises(CatalogError, match="flux: expected"):
        block(flux_unit=unit)
    with pytest.raises(CatalogError, match="A is the ampere, write Angstrom"):
        block(flux_unit="erg/cm2/s/A")


@pytest.mark.parametrize("longer", ["f", "e"])
def test_values_beyond_the_wavelengths_are_refused(tmp_path, longer):
    arrays = {name: np.ones((2, WAVE.size + (name == longer))) for name in "fe"}
    path = table(tmp_path / "a.fits", {"w": "Angstrom", "f": FLUX}, w=np.tile(WAVE, (2, 1)), **arrays)
    with pytest.raises(CatalogError, match=f"{longer}: expected .*100.*a.fits"):
        taken(path, ARRAYS)


def image(path: Path, **cards: object) -> Path:
    flux = fits.ImageHDU(np.ones(50), name="SCI")
    flux.header.update({"BUNIT": FLUX, "CRVAL1": 400.0, "CDELT1": 0.2} | cards)
    error = fits.ImageHDU(np.ones(50), name="ERR")
    primary = fits.PrimaryHDU()
    primary.header.update({"CRVAL1": 1.0, "CDELT1": 1.0, "CUNIT1": "um"})
    if cards.get("CUNIT1") == "":
        del primary.header["CUNIT1"]
    fits.HDUList([primary, flux, error]).writeto(path)
    return path


IMAGE = 'layout = "image"\nmedium = "vacuum"\nflux = "SCI"\nerror = "ERR"\nredshift = 0.1\n'


def test_the_axis_of_an_image_is_that_of_its_flux(tmp_path):
    path = image(tmp_path / "a.fits", CUNIT1="nm")
    np.testing.assert_allclose(taken(path, IMAGE).grid.wavelength[[0, -1]], [4000.0, 4098.0])
    wave = taken(path, IMAGE + 'wavelength_unit = "0.2 nm"\n').grid.wavelength
    np.testing.assert_allclose(wave[[0, -1]], [800.0, 819.6])
    assert Catalog.open(tmp_path / "out.zarr").column("source_hdu", 0, 1)[0] == "SCI"


def test_an_image_may_have_its_wavelengths_in_an_hdu(tmp_path):
    wave = fits.ImageHDU(make.TABLE_WAVE, name="WAVE")
    flux = fits.ImageHDU(np.tile(make.known(make.TABLE_WAVE), (2, 1)), name="FLUX")
    ivar = fits.ImageHDU(np.full((2, make.TABLE_WAVE.size), make.ERROR**-2), name="IVAR")
    flux.header["BUNIT"] = FLUX
    fits.HDUList([fits.PrimaryHDU(), flux, ivar, wave]).writeto(tmp_path / "stack.fits")
    toml = IMAGE.replace("SCI", "FLUX").replace('error = "ERR"', 'ivar = "IVAR"') + 'wavelength = "WAVE"\n'
    with pytest.raises(CatalogError, match="WAVE: expected a unit"):
        taken(tmp_path / "stack.fits", toml)
    catalog = taken(tmp_path / "stack.fits", toml + 'wavelength_unit = "Angstrom"\n')
    np.testing.assert_allclose(catalog.grid.wavelength, make.TABLE_WAVE)
    np.testing.assert_allclose(catalog.rows(0, 2).flux[1] * 1e17, make.known(make.TABLE_WAVE), rtol=1e-6)
    assert catalog.galaxy_id(0, 2).tolist() == ["stack_0", "stack_1"]


@pytest.mark.parametrize("unit", ["furlong", "Hz", ""])
def test_an_axis_in_no_known_unit_of_length_is_refused(tmp_path, unit):
    with pytest.raises(CatalogError, match="CUNIT1: expected"):
        taken(image(tmp_path / "a.fits", CUNIT1=unit), IMAGE)


def test_integers_stay_integers_where_a_file_lacks_them(tmp_path):
    bits, big = 2**62 + 1, np.uint64(2**64 - 1)
    with_all = block(columns={"bits": ([bits], {}), "big": (np.array([big]), {}), "x": ([0.5], {}), "s": (["a"], {})})
    catalog = ds.write_spectra(tmp_path / "a.zarr", [with_all, block(galaxy_id=[7])])
    found = catalog.columns(0, 2)
    assert found["bits"].tolist() == [bits, -1]
    assert found["big"].tolist() == [str(big), ""]
    assert found["s"].tolist() == ["a", ""]
    np.testing.assert_array_equal(found["x"], [0.5, np.nan])
    assert "-1 where" in catalog.column_attrs("bits")["description"]


def test_identifiers_beyond_63_bits_do_not_wrap(tmp_path):
    big = 2**63 + 5
    catalog = ds.write_spectra(tmp_path / "a.zarr", block(galaxy_id=np.array([big], dtype=np.uint64)))
    assert catalog.galaxy_id(0, 1).tolist() == [str(big)]


def test_a_bad_row_costs_itself_only(tmp_path):
    flux = np.ones((5, WAVE.size))
    ivar = np.ones((5, WAVE.size))
    flux[1] = 1e39
    ivar[2, 40:] = 0.0
    good = ds.Spectra(
        WAVE, flux, ivar=ivar, redshift=np.full(5, 0.1), galaxy_id=np.arange(5), flux_unit=FLUX, medium="vacuum",
        ebv=[0.1, 0.1, 0.1, np.nan, 0.1],
    )  # fmt: skip
    choice = {"deredden": True, "start_angstrom": 4090.0}
    catalog = ds.write_spectra(tmp_path / "a.zarr", good, strict=False, **choice)
    assert catalog.galaxy_id(0, 2).tolist() == [0, 4]
    assert catalog.grid.wavelength[0] == 4090.0
    with pytest.raises(CatalogError) as caught:
        ds.write_spectra(tmp_path / "b.zarr", good.take(np.arange(1, 4)), strict=False, **choice)
    for reason in ("out of range", "between start and stop", "E\\(B-V\\) is not"):
        assert caught.match(f"1 left out: .*{reason}")


def test_a_row_without_a_whole_element_is_left_out(tmp_path):
    ivar = np.ones((2, WAVE.size))
    ivar[1, 4:] = 0.0
    both = block(n=2, ivar=ivar)
    catalog = ds.write_spectra(tmp_path / "a.zarr", both, strict=False, step_angstrom=50.0)
    assert catalog.galaxy_id(0, 1).tolist() == [0]


def test_start_and_stop_help_against_too_many_elements(tmp_path):
    with pytest.raises(CatalogError, match="start_angstrom and stop_angstrom"):
        ds.write_spectra(tmp_path / "a.zarr", block(), step_angstrom=1e-3)
    catalog = ds.write_spectra(
        tmp_path / "a.zarr", block(), step_angstrom=1e-3, start_angstrom=4050, stop_angstrom=4051
    )
    assert (catalog.grid.wavelength.size, *catalog.grid.wavelength[[0, -1]].round(3)) == (1001, 4050.0, 4051.0)


def test_the_grid_does_not_span_what_was_left_out_as_a_duplicate(tmp_path):
    far = block(WAVE + 3000.0)
    catalog = ds.write_spectra(tmp_path / "a.zarr", [block(), far], strict=False)
    assert catalog.grid.wavelength[-1] == WAVE[-1]


def test_a_table_of_redshifts_that_cannot_be_read_is_named(tmp_path):
    for name, data in (("z.fits", b"no FITS"), ("z.parquet", b"PAR1"), ("z.csv", b"\xff\xfe"), ("z.h5", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"redshifts .*{name}: expected"):
            Redshifts(str(tmp_path / name))
        with pytest.raises(ConfigError, match=f"redshifts .*{name}: expected"):
            DesiReader([], tmp_path / name)
    (tmp_path / "z.csv").write_text("file,z\na,0.1\na,0.2\n")
    with pytest.raises(ConfigError, match="one for each file, found several of a"):
        Redshifts(str(tmp_path / "z.csv"))


def test_packed_tables_of_redshifts_are_read(tmp_path):
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress(b"file,z\na,0.1\n"))
    assert Redshifts(str(tmp_path / "z.csv.gz")).of("a", Path("b")) == 0.1
    columns = [fits.Column("Name", "3A", array=["a", "b"]), fits.Column("Z", "D", array=[0.3, 0.4])]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(tmp_path / "z.fits.gz")
    assert Redshifts(str(tmp_path / "z.fits.gz")).of("b", Path("c")) == 0.4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"EBV": 0.3, "EBV_TYPE": "BAYESTAR15", "SFD_EBV": 0.2}, 0.2),
        ({"EBV": 0.3, "EBV_TYPE": "SFD"}, 0.3),
        ({"EBV": 0.3}, 0.3),
        ({"EBV": 0.3, "EBV_TYPE": "BAYESTAR15"}, None),
    ],
)
def test_extinction_is_corrected_by_schlegels_map_only(tmp_path, changes, expected):
    path = make.spec(tmp_path / "spec-a.fits", **changes)
    (found,) = read_file(SdssReader(), path)
    assert found.columns["ebv"][0][0] == (expected or 0.3)
    assert np.isnan(found.ebv[0]) if expected is None else found.ebv[0] == expected
    if "EBV_TYPE" in changes:
        assert found.columns["ebv_type"][0][0] == changes["EBV_TYPE"]


@pytest.mark.parametrize("ending", ["fits", "h5", "parquet"])
def test_big_tables_come_in_batches_with_names_that_do_not_repeat(tmp_path, ending):
    n = 600
    level = np.arange(1.0, n + 1)
    arrays = {"w": np.tile(WAVE, (n, 1)), "f": np.tile(level[:, None], (1, WAVE.size)), "e": np.ones((n, WAVE.size))}
    path = tmp_path / f"big.{ending}"
    if ending == "fits":
        table(path, {}, **arrays)
    elif ending == "h5":
        import h5py

        with h5py.File(path, "w") as file:
            file.update(arrays | {"w": WAVE})
    else:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({name: list(values) for name, values in arrays.items()}), path)
    toml = ARRAYS + f'wavelength_unit = "Angstrom"\nflux_unit = "{FLUX}"\n'
    blocks = list(read_file(make.mapped(tmp_path, toml), path))
    assert [len(found) for found in blocks] == [256, 256, 88]
    assert np.concatenate([found.flux[:, 0] for found in blocks]).tolist() == level.tolist()
    names = np.concatenate([found.galaxy_id for found in blocks]).tolist()
    assert names == [f"big_{row}" for row in range(n)]
    assert np.concatenate([found.rows for found in blocks]).tolist() == list(range(n))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[columns]\nflux = { column = 'a' }\n", "flux: expected a name that catalogs do not use"),
        ("[columns]\nsource_row = { column = 'a' }\n", "source_row: expected a name"),
        ("[columns]\nlogmass_p50 = { column = 'a' }\n", "logmass_p50: expected a name that the results do not use"),
        ("[columns]\nmag = { table = 'a.csv' }\n", "columns.mag: expected a column or a header card"),
        ("galaxy_id = { table = 'a.csv' }\n", "galaxy_id: expected a column or a header card"),
        ("flux_units = 'Jy'\n", "flux_units: unknown key; did you mean flux_unit?"),
        ("[columns]\nmag = { colum = 'a' }\n", "columns.mag.colum: unknown key; did you mean column?"),
    ],
)
def test_a_map_that_cannot_be_is_refused_before_any_file_is_read(tmp_path, text, named):
    path = tmp_path / "map.toml"
    path.write_text(ARRAYS + text)
    with pytest.raises(ConfigError) as caught:
        load_map(path)
    assert named in str(caught.value)


def test_an_image_has_no_columns(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(IMAGE + "galaxy_id = { column = 'a' }\n")
    with pytest.raises(ConfigError, match="galaxy_id: expected a number or a header card"):
        load_map(path)


def test_jwst_errors_in_another_unit_than_the_flux_are_converted(tmp_path):
    files, reader = make.msaexp(tmp_path)
    (right,) = read_file(reader, files[0])
    with fits.open(files[0]) as hdus:
        columns = hdus[1].columns
        error = fits.Column("err", "D", unit="nJy", array=hdus[1].data["err"] * 1e3)
        made = fits.BinTableHDU.from_columns([columns["wave"], columns["flux"], error], name="SPEC1D")
        made.header["GRATING"] = fits.card.UNDEFINED
        fits.HDUList([fits.PrimaryHDU(), made]).writeto(tmp_path / "b.spec.fits")
    (found,) = read_file(JwstReader(Redshifts("0.2")), tmp_path / "b.spec.fits")
    np.testing.assert_allclose(found.ivar, right.ivar, rtol=1e-6)
    assert "grating" in right.columns
    assert "grating" not in found.columns


def test_reasons_name_settings_and_not_options(tmp_path):
    coadd = make.coadd(tmp_path / "coadd-a.fits")
    (left,) = read_file(DesiReader(), coadd)
    assert isinstance(left, LeftOut)
    assert "a catalog of redshifts" in left.reason
    for found in (left.reason,):
        assert "--" not in found
    with pytest.raises(ConfigError, match="deredden asks for"):
        GridChoice(ebv=0.1)
