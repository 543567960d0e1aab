"""Exports of a folder of parts: all rows in their order, in memory that does not grow, or a clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import votable
from astropy.table import Table
from result_tables import rows, schema, write_parts

from digs_survey import cli, formats
from digs_survey.errors import DigsError
from digs_survey.results.export import FORMATS, export_table
from digs_survey.store.storage import write_json

N_ROWS, PER_PART = 1000, 300
READERS = {"fits": "fits", "ecsv": "ascii.ecsv", "votable": "votable", "csv": "ascii.csv"}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "percentiles.parquet", N_ROWS, PER_PART)


@pytest.mark.parametrize("format", list(READERS))
@pytest.mark.parametrize("at_once", [64, 8192])
def test_rows_of_all_parts_come_in_order(
    parts: Path, tmp_path: Path, format: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("records", "binary", "votable"):
        monkeypatch.setattr(f"digs_survey.results.export.{module}.ROWS", at_once)
    monkeypatch.setattr("digs_survey.results.export.tabular._ROWS", at_once)
    table = Table.read(export_table(parts, tmp_path / "out", format), format=READERS[format])
    expected = rows(0, N_ROWS, schema())
    assert table.colnames == expected.column_names
    for field in expected.schema:
        found, values = table[field.name], expected[field.name].to_pylist()
        if pa.types.is_floating(field.type):
            numbers = np.ma.filled(np.ma.asarray(found, dtype=float), np.nan)
            assert np.array_equal(numbers.astype(field.type.to_pandas_dtype()), values, equal_nan=True)
        else:
            assert [str(value) for value in found] == [str(value) for value in values]
    if format == "votable":
        votable.parse(tmp_path / "out", verify="exception")


def test_parquet_becomes_one_file_with_all_metadata(parts: Path, tmp_path: Path) -> None:
    out = export_table(parts, tmp_path / "one.parquet", "parquet")
    found = pq.read_table(out)
    assert found.to_pandas().equals(rows(0, N_ROWS, schema()).to_pandas())
    assert found.schema.equals(schema(), check_metadata=True)
    assert pq.ParquetFile(out).num_row_groups == 1


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_folder_and_one_file_give_the_same_bytes(parts: Path, tmp_path: Path, format: str) -> None:
    one = export_table(parts, tmp_path / "one.parquet", "parquet")
    first, second = export_table(parts, tmp_path / "a", format), export_table(one, tmp_path / "b", format)
    assert first.read_bytes() == second.read_bytes()


def _cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-200])


def _overwrite_pages(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[4:4000] = b"\xff" * 3996
    part.write_bytes(content)


def _other_column(part: Path) -> None:
    table = pq.read_table(part)
    pq.write_table(table.rename_columns([name.replace("tage", "age") for name in table.column_names]), part)


def _other_unit(part: Path) -> None:
    table = pq.read_table(part)
    field = table.schema.field("ra").with_metadata({"unit": "hourangle"})
    pq.write_table(table.set_column(2, field, table["ra"]), part)


def _other_model(part: Path) -> None:
    table = pq.read_table(part)
    metadata = {**table.schema.metadata, b"model_hash": b"another"}
    pq.write_table(table.replace_schema_metadata(metadata), part)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_cut, "cannot be read"),
        (_overwrite_pages, "cannot be read"),
        (Path.unlink, "is missing, while part-00000003.parquet is there"),
        (_other_column, "columns differ in age_p16"),
        (_other_unit, "column 'ra' is double with .*hourangle"),
        (_other_model, "metadata of the table differ in model_hash"),
    ],
)
def test_a_bad_part_is_named(parts: Path, tmp_path: Path, damage, expected: str) -> None:
    damage(parts / "part-00000002.parquet")
    for format in FORMATS:
        with pytest.raises(DigsError, match=f"part-00000002.parquet.*{expected}.*--redo map"):
            export_table(parts, tmp_path / "out", format)
    assert os.listdir(tmp_path) == [parts.name]


def test_parts_lost_at_the_end_are_noticed_by_the_count_of_rows(parts: Path, tmp_path: Path) -> None:
    (parts / "part-00000003.parquet").unlink()
    with pytest.raises(DigsError, match="expected the 1000 rows .* found 900 in 3 file"):
        export_table(parts, tmp_path / "out", "csv", rows=N_ROWS)


def test_a_folder_without_parts(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / ".part-00000000.parquet-1f").write_text("being written")
    with pytest.raises(DigsError, match="expected files part-00000000.parquet"):
        export_table(tmp_path / "p", tmp_path / "out", "csv")


def test_other_files_in_the_folder_do_not_matter(parts: Path, tmp_path: Path) -> None:
    shutil.copy(parts / "part-00000001.parquet", parts / ".part-00000001.parquet-1f")
    (parts / "_SUCCESS").touch()
    assert len(Table.read(export_table(parts, tmp_path / "t.fits", "fits"))) == N_ROWS


def _main(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["digs-survey", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command_checks_the_manifest(parts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    key = {"formats": formats.numbers("posterior", "results")}
    manifest = {"format": formats.MANIFEST, "stages": {"map": {"status": "running", "rows": 0, "key": key}}}
    write_json(tmp_path / "manifest.json", manifest)
    command = ("export", tmp_path / "out.vot", "-o", tmp_path)
    assert _main(*command, monkeypatch=monkeypatch) == 6
    assert "map stage is running, not done" in capsys.readouterr().err
    manifest["stages"]["map"] |= {"status": "done", "rows": N_ROWS + 1}
    write_json(tmp_path / "manifest.json", manifest)
    assert _main(*command, monkeypatch=monkeypatch) == 1
    assert "expected the 1001 rows" in capsys.readouterr().err
    manifest["stages"]["map"]["rows"] = N_ROWS
    write_json(tmp_path / "manifest.json", manifest)
    assert _main(*command, monkeypatch=monkeypatch) == 0
    assert len(Table.read(tmp_path / "out.vot", format="votable")) == N_ROWS


_MEASURE = """
import re, sys
from pathlib import Path
import pyarrow.parquet as pq
from digs_survey.results.export import export_table

# not getrusage, which counts the peak of the process that started this one too
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

few, many, format = sys.argv[1:]
for source in (few, many):
    pq.read_table(source) if format == "whole" else export_table(source, f"{source}.{format}", format)
    print(peak())
"""


def _growth(few: Path, many: Path, format: str) -> int:
    """Return by how many bytes the peak of memory is higher after the larger table, in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, few, many, format]
    ran = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=300)
    first, second = map(int, ran.stdout.split())
    return 1024 * (second - first)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    piece = rows(0, 20_000, schema())
    tables: list[Path] = []
    for n_parts in (5, 50):
        tables.append(tmp_path / f"{n_parts}-parts")
        tables[-1].mkdir()
        pq.write_table(piece, tables[-1] / "part-00000000.parquet")
        for i in range(1, n_parts):
            os.link(tables[-1] / "part-00000000.parquet", tables[-1] / f"part-{i:08d}.parquet")
    grown = 45 * piece.nbytes
    assert _growth(*tables, "whole") > 0.5 * grown
    for format in FORMATS:
        growth = _growth(*tables, format)
        # Arrow keeps a part of what it has freed
        assert growth < 0.2 * grown, f"{format}: {growth / 2**20:.0f} of {grown / 2**20:.0f} MiB"
