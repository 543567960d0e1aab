"""The command line: exit codes, and errors that come before any work."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from estimators import GRID, freeze, small_config

from digs_survey.catalog import write_catalog
from digs_survey.cli import main
from digs_survey.config import load_config

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
        *("run", "simulate", "augment", "train", "map", "audit", "escalate", "report"),
        *("validate", "ingest", "export", "status", "doctor", "reprior", "population"),
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


BEYOND = {
    "metallicity": ("prior.logzsol={low=-3,high=0}", "prior.logzsol: source 'bc03' covers -2.301 to 0.699, found -3"),
    "age": ("prior.tage={low=1,high=25}", "prior.tage: source 'bc03' covers 0 to 20, found 1 to 25"),
    "red end": (
        "grid={start_angstrom=1e8,stop_angstrom=3.5e8,step_angstrom=1e7}",
        "1e+08 to 3.5e+08 Angstrom in steps of 1e+07",
    ),
    "blue end": ("grid={start_angstrom=5,stop_angstrom=9000,step_angstrom=50}", "source 'bc03' covers 5.6 to 3.6"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_the_populations_do_not_cover_is_refused_before_any_work(cli, tmp_path, what):
    setting, message = BEYOND[what]
    code, _, err = cli("simulate", "-o", tmp_path / "run", "-q", "--set", setting)
    assert code == 3
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_catalog_beyond_the_populations_is_refused_before_any_work(cli, tmp_path):
    path, flux = tmp_path / "far.zarr", np.ones((2, 3))
    write_catalog(
        path,
        grid=type(GRID)(np.array([4e8, 5e8, 6e8])),
        flux=flux,
        ivar=flux,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(2, 0.1),
        galaxy_id=np.arange(2),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    for command in ("run", "simulate"):
        code, _, err = cli(command, path, "-o", tmp_path / "run", "-q")
        assert code == 3
        assert "grid: source 'bc03' covers" in err
        assert not (tmp_path / "run").exists()


def test_a_refused_redo_keeps_what_is_there(cli, tmp_path):
    (tmp_path / "run" / "simulations.zarr").mkdir(parents=True)
    code, _, err = cli("simulate", "--redo", "-o", tmp_path / "run", "-q", "--set", "prior.tage.high=25")
    assert code == 3
    assert "prior.tage" in err
    assert (tmp_path / "run" / "simulations.zarr").is_dir()


@pytest.mark.skipif(importlib.util.find_spec("fsps") is None, reason="python-fsps is not installed")
@pytest.mark.parametrize(
    ("home", "message"), [(None, "SPS_HOME is not set"), ("nowhere", "lacks data/emlines_info.dat")]
)
def test_fsps_without_its_data_is_refused_before_any_work(cli, monkeypatch, tmp_path, home, message):
    monkeypatch.delenv("SPS_HOME", raising=False)
    if home:
        monkeypatch.setenv("SPS_HOME", str(tmp_path / home))
    code, _, err = cli("simulate", "-o", tmp_path / "run", "-q", "--set", "model.source=fsps")
    assert code == 5
    assert message in err
    assert not (tmp_path / "run").exists()


def test_bc03_with_an_unusable_sps_home_is_refused_before_any_work(tmp_path):
    """Prospector imports python-fsps wherever SPS_HOME is set: in a process that has not imported it yet."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "emlines_info.dat").touch()
    command = [sys.executable, "-m", "digs_survey", "simulate", "-o", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "SPS_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 5
    assert "unset SPS_HOME" in done.stderr
    assert not (tmp_path / "run").exists()


def test_n_is_the_configured_number_of_simulations(cli, monkeypatch, tmp_path):
    counts = []
    monkeypatch.setattr("digs_survey.simulate.simulation_set.simulate", lambda *_, count, **__: counts.append(count))
    assert cli("simulate", "--n", "1_000_000", "-o", tmp_path / "run", "-q")[0] == 0
    assert counts == [1_000_000]
    assert load_config(tmp_path / "run" / "config.toml").simulate.simulations == 1_000_000
    code, _, err = cli("simulate", "--n", "10", "-o", tmp_path / "run", "-q")
    assert code == 6
    assert "simulate.simulations: was 1000000, now 10" in err
    assert cli("simulate", "--n", "0", "-o", tmp_path / "new", "-q")[0] == 2


def test_augment_takes_a_scheduler_and_makes_pairs_again(cli, monkeypatch, tmp_path):
    seen = []

    def augment(survey):
        seen.append((survey.dask_address, survey.dashboards, (tmp_path / "run" / "pairs.zarr").exists()))

    monkeypatch.setattr("digs_survey.run.survey.Survey.augment", augment)
    (tmp_path / "run" / "pairs.zarr").mkdir(parents=True)
    where = ("augment", "-o", tmp_path / "run", "-q", "--dask-scheduler-address", "tcp://somewhere:8786")
    assert cli(*where)[0] == 0
    assert cli(*where, "--redo")[0] == 0
    assert seen == [("tcp://somewhere:8786", False, True), ("tcp://somewhere:8786", False, False)]


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


@pytest.mark.parametrize("command", ["train", "audit", "escalate", "report", "augment"])
def test_stages_out_of_order_say_what_to_run(cli, tmp_path, command):
    (tmp_path / "run").mkdir()
    code, _, err = cli(command, "-o", tmp_path / "run", "-q")
    assert code == 6
    assert "run 'digs-survey" in err


def test_status_and_export_need_a_run(cli, tmp_path):
    assert cli("status", "-o", tmp_path)[0] == 6
    code, _, err = cli("export", tmp_path / "a.fits", "-o", tmp_path)
    assert code == 6
    assert "digs-survey map" in err
    assert cli("reprior", tmp_path, "--prior", "new.toml")[0] == 6
    assert cli("population", tmp_path, "--parameter", "logzsol")[0] == 6


@pytest.mark.parametrize("command", ["augment", "train", "audit", "escalate", "report", "verify"])
def test_a_command_on_a_run_that_is_not_there_makes_none(cli, tmp_path, command):
    code, _, err = cli(command, "-o", tmp_path / "nowhere")
    assert code == 6
    assert "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


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


def test_ingest_replaces_no_file_and_no_folder_that_is_no_catalog(cli, tmp_path):
    data = SDSS[0].read_bytes()
    for name in ("spec-a.fits", "spec-b", "spec-c.FITS"):
        (tmp_path / name).write_bytes(data)
        code, _, err = cli("ingest", "sdss", SDSS[0], tmp_path / name, "--overwrite")
        assert (code, (tmp_path / name).read_bytes() == data) == (2, True)
        assert "catalog to write" in err
    (tmp_path / "folder").mkdir()
    code, _, err = cli("ingest", "sdss", SDSS[0], tmp_path / "folder", "--overwrite")
    assert (code, (tmp_path / "folder").is_dir()) == (2, True)
    assert cli("ingest", "sdss", SDSS[0], tmp_path / "a.zarr")[0] == 0
    assert cli("ingest", "sdss", SDSS[0], tmp_path / "a.zarr", "--overwrite", "--frame", "rest")[0] == 0
    assert cli("ingest", "sdss", SDSS[0], tmp_path / "b.zarr", "--frame", "moved")[0] == 2


def test_two_processes_do_not_share_a_run_directory(cli, catalog, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        code, _, err = cli("simulate", "-o", tmp_path / "run", "-q")
    assert code == 6
    assert "another digs-survey process" in err


def test_dashboards_that_are_not_installed_are_refused_by_the_extra(cli, tmp_path, monkeypatch):
    from digs_survey.cluster import dashboards

    monkeypatch.setattr(dashboards, "_NEEDED", ("bokeh_of_another_world",))
    (tmp_path / "run").mkdir()
    for ask in ([], ["by environment"]):
        if ask:
            monkeypatch.setenv("DIGS_SURVEY_DASHBOARDS", "1")
        code, _, err = cli("train", "-o", tmp_path / "run", *([] if ask else ["--dashboards"]))
        assert code == 5
        assert "bokeh_of_another_world" in err
        assert "digs-survey[dashboards]" in err
        assert not (tmp_path / "run" / "manifest.json").exists()
    monkeypatch.setenv("DIGS_SURVEY_DASHBOARDS", "0")
    code, _, err = cli("train", "-o", tmp_path / "run")
    assert code == 6
    assert "run 'digs-survey simulate" in err
