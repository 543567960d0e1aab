"""The command line: exit codes, and errors that come before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from estimators import GRID, freeze, small_config

from digs_survey.catalog import write_catalog
from digs_survey.cli import main

SDSS = sorted((Path(__file__).parents[2] / "catalogs" / "sdss").glob("*.fits"))


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["digs-survey", *map(str, arguments)])
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def catalog(tmp_path):
    path = tmp_path / "catalog.zarr"
    flux = np.ones((6, len(GRID)))
    write_catalog(
        path,
        grid=GRID,
        flux=flux,
        ivar=400 * flux,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(6, 0.1),
        galaxy_id=np.arange(6),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    return path


def test_version_and_help(cli):
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("digs-survey ")
    code, out, _ = cli("--help")
    assert code == 0
    for name in (
        *("run", "simulate", "augment", "train", "map", "audit", "report"),
        *("validate", "ingest", "export", "status", "doctor"),
    ):
        assert name in out


def test_a_broken_catalog_is_refused_with_every_violation_before_any_work(cli, catalog, tmp_path):
    group = zarr.open_group(str(catalog), mode="r+")
    del group["redshift"]
    group["wavelength"].attrs["frame"] = "lab"
    group["flux"].attrs["units"] = "furlong"
    for command in (("validate", catalog), ("run", catalog, "-o", tmp_path / "run", "-q")):
        code, _, err = cli(*command)
        assert code == 4
        assert "redshift: missing" in err
        assert "frame = 'rest' or 'observed', found 'lab'" in err
        assert "furlong" in err
    assert not (tmp_path / "run").exists()


def test_an_observed_frame_catalog_is_refused_before_any_work(cli, catalog, tmp_path):
    zarr.open_group(str(catalog), mode="r+")["wavelength"].attrs["frame"] = "observed"
    code, _, err = cli("run", catalog, "-o", tmp_path / "run", "-q")
    assert code == 4
    assert "expected frame 'rest'" in err
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_reported_but_not_refused(cli, catalog):
    group = zarr.open_group(str(catalog), mode="r+")
    group["flux"][2, 3] = np.nan
    code, out, _ = cli("validate", catalog)
    assert code == 0
    assert "NONFINITE_FLUX: 1 of 6 rows: 2" in out


def test_a_wrong_configuration_ends_before_anything_is_written(cli, catalog, tmp_path):
    code, _, err = cli("run", catalog, "-o", tmp_path / "run", "--set", "train.epoch=3")
    assert code == 3
    assert "did you mean train.epochs?" in err
    assert not (tmp_path / "run").exists()


def test_a_line_spread_function_that_does_not_cover_the_catalog_is_refused(cli, catalog, tmp_path):
    table = ("line_spread=table", "line_spread_angstrom=[4000, 9000]", "line_spread_resolving_power=[50, 200]")
    settings = [part for key in table for part in ("--set", f"model.{key}")]
    code, _, err = cli("run", catalog, "-o", tmp_path / "run", "-q", *settings)
    assert code == 3
    assert "expected to cover the grid, 3975.0 to 4975.0 Angstrom" in err
    assert "found 4000 to 9000" in err
    assert not (tmp_path / "run" / "simulations.zarr").exists()


def test_a_catalog_on_another_grid_is_refused_naming_both(cli, catalog, tmp_path):
    config = small_config()
    freeze(tmp_path / "model", config)
    other = tmp_path / "other.zarr"
    flux = np.ones((2, 30))
    write_catalog(
        other,
        grid=type(GRID)(np.arange(4000.0, 5500.0, 50.0)),
        flux=flux,
        ivar=flux,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(2, 0.1),
        galaxy_id=np.arange(2),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    code, _, err = cli("map", other, "--model", tmp_path / "model", "-o", tmp_path / "run", "-q")
    assert code == 4
    assert "30 elements, 4000 to 5450" in err
    assert "20 elements, 4000 to 4950" in err


@pytest.mark.parametrize("command", ["train", "audit", "report", "augment"])
def test_stages_out_of_order_say_what_to_run(cli, tmp_path, command):
    code, _, err = cli(command, "-o", tmp_path / "run", "-q")
    assert code == 6
    assert "run 'digs-survey" in err


def test_status_and_export_need_a_run(cli, tmp_path):
    assert cli("status", "-o", tmp_path)[0] == 6
    code, _, err = cli("export", tmp_path / "a.fits", "-o", tmp_path)
    assert code == 6
    assert "digs-survey map" in err


def test_ingest_sdss(cli, tmp_path):
    out = tmp_path / "sdss.zarr"
    code, printed, _ = cli("ingest", "sdss", *SDSS[:2], out)
    assert (code, printed.strip()) == (0, str(out))
    assert cli("validate", out)[0] == 0
    assert cli("ingest", "sdss", *SDSS[:2], out)[0] == 2
    assert cli("ingest", "sdss", *SDSS[:2])[0] == 2
    text = tmp_path / "text.fits"
    text.write_text("not a FITS file")
    code, _, err = cli("ingest", "sdss", text, tmp_path / "new.zarr")
    assert code == 4
    assert "text.fits" in err
    assert not (tmp_path / "new.zarr").exists()


def test_two_processes_do_not_share_a_run_directory(cli, catalog, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        code, _, err = cli("simulate", "-o", tmp_path / "run", "-q")
    assert code == 6
    assert "another digs-survey process" in err
