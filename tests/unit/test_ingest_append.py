"""Files that are added to a catalog: what it then holds is what all files together give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import survey_files as make
import zarr
from typer.testing import CliRunner

from digs_survey.catalog import Catalog, validate_catalog, write_catalog
from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.sdss import SdssReader
from digs_survey.cli import app
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import location


def contents(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def observed(folder: Path, name: str, ids=(100, 101), **changes) -> Path:
    """A coadd of DESI with its redshifts beside it."""
    beside = folder / f"redrock-{name}.fits"
    beside.unlink(missing_ok=True)
    make.redrock(beside, ids, make.REDSHIFT)
    return make.coadd(folder / f"coadd-{name}.fits", len(ids), targetid=ids, **changes)


def read(files, out, reader, *choice, **more):
    return ingest(files, out, reader, *choice, source="test", **more)


@pytest.fixture
def spectra(tmp_path):
    """Files of SDSS on the same pixels."""
    return [make.spec(tmp_path / f"spec-0266-51630-{k:04d}.fits", Z=0.05 + 0.01 * k, FIBERID=k) for k in range(5)]


@pytest.mark.parametrize("choice", [GridChoice(), GridChoice(step_angstrom=7.0), GridChoice(5.0, 3325.0, frame="rest")])
def test_the_catalog_is_that_of_all_files(spectra, tmp_path, choice):
    whole, out = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    read(spectra, whole, SdssReader(), choice)
    read(spectra[:3], out, SdssReader(), choice)
    report = read(spectra[3:], out, SdssReader(), append=True)
    assert (report.rows, report.added, report.replaced, report.left_out) == (5, 2, 0, [])
    assert contents(out) == contents(whole)
    assert not list(tmp_path.glob(".*"))


def test_the_grid_grows_where_new_rows_reach_further_and_keeps_its_elements(tmp_path):
    short = observed(tmp_path, "a", without=("Z_WAVELENGTH", "Z_FLUX", "Z_IVAR", "Z_MASK"))
    long = observed(tmp_path, "b", [300, 301])
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    read([short], out, DesiReader([short]))
    before = Catalog.open(out)
    wave, flux = before.grid.wavelength, before.rows(0, 2).flux
    assert read([long], out, DesiReader([long]), append=True).rows == 4
    read([short, long], whole, DesiReader([short, long]))
    after = Catalog.open(out)
    assert len(after.grid) > wave.size
    assert after.grid.wavelength[: wave.size].tobytes() == wave.tobytes()
    np.testing.assert_allclose(after.grid.wavelength, Catalog.open(whole).grid.wavelength, rtol=1e-12)
    rows = after.rows(0, 4)
    assert (rows.flux[:2, : wave.size] == flux).all()
    assert not rows.good[:2, wave.size :].any()
    np.testing.assert_allclose(rows.flux, Catalog.open(whole).rows(0, 4).flux, rtol=1e-5)


def test_a_file_that_is_read_again_replaces_its_rows_in_their_place(spectra, tmp_path):
    out = tmp_path / "out.zarr"
    read(spectra[:4], out, SdssReader())
    before = Catalog.open(out).rows(0, 4)
    make.spec(spectra[1], Z=0.31, FIBERID=1)
    report = read([spectra[4], spectra[1], spectra[1]], out, SdssReader(), append=True)
    assert (report.rows, report.added, report.replaced) == (5, 1, 1)
    assert [(item.rows, item.file) for item in report.left_out] == [(1, str(spectra[1]))]
    after, columns = Catalog.open(out).rows(0, 5), Catalog.open(out).columns(0, 5)
    assert after.redshift.tolist() == [0.05, 0.31, 0.07, 0.08, 0.09]
    assert after.galaxy_id[:4].tolist() == before.galaxy_id.tolist()
    assert columns["source_file"].tolist() == [str(spectra[k]) for k in range(5)]
    assert (after.flux[:4] == before.flux).all()


def test_many_rows_of_a_file_that_is_read_again_keep_their_order(tmp_path):
    ids = np.arange(40)
    first, out = observed(tmp_path, "a", ids), tmp_path / "out.zarr"
    read([first], out, DesiReader([first]))
    shuffled = np.random.default_rng(0).permutation(40)[:33]
    observed(tmp_path, "a", shuffled, flux=lambda flux: 2 * flux)
    report = read([first], out, DesiReader([first]), append=True)
    assert (report.rows, report.added, report.replaced) == (40, 0, 33)
    rows = Catalog.open(out).rows(0, 40)
    assert rows.galaxy_id.tolist() == ids.tolist()
    twice = rows.flux[:, 20] / rows.flux[:, 20].min()
    np.testing.assert_allclose(twice, np.where(np.isin(ids, shuffled), 2.0, 1.0), rtol=1e-5)


def test_a_row_of_another_file_is_left_out_as_it_would_be_of_all_files(spectra, tmp_path):
    out, other = tmp_path / "out.zarr", make.spec(tmp_path / "spec-again.fits", Z=0.4, FIBERID=1)
    read(spectra, out, SdssReader())
    before = contents(out)
    report = read([other], out, SdssReader(), append=True)
    assert (report.rows, report.added, report.replaced) == (5, 0, 0)
    assert "was read before" in report.left_out[0].reason
    assert contents(out) == before


def test_columns_that_only_some_files_have_are_missing_elsewhere(spectra, tmp_path):
    out, coadd = tmp_path / "out.zarr", observed(tmp_path, "a")
    read(spectra[:2], out, SdssReader())
    read([coadd], out, DesiReader([coadd]), append=True)
    read(spectra[2:], out, SdssReader(), append=True)
    assert validate_catalog(out).ok
    catalog = Catalog.open(out)
    columns = catalog.columns(0, catalog.n_rows)
    assert columns["zwarn"].shape == (7,)
    assert np.isnan(columns["deltachi2"][[0, 1, 4, 5, 6]]).all()
    assert catalog.galaxy_id(2, 4).tolist() == ["100", "101"]
    described = [catalog.column_attrs(name).get("description", "") for name in catalog.survey_columns]
    assert not any(text.count("where the file has none") > 1 for text in described)


class Columns:
    """Reads as SDSS's reader does, with a column of its own: a value for each file, or none."""

    def __init__(self, **values) -> None:
        self.values = values

    def __call__(self, path):
        for found in SdssReader()(path):
            if path.stem[-1] in self.values:
                found.columns["own"] = (np.array([self.values[path.stem[-1]]]), {"description": "own"})
            yield found


