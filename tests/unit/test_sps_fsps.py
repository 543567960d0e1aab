from __future__ import annotations

import importlib.util

import pytest

from digs_survey.config import GridConfig, ModelConfig
from digs_survey.errors import MissingDependencyError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps import fsps
from digs_survey.sps.prospector import ProspectorSimulator

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("fsps") is None,
    reason="pip install 'fsps==0.4.8' to run this",
)


@pytest.fixture(autouse=True)
def _forget():
    fsps._check.cache_clear()
    yield
    fsps._check.cache_clear()


def test_not_installed(monkeypatch):
    monkeypatch.setattr(fsps.importlib.util, "find_spec", lambda name: None)
    status = fsps.check_fsps()
    assert not status.ok
    assert status.problem == "python-fsps is not installed"
    assert "fsps==0.4.8" in status.remedy


@needs_wheel
def test_wrong_wheel(monkeypatch):
    monkeypatch.setattr(fsps, "version", lambda name: "0.5.0")
    status = fsps.check_fsps()
    assert not status.ok
    assert "0.5.0" in status.problem
    assert "fsps==0.4.8" in status.remedy


@needs_wheel
def test_no_home_is_refused_before_fsps_is_imported(monkeypatch):
    monkeypatch.delenv("SPS_HOME", raising=False)
    assert "SPS_HOME is not set" in fsps.check_fsps().problem
    with pytest.raises(MissingDependencyError, match="SPS_HOME is not set.*export SPS_HOME"):
        ProspectorSimulator(ModelConfig(source="fsps"), Prior(), WavelengthGrid.from_config(GridConfig()))


@needs_wheel
def test_missing_files_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SPS_HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "emlines_info.dat").touch()
    problem = fsps.check_fsps().problem
    assert "lacks data/FILTER_LIST" in problem
    assert "emlines_info" not in problem


@needs_wheel
def test_a_path_too_long_for_fortran(monkeypatch):
    monkeypatch.setenv("SPS_HOME", "/" + "long/" * 50)
    assert "251 characters" in fsps.check_fsps().problem


def lay_out(folder, lines):
    for name in fsps._FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n" * lines.get(name, 0))


@needs_wheel
@pytest.mark.parametrize("name", fsps._LINES)
def test_another_release_of_the_data(monkeypatch, tmp_path, name):
    lay_out(tmp_path, {**fsps._LINES, name: 7})
    monkeypatch.setenv("SPS_HOME", str(tmp_path))
    status = fsps.check_fsps()
    assert f"another release of the FSPS data: {name} has 7 lines, v3.3 has {fsps._LINES[name]}" in status.problem
    assert "--branch v3.3" in status.remedy


@needs_wheel
def test_broken_data_end_another_process(monkeypatch, tmp_path):
    """All files are there and hold nonsense: FSPS itself fails on them, elsewhere."""
    lay_out(tmp_path, fsps._LINES)
    (tmp_path / "STANDIN.txt").touch()
    monkeypatch.setenv("SPS_HOME", str(tmp_path))
    status = fsps.check_fsps()
    assert not status.ok
    assert "FSPS stopped loading its data" in status.problem
    assert "v3.3" in status.remedy
    assert status.standin
