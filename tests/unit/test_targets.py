"""Places that cannot be written are named with what is in the way, whatever the error's type, before any work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from test_catalog import catalog_arguments

from digs_survey.catalog import write_catalog
from digs_survey.cli import main
from digs_survey.cli.doctor import run_checks
from digs_survey.errors import MissingDependencyError
from digs_survey.results.export import export_table
from digs_survey.store import targets
from digs_survey.store.targets import can_write, check_target, explain_write, write_remedy


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every temporary file fail, which is how a place is tried: root may write to any folder."""

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    for name in ("TemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(targets.tempfile, name, fail)


CASES = [
    (errno.EROFS, "Read-only file system.*; this file system is read-only: name a place on another one"),
    (errno.EACCES, "Permission denied.*; ask for permission to write there"),
    (errno.EPERM, "Operation not permitted.*; ask for permission to write there"),
    (errno.ENOSPC, "No space left on device.*; free some space first"),
]


@pytest.mark.parametrize(("code", "message"), CASES)
def test_each_refusal_has_its_remedy(tmp_path, monkeypatch, code, message):
    refuse(monkeypatch, code)
    with pytest.raises(MissingDependencyError, match=f"run directory {tmp_path} cannot be written .{message}"):
        check_target("run directory", tmp_path, folder=True)


def test_files_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for inside in ("file", "file/deep"):
        with pytest.raises(MissingDependencyError, match="a file is where a folder should be"):
            check_target("run directory", tmp_path / inside, folder=True)
    check_target("catalog", tmp_path / "new" / "c.zarr")
    check_target("run directory", tmp_path / "new" / "run", folder=True)
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


def test_other_errors_are_not_explained():
    assert explain_write(OSError(errno.EIO, "Input/output error")) is None
    assert explain_write(ValueError("no place")) is None
    assert write_remedy(PermissionError(errno.EACCES, "denied")) is None
    outer = RuntimeError("shard 3")
    outer.__cause__ = OSError(errno.EROFS, "Read-only file system")
    assert "read-only" in write_remedy(outer)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_an_archive_cannot_be_written(tmp_path, monkeypatch, code):
    assert can_write(tmp_path)
    assert not list(tmp_path.iterdir())
    refuse(monkeypatch, code)
    assert not can_write(tmp_path)


def test_a_trouble_of_the_disk_is_no_archive(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        can_write(tmp_path)


def test_a_store_that_refuses_objects_is_an_archive():
    class Store:
        def __truediv__(self, name):
            return self

        def write_bytes(self, data):
            raise PermissionError("Access Denied")

    assert not can_write(Store())


def test_catalogs_and_tables_name_their_place(tmp_path, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    refuse(monkeypatch, errno.EROFS)
    with pytest.raises(MissingDependencyError, match=r"t\.fits cannot be written .*read-only"):
        export_table(tmp_path / "p.parquet", tmp_path / "t.fits", "fits")
    with pytest.raises(MissingDependencyError, match=r"c\.zarr cannot be written .*read-only"):
        write_catalog(tmp_path / "c.zarr", **catalog_arguments())


@pytest.mark.parametrize(
    "command",
    [
        ["fake-catalog", "{file}/c.zarr", "--rows", "1"],
        ["ingest", "sdss", "missing.fits", "{file}/c.zarr"],
        ["simulate", "--run-dir", "{file}"],
    ],
)
def test_commands_end_with_the_code_of_what_is_outside(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "file").write_text("")
    arguments = [part.format(file=tmp_path / "file") for part in command]
    monkeypatch.setattr("sys.argv", ["digs-survey", *arguments, *(["-q"] if "ingest" not in command else [])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == MissingDependencyError.exit_code
    assert "a file is where a folder should be" in capsys.readouterr().err


def test_doctor_does_not_call_a_read_only_place_fine(tmp_path, monkeypatch):
    from digs_survey.cli import doctor

    (tmp_path / "file").write_text("")
    for folder, detail in ((tmp_path, "cannot be written"), (tmp_path / "file" / "x", "is a file")):
        monkeypatch.setattr(doctor, "can_write", lambda folder: False)
        disk = next(check for check in run_checks(Path(folder)) if check.name == "disk")
        assert disk.status == "fail"
        assert detail in disk.detail