@pytest.mark.parametrize(
    ("later", "expected", "description"),
    [
        (1.5, [5.0, np.nan, 1.5], "own"),
        ("q", ["5", "", "q"], "own"),
        (7, [5, -1, 7], "own; -1 where the file has none"),
    ],
)
def test_what_files_lack_stays_missing_when_later_files_change_the_columns_type(
    spectra, tmp_path, later, expected, description
):
    out, reader = tmp_path / "out.zarr", Columns(**{"0": 5, "2": later})
    read(spectra[:1], out, reader)
    for file in spectra[1:3]:
        read([file], out, reader, append=True)
    catalog = Catalog.open(out)
    assert np.array_equal(catalog.columns(0, 3)["own"], expected, equal_nan=isinstance(later, float))
    assert catalog.column_attrs("own")["description"] == description


def test_rows_that_their_file_has_no_more_are_kept_and_counted(tmp_path):
    file, out = observed(tmp_path, "a", [1, 2, 3]), tmp_path / "out.zarr"
    read([file], out, DesiReader([file]))
    observed(tmp_path, "a", [3, 1])
    report = read([file], out, DesiReader([file]), append=True)
    assert (report.rows, report.replaced, report.gone) == (3, 2, 1)
    assert Catalog.open(out).galaxy_id(0, 3).tolist() == [1, 2, 3]


