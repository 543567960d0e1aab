"""Identifiers: what is one and the same, and what is refused because nobody could tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from test_catalog import catalog_arguments

from digs_survey.catalog import Catalog, validate_catalog, write_catalog
from digs_survey.errors import CatalogError

LATIN = [f"Mrk{letter}".encode("latin-1") for letter in "éèêëüö"]


def with_bytes(path: Path, name: str, values: list[bytes]) -> zarr.Array:
    """Replace an array of a catalog by one of bytes, as Zarr 2 keeps them."""
    write_catalog(path, **(catalog_arguments() | {"galaxy_id": np.arange(6)}))
    group = zarr.open_group(str(path))
    del group[name]
    array = group.create_array(name, shape=(6,), dtype="S8", dimension_names=("galaxy",))
    array[:] = np.array(values, dtype="S8")
    return array


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
class TestBytes:
    def test_identifiers_that_are_no_utf8_are_refused(self, tmp_path: Path) -> None:
        with_bytes(tmp_path / "c.zarr", "galaxy_id", LATIN)
        (error,) = validate_catalog(tmp_path / "c.zarr").errors
        assert "galaxy_id" in error
        assert "b'Mrk\\xe9' is not utf-8" in error
        assert "_Encoding" in error

    def test_identifiers_whose_encoding_is_named_are_read(self, tmp_path: Path) -> None:
        with_bytes(tmp_path / "c.zarr", "galaxy_id", LATIN).attrs["_Encoding"] = "latin-1"
        catalog = Catalog.open(tmp_path / "c.zarr")
        assert catalog.galaxy_id(0, 6).tolist() == [f"Mrk{letter}" for letter in "éèêëüö"]
        assert catalog.find("Mrkü").tolist() == [4]
        assert catalog.duplicate_rows.size == 0

    def test_other_columns_show_the_bytes(self, tmp_path: Path) -> None:
        with_bytes(tmp_path / "c.zarr", "class", LATIN)
        assert Catalog.open(tmp_path / "c.zarr").columns(0, 2)["class"].tolist() == ["Mrk\\xe9", "Mrk\\xe8"]
        assert validate_catalog(tmp_path / "c.zarr").ok

    def test_a_writer_refuses_them_too(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="galaxy_id: expected text or bytes of UTF-8"):
            write_catalog(tmp_path / "c.zarr", **(catalog_arguments() | {"galaxy_id": np.array(LATIN)}))


def test_blanks_at_the_ends_make_no_other_galaxy(tmp_path: Path) -> None:
    """Readers of FITS and ECSV do not keep them: exported, such identifiers are one."""
    names = np.array(["A1", "A1 ", "a1", "B", "C  ", " B"])
    write_catalog(tmp_path / "c.zarr", **(catalog_arguments() | {"galaxy_id": names}))
    catalog = Catalog.open(tmp_path / "c.zarr")
    assert catalog.duplicate_rows.tolist() == [0, 1, 3, 5]
    assert catalog.find("C").tolist() == [4]
    assert catalog.find("A1").tolist() == [0, 1]
    assert catalog.find("B").tolist() == [3, 5]
    # What the survey calls it is kept, and its case counts.
    assert catalog.galaxy_id(0, 6).tolist() == names.tolist()
    assert catalog.find("a1").tolist() == [2]
