"""Many files at once, and again after an interruption: the same catalog, and no file is read twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import survey_files as make

from digs_survey.catalog import Catalog
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.sdss import SdssReader
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.store.locations import location

FILES = 12


class Counted:
    """Reads as SDSS's reader does, notes which files it read, and is interrupted at one of them."""

    def __init__(self, notes: Path) -> None:
        self.notes, self._reader = notes, SdssReader()

    def __call__(self, path):
        if (self.notes / f"stop-{path.name}").exists():
            raise KeyboardInterrupt
        with (self.notes / "read").open("a") as note:
            note.write(f"{path.name}\n")
        yield from self._reader(path)

    @property
    def read(self) -> list[str]:
        note = self.notes / "read"
        names = note.read_text().split() if note.exists() else []
        note.unlink(missing_ok=True)
        return names


@pytest.fixture
def files(tmp_path):
    made = [make.spec(tmp_path / f"spec-0266-51630-{k:04d}.fits", Z=0.05 + 0.01 * k, FIBERID=k) for k in range(FILES)]
    (tmp_path / "spec-0266-51630-9999.fits").write_bytes(b"no FITS file")
    return [*made, tmp_path / "spec-0266-51630-9999.fits"]


def contents(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def test_processes_write_what_one_writes(files, tmp_path):
    reports = []
    for workers in (0, 2):
        told: list[int] = []
        out = tmp_path / f"with-{workers}.zarr"
        reports.append(ingest(files, out, SdssReader(), source="test", workers=workers, advance=told.append))
        assert sum(told) == len(files)
    assert contents(tmp_path / "with-0.zarr") == contents(tmp_path / "with-2.zarr")
    assert reports[0] == reports[1]
    assert (reports[0].rows, len(reports[0].left_out)) == (FILES, 1)
    assert not list(tmp_path.glob(".*-parts"))


def test_strict_names_the_fault_that_a_process_met(files, tmp_path):
    with pytest.raises(CatalogError, match=r"strict asks to stop(?s:.*)spec-0266-51630-9999.fits"):
        ingest(files, tmp_path / "out.zarr", SdssReader(), source="test", workers=2, strict=True)
    assert not (tmp_path / "out.zarr").exists()
    assert not list(tmp_path.glob(".*-parts"))


def test_after_an_interruption_it_goes_on(files, tmp_path):
    ingest(files, tmp_path / "whole.zarr", SdssReader(), source="test")
    reader, out = Counted(tmp_path), tmp_path / "out.zarr"
    stop = tmp_path / f"stop-{files[7].name}"
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        ingest(files, out, reader, source="test")
    assert not out.exists()
    assert set(reader.read) == {file.name for file in files[:7]}
    stop.unlink()
    told: list[int] = []
    ingest(files, out, reader, source="test", advance=told.append)
    # The first file says once more what the elements are.
    assert reader.read == [file.name for file in (files[0], *files[7:])]
    assert sum(told) == len(files)
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert not list(tmp_path.glob(".*-parts"))


@pytest.mark.parametrize("what", ["choice", "file"])
def test_what_was_read_otherwise_is_read_again(files, tmp_path, what):
    reader, out = Counted(tmp_path), tmp_path / "out.zarr"
    stop = tmp_path / f"stop-{files[7].name}"
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        ingest(files, out, reader, source="test")
    stop.unlink()
    assert reader.read
    choice = GridChoice(step_angstrom=20.0) if what == "choice" else GridChoice()
    if what == "file":
        make.spec(files[2], Z=0.3, FIBERID=2)
        os.utime(files[2], ns=(1, 1))
    ingest(files, out, reader, choice, source="test")
    assert reader.read == [file.name for file in (files[0], *files)]
    found = Catalog.open(out).rows(0, FILES).redshift
    np.testing.assert_allclose(found[2], 0.3 if what == "file" else 0.07)


def test_two_at_once_do_not_share_their_parts(files, tmp_path):
    def reader(path):
        with pytest.raises(CatalogError, match="another process writes it"):
            ingest(files, tmp_path / "out.zarr", SdssReader(), source="test")
        yield from SdssReader()(path)

    ingest(files[:1], tmp_path / "out.zarr", reader, source="test")
    assert Catalog.open(tmp_path / "out.zarr").n_rows == 1
    assert not list(tmp_path.glob(".*"))


def test_a_cluster_does_not_write_to_an_object_store(files):
    with pytest.raises(ConfigError, match="write the catalog to a disk that its workers see"):
        ingest(files, location("s3://bucket/out.zarr"), SdssReader(), source="test", address="tcp://127.0.0.1:1")