def test_a_relative_path_is_the_same_file(spectra, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    monkeypatch.chdir(tmp_path)
    read([Path(spectra[0].name)], out, SdssReader())
    assert read(spectra[:1], out, SdssReader(), append=True).replaced == 1


def test_what_a_user_changed_is_kept_or_refused(spectra, tmp_path):
    out = tmp_path / "out.zarr"
    read(spectra[:2], out, SdssReader())
    group = zarr.open_group(str(out), mode="r+")
    group["mask"][0, 40:50] = 4
    group["redshift"][1] = 0.2
    good = Catalog.open(out).rows(0, 2).good
    read(spectra[2:3], out, SdssReader(), append=True)
    after = Catalog.open(out).rows(0, 3)
    assert (after.good[:2] == good).all()
    assert after.redshift[:2].tolist() == [0.05, 0.2]
    group = zarr.open_group(str(out), mode="r+")
    units = {name: group[name].attrs["units"] for name in ("flux", "ivar")}
    group["flux"].attrs["units"], group["ivar"].attrs["units"] = (
        "1e-15 erg / (s cm2 Angstrom)",
        "1e+30 cm4 Angstrom2 s2 / erg2",
    )
    with pytest.raises(CatalogError, match="undo what was changed"):
        read(spectra[3:], out, SdssReader(), append=True)
    for name, unit in units.items():
        group[name].attrs["units"] = unit
    group.create_array("more", data=np.zeros((3, after.flux.shape[1])), dimension_names=("galaxy", "wavelength"))
    with pytest.raises(CatalogError, match="observed, more;"):
        read(spectra[3:], out, SdssReader(), append=True)


def test_a_catalog_stands_there_while_the_old_one_is_deleted(spectra, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    read(spectra[:2], out, SdssReader())
    delete = shutil.rmtree

    def killed(folder, *args, **options):
        if "-removed-" in str(folder):
            raise KeyboardInterrupt
        delete(folder, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        read(spectra[2:], out, SdssReader(), append=True)
    assert Catalog.open(out).n_rows == 5


def test_a_catalog_in_an_object_store_is_not_put_at_risk(spectra):
    with pytest.raises(ConfigError, match="append to a copy"):
        read(spectra, location("s3://bucket/out.zarr"), SdssReader(), append=True)


def test_what_cannot_be_added_to_leaves_all_as_it_was(spectra, tmp_path):
    out, bad = tmp_path / "out.zarr", tmp_path / "bad.fits"
    read(spectra[:2], out, SdssReader(), GridChoice(step_angstrom=7.0))
    before = contents(out)
    bad.write_bytes(b"no FITS file")
    with pytest.raises(CatalogError, match="at least one spectrum"):
        read([bad], out, SdssReader(), append=True)
    with pytest.raises(CatalogError, match="strict"):
        read([spectra[2], bad], out, SdssReader(), append=True, strict=True)
    with pytest.raises(ConfigError, match=r"step_angstrom: the catalog has 7\.0, asked for is 8\.0"):
        read(spectra[2:], out, SdssReader(), GridChoice(step_angstrom=8.0), append=True)
    with pytest.raises(CatalogError, match="leave --append away"):
        read(spectra[2:], tmp_path / "none.zarr", SdssReader(), append=True)
    assert contents(out) == before
    assert read(spectra[2:], out, SdssReader(), GridChoice(step_angstrom=7.0), append=True).rows == 5
    plain = tmp_path / "plain.zarr"
    values = {"redshift": [0.1], "galaxy_id": [1], "flux_unit": "1e-17 erg / (s cm2 Angstrom)"}
    ones = np.ones((1, 3))
    write_catalog(
        plain, grid=WavelengthGrid(np.array([4001.0, 4002.0, 4003.0])), flux=ones, ivar=ones, mask=0 * ones, **values
    )
    with pytest.raises(CatalogError, match="digs-survey ingest"):
        read(spectra, plain, SdssReader(), append=True)


def test_the_command_says_how_many_are_new(spectra, tmp_path):
    out, call = str(tmp_path / "out.zarr"), ["ingest", "sdss", "--quiet"]
    assert CliRunner().invoke(app, [*call, *map(str, spectra[:2]), out]).exit_code == 0
    refused = CliRunner().invoke(app, [*call, *map(str, spectra[2:]), out])
    assert refused.exit_code == 2
    assert "--append" in refused.output
    both = CliRunner().invoke(app, [*call, *map(str, spectra[2:]), out, "--append", "--overwrite"])
    assert both.exit_code == 2
    added = CliRunner().invoke(app, [*call, *map(str, spectra[1:]), out, "--append"])
    assert added.exit_code == 0
    assert "5 rows: 3 added, 1 read again" in added.output
