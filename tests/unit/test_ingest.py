"""Every reader keeps a known spectrum; the grid spans what any row has; a bad file loses its own rows only."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import survey_files as make
from astropy.io import fits
from typer.testing import CliRunner

import digs_survey as ds
from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.extinction import extinction_per_ebv
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.jwst import JwstReader
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.cli import app
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.spectra import WavelengthGrid

FLUX = "1e-17 erg / (s cm2 Angstrom)"


def integral(low: float, high: float) -> float:
    wave = np.linspace(low, high, 2 + int(200 * (high - low)))
    return float(np.trapezoid(make.known(wave), wave))


@pytest.mark.parametrize("kind", make.KINDS, ids=lambda kind: kind.__name__)
def test_flux_and_chi_square_are_kept(kind, tmp_path):
    files, reader = kind(tmp_path)
    ingest(files, tmp_path / "out.zarr", reader, source="test")
    catalog = Catalog.open(tmp_path / "out.zarr")
    assert validate_catalog(catalog.path).ok
    rows, edges = catalog.rows(0, 1), catalog.grid.edges
    assert (rows.redshift[0], catalog.grid.frame, catalog.grid.medium) == (make.REDSHIFT, "observed", "vacuum")
    flux, ivar, good = rows.flux[0] * 1e17, rows.ivar[0] * 1e-34, rows.good[0]
    assert good.mean() > 0.9
    expected = np.array([integral(*ends) for ends in zip(edges[:-1][good], edges[1:][good], strict=True)])
    assert np.sum(flux[good] * np.diff(edges)[good]) == pytest.approx(expected.sum(), rel=1e-3)
    chi2 = np.sum((flux - 1.1 * make.known(catalog.grid.wavelength))[good] ** 2 * ivar[good])
    weight = ivar[good] * make.ERROR**2
    arms = make.arms_at(catalog.grid.wavelength[good]) if kind is make.desi else 1.0
    np.testing.assert_allclose(weight, np.broadcast_to(arms, weight.shape), rtol=1e-3)
    pixels = np.sum(arms * (0.1 * make.known(catalog.grid.wavelength[good]) / make.ERROR) ** 2)
    assert chi2 == pytest.approx(pixels, rel=1e-3)
    assert catalog.columns(0, 1)["source_file"][0] == str(files[0])


@pytest.mark.parametrize("kind", [make.desi, make.sdss, make.msaexp], ids=lambda kind: kind.__name__)
def test_wider_elements_keep_the_integral_and_the_variance(kind, tmp_path):
    files, reader = kind(tmp_path)
    ingest(files, tmp_path / "out.zarr", reader, GridChoice(step_angstrom=12.0), source="test")
    catalog = Catalog.open(tmp_path / "out.zarr")
    assert (catalog.grid.edges[0] % 12, np.diff(catalog.grid.wavelength).max()) == (0, 12)
    rows = catalog.rows(0, 1)
    inner = np.flatnonzero(rows.good[0])[1:-1]
    expected = integral(*catalog.grid.edges[[inner[0], inner[-1] + 1]])
    assert np.sum(rows.flux[0, inner] * 12e17) == pytest.approx(expected, rel=1e-3)
    pixel = {make.desi: 0.8, make.sdss: 3700 * np.log(10) * 1e-4, make.msaexp: 50 / 24}[kind]
    least = 12 / pixel * make.ERROR**-2
    assert (rows.ivar[0, inner] * 1e-34 > 0.9 * least).all()
    if kind is not make.desi:
        assert (rows.ivar[0, inner] * 1e-34 < 1.2 * least).all()


def test_the_grid_spans_what_any_row_has(tmp_path):
    wave = np.arange(4000.0, 5000.0, 2.0)
    blocks = [
        ds.Spectra(part, np.ones(part.size), ivar=np.ones(part.size), redshift=0.1, galaxy_id=name, flux_unit=FLUX,
                   medium="vacuum", columns={"mag": (20.0, {"units": "mag"})} if name == "blue" else {})
        for name, part in (("blue", wave[:300]), ("red", wave[200:]))
    ]  # fmt: skip
    catalog = ds.write_spectra(tmp_path / "two.zarr", blocks)
    np.testing.assert_allclose(catalog.grid.wavelength, wave)
    good = catalog.rows(0, 2).good
    assert (good[0] == (wave < wave[300])).all()
    assert (good[1] == (wave >= wave[200])).all()
    assert catalog.column_attrs("mag") == {"units": "mag"}
    np.testing.assert_array_equal(catalog.column("mag", 0, 2), [20.0, np.nan])


def test_rest_frame_rows_keep_their_integral(tmp_path):
    files, reader = make.sdss(tmp_path)
    ingest(files, tmp_path / "rest.zarr", reader, GridChoice(step_angstrom=10.0, frame="rest"), source="test")
    catalog = Catalog.open(tmp_path / "rest.zarr")
    good = np.flatnonzero(catalog.rows(0, 1).good[0])[1:-1]
    low, high = catalog.grid.edges[[good[0], good[-1] + 1]] * (1 + make.REDSHIFT)
    assert np.sum(catalog.rows(0, 1).flux[0, good] * 10e17) == pytest.approx(integral(low, high), rel=1e-3)


def test_many_rows_come_in_order_over_shards_and_parts(tmp_path):
    wave = np.linspace(4000.0, 9000.0, 2500)
    level = np.arange(3000.0)
    block = ds.Spectra(
        wave, np.tile(level[:, None], (1, wave.size)), ivar=np.ones((3000, wave.size)), redshift=np.full(3000, 0.1),
        galaxy_id=np.arange(3000), flux_unit=FLUX, medium="vacuum",
    )  # fmt: skip
    catalog = ds.write_spectra(tmp_path / "many.zarr", block)
    for start in (0, 500, 1020, 2999):
        rows = catalog.rows(start, min(start + 10, 3000))
        np.testing.assert_allclose(rows.flux[:, 7] * 1e17, level[start : start + 10], rtol=1e-6)
        assert rows.galaxy_id.tolist() == list(range(start, min(start + 10, 3000)))


def test_extinction_is_that_of_the_package_extinction():
    wave = [1500.0, 2600.0, 2700.0, 3000.0, 3600.0, 4000.0, 5500.0, 8000.0, 9800.0, 20000.0, 50000.0]
    # extinction 0.4.9: fitzpatrick99(wave, 3.1, 3.1)
    expected = [8.06777461, 6.5909738, 6.26483771, 5.56991424, 4.78960123, 4.41208656, 3.03116563, 1.71534379,
                1.21016101, 0.38613224, 0.12649566]  # fmt: skip
    np.testing.assert_allclose(extinction_per_ebv(wave), expected, rtol=1e-7)


def test_dereddening_keeps_the_signal_to_noise_ratio(tmp_path):
    files, reader = make.desi(tmp_path)
    found = []
    for number, choice in enumerate((GridChoice(), GridChoice(deredden=True), GridChoice(deredden=True, ebv=0.2))):
        ingest(files, tmp_path / f"{number}.zarr", reader, choice, source="test")
        found.append(Catalog.open(tmp_path / f"{number}.zarr").rows(0, 1))
    wave = Catalog.open(tmp_path / "0.zarr").grid.wavelength
    for row, ebv in zip(found[1:], (0.1, 0.2), strict=True):
        np.testing.assert_allclose(
            row.flux / found[0].flux, 10 ** (0.4 * 0.86 * ebv * extinction_per_ebv(wave))[None], rtol=1e-6
        )
        np.testing.assert_allclose(row.flux**2 * row.ivar, found[0].flux ** 2 * found[0].ivar, rtol=1e-5)
    bare, sdss = make.sdss(tmp_path)
    with pytest.raises(CatalogError, match="give ebv"):
        ingest(bare, tmp_path / "none.zarr", sdss, GridChoice(deredden=True), source="test")


def spoiled(folder: Path) -> dict[str, tuple[Path, str]]:
    """Coadds that cannot be used, each with its redshifts, and a word of the reason."""
    changes = {
        "missing": ({"without": ("R_IVAR",)}, "R_IVAR"),
        "arms": ({"without": ("B_WAVELENGTH", "R_WAVELENGTH", "Z_WAVELENGTH")}, "B_WAVELENGTH"),
        "hertz": ({"bunit": "1e-17 erg/(s cm2 Hz)"}, "BUNIT"),
        "counts": ({"bunit": "electron"}, "BUNIT"),
        "turned": ({"wavelength": lambda wave: wave[::-1].copy()}, "increasing"),
        "nan": ({"flux": lambda flux: flux * np.nan}, "no usable pixel"),
        "short": ({"flux": lambda flux: flux[:, :-1]}, "expected shape"),
    }
    found = {}
    for number, (name, (change, reason)) in enumerate(changes.items()):
        ids = 1000 + 10 * number + np.arange(2)
        path = make.coadd(folder / f"coadd-{name}.fits", targetid=ids, **change)
        make.redrock(folder / f"redrock-{name}.fits", ids, make.REDSHIFT)
        found[name] = path, reason
    good = make.coadd(folder / "coadd-zero.fits", targetid=[2000, 2001])
    make.redrock(folder / "redrock-zero.fits", [2000, 2001], [-0.001, 0.0])
    found["zero"] = good, "no positive redshift"
    for name, data, reason in (
        ("cut", good.read_bytes()[:30_000], "ends too early"),
        ("html", b"<html>404 Not Found</html>", "no FITS file"),
        ("empty", b"", "no FITS file"),
    ):
        path = folder / f"coadd-{name}.fits"
        path.write_bytes(data)
        found[name] = path, reason
    found["absent"] = folder / "coadd-absent.fits", "no such file"
    return found


def test_a_bad_file_is_named_with_its_reason_and_loses_its_own_rows_only(tmp_path):
    files, _ = make.desi(tmp_path)
    bad = spoiled(tmp_path)
    packed = tmp_path / "coadd-packed.fits.gz"
    packed.write_bytes(gzip.compress(make.coadd(tmp_path / "coadd-packed.fits", targetid=[7, 100]).read_bytes()))
    (tmp_path / "coadd-packed.fits").unlink()
    make.redrock(tmp_path / "redrock-packed.fits", [7, 100], make.REDSHIFT)
    every = [*files, *(path for path, _ in bad.values()), packed]
    report = ingest(every, tmp_path / "out.zarr", DesiReader(every), source="test")
    assert Catalog.open(tmp_path / "out.zarr").galaxy_id(0, report.rows).tolist() == [100, 7]
    reasons = {Path(item.file).name: item.reason for item in report.left_out}
    assert set(reasons) == {path.name for path, _ in bad.values()} | {packed.name}
    for path, reason in bad.values():
        assert reason in reasons[path.name], path.name
    assert "read before" in reasons[packed.name]
    assert any("coadd-cut.fits (1)" in line for line in report.lines())


def test_strict_stops_at_a_fault_but_not_at_a_sky_fibre(tmp_path):
    make.redrock(tmp_path / "redrock-a.fits", [1, 2, 3], make.REDSHIFT, ["GALAXY", "GALAXY", "STAR"])
    path = make.coadd(tmp_path / "coadd-a.fits", rows=3, targetid=[1, 2, 3], objtype=["TGT", "SKY", "TGT"])
    report = ingest([path], tmp_path / "a.zarr", DesiReader([path]), source="test", strict=True)
    assert report.rows == 1
    assert {item.reason for item in report.left_out} == {
        "fibre is on no target (OBJTYPE SKY)",
        "star (SPECTYPE STAR)",
    }
    with pytest.raises(CatalogError, match="no such file"):
        ingest([path, tmp_path / "b"], tmp_path / "b.zarr", DesiReader([path]), source="test", strict=True)
    assert not (tmp_path / "b.zarr").exists()
    assert not list(tmp_path.glob(".*parts*"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flux_unit": "K"}, "flux density"),
        ({"flux_unit": "-1e-17 erg / (s cm2 Angstrom)"}, "positive scale"),
        ({"flux_unit": "uJy", "frame": "rest"}, "per wavelength"),
        ({"wavelength_unit": "Hz"}, "unit of length"),
        ({"wavelength": [4000.0, 4002.0, 4002.0]}, "after 4002"),
        ({"wavelength": [4000.0, np.nan, 4002.0]}, "positive numbers"),
        ({"medium": "water"}, "vacuum or air"),
        ({"error": [1.0, 1.0, 1.0]}, "either ivar or error"),
        ({"redshift": [0.1, 0.2]}, "redshift: expected one value"),
        ({"ivar": [1.0, 1.0]}, "expected shape"),
    ],
)
def test_arrays_that_cannot_be_spectra_are_refused(changes, reason):
    right = {"wavelength": [4000.0, 4002.0, 4004.0], "flux": [1.0, 1.0, 1.0], "ivar": [1.0, 1.0, 1.0], "redshift": 0.1,
             "galaxy_id": "a", "flux_unit": FLUX, "medium": "vacuum"}  # fmt: skip
    with pytest.raises(CatalogError, match=reason):
        ds.Spectra(**(right | changes))


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="step_angstrom"):
        GridChoice(step_angstrom=0.0)
    with pytest.raises(ConfigError, match="second above the first"):
        GridChoice(start_angstrom=5.0, stop_angstrom=4.0)
    one = ds.Spectra(
        [4e3, 5e3, 6e3], [1, 1, 1], ivar=[1, 1, 1], redshift=0.1, galaxy_id=1, flux_unit=FLUX, medium="air"
    )
    with pytest.raises(CatalogError, match="at most 100000 elements"):
        ds.write_spectra(tmp_path / "a.zarr", one, step_angstrom=1e-3)
    with pytest.raises(CatalogError, match="between start and stop"):
        ds.write_spectra(tmp_path / "a.zarr", one, start_angstrom=9e3)
    twice = [one, one]
    with pytest.raises(CatalogError, match="read before"):
        ds.write_spectra(tmp_path / "a.zarr", twice)


@pytest.mark.parametrize("kind", ["desi", "sdss", "jwst"])
def test_real_files_become_a_valid_catalog(kind, tmp_path):
    folder = Path(__file__).resolve().parents[3] / "shared" / "real" / kind
    files = sorted(folder.glob("*.fits"))
    if not files:
        pytest.skip(f"no real files in {folder}")
    options = ["--redshift", "4.234"] if kind == "jwst" else []
    ended = CliRunner().invoke(app, ["ingest", kind, *map(str, files), str(tmp_path / "out.zarr"), *options])
    told = ended.stderr
    assert ended.exit_code == 0, told
    report = validate_catalog(tmp_path / "out.zarr")
    assert report.ok
    assert report.row_problems == {}
    assert report.n_rows == {"desi": 2, "sdss": 12, "jwst": 1}[kind]
    if kind == "desi":
        with fits.open(folder / "coadd-4-80613-thru20210324.fits") as hdus:
            blue = hdus["B_FLUX"].data[0, :2000]
        assert np.allclose(Catalog.open(tmp_path / "out.zarr").rows(0, 1).flux[0, :2000] * 1e17, blue, rtol=1e-6)
        assert "SKY" in told
        assert "no redshifts" in told


def test_real_spectra_at_rest_are_those_that_users_rebinned_by_hand(tmp_path):
    folder = Path(__file__).resolve().parents[3] / "shared" / "real"
    coadd = folder / "desi" / "coadd-4-80613-thru20210324.fits"
    prism = folder / "jwst" / "ceers-1345_933-prism.spec.fits"
    if not coadd.exists():
        pytest.skip(f"no real files in {folder}")
    with fits.open(coadd) as hdus, fits.open(coadd.with_name(coadd.name.replace("coadd", "redrock"))) as fits_of:
        z = float(fits_of["REDSHIFTS"].data["Z"][0])
        wave = 3600.0 + 0.8 * np.arange(7781)
        weighted, weight = np.zeros(wave.size), np.zeros(wave.size)
        for arm in "BRZ":
            at = np.rint((hdus[f"{arm}_WAVELENGTH"].data - 3600.0) / 0.8).astype(int)
            ivar = np.where(hdus[f"{arm}_MASK"].data[0] == 0, hdus[f"{arm}_IVAR"].data[0], 0.0)
            weighted[at] += ivar * hdus[f"{arm}_FLUX"].data[0]
            weight[at] += ivar
        desi = wave, np.divide(weighted, weight, out=np.zeros(wave.size), where=weight > 0), weight
    with fits.open(prism) as hdus:
        data = hdus["SPEC1D"].data
        wave = data["wave"].astype(float) * 1e4
        per_wavelength = 1e-29 * make.LIGHT / wave**2 / 1e-17
        flux, error = data["flux"] * per_wavelength, data["err"] * per_wavelength
        good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
        jwst = wave, np.where(good, flux, 0.0), np.where(good, np.where(good, error, 1.0) ** -2.0, 0.0)
    grid = GridChoice(step_angstrom=50.0, start_angstrom=3060.0, stop_angstrom=9910.0, frame="rest")
    for (wave, flux, ivar), path, z_of, reader in (
        (desi, coadd, z, DesiReader()),
        (jwst, prism, 4.234, JwstReader(Redshifts("4.234"))),
    ):
        ingest([path], tmp_path / "a.zarr", reader, grid, source="test")
        catalog = Catalog.open(tmp_path / "a.zarr")
        rows, edges = catalog.rows(0, 1), WavelengthGrid(wave).edges
        stretch = 1 + z_of
        by_hand = ds.rebin_spectrum(edges / stretch, flux * stretch, ivar / stretch**2, catalog.grid.edges)
        good = rows.good[0]
        assert (good == (by_hand[2] == 0)).all()
        assert good.sum() > 80
        np.testing.assert_allclose(rows.flux[0][good] * 1e17, by_hand[0][good], rtol=1e-5)
        np.testing.assert_allclose(rows.ivar[0][good] * 1e-34, by_hand[1][good], rtol=1e-5)
