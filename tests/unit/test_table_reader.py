"""Column maps: what cannot be one is named, and what a file does not give is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import survey_files as make

from digs_survey.catalog import Catalog
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.table_map import load_map
from digs_survey.errors import CatalogError, ConfigError

RIGHT = 'layout = "pixels"\nmedium = "air"\nwavelength = "w"\nflux = "f"\nerror = "e"\nredshift = 0.1\n'
UNITS = 'wavelength_unit = "Angstrom"\nflux_unit = "1e-17 erg / (s cm2 Angstrom)"\n'


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("flux =", "fluxx ="), "fluxx"),
        (('"air"', '"water"'), "medium"),
        (('error = "e"\n', ""), "either error or ivar"),
        (('wavelength = "w"\n', ""), "wavelength"),
        (("redshift = 0.1", 'redshift = { column = "z", header = "z" }'), "one of column, header and table"),
        (("layout", "layout ="), "not valid TOML"),
    ],
)
def test_a_wrong_map_names_the_key(change: tuple[str, str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text(RIGHT.replace(*change))
    with pytest.raises(ConfigError, match=named):
        load_map(path)
    with pytest.raises(ConfigError, match="expected a TOML file"):
        load_map(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "toml", "reason"),
    [
        ("w,f,e\n1,1,1\n2,1,1\n", RIGHT, "expected a unit"),
        ("w,f\n4000,1\n4001,1\n", RIGHT + UNITS, "expected a column e"),
        ("w,f,e\n4000,1,1\n4000,1,1\n", RIGHT + UNITS, "wavelength: expected increasing"),
        ("w,f,e\n4000,1,0\n4001,1,-1\n", RIGHT + UNITS, "no usable pixel"),
        ("w,f,e\n4000,a,1\n4001,b,1\n", RIGHT + UNITS, "cannot be read"),
        ("", RIGHT + UNITS, "expected a column f"),
        ("w,f,e\n4000,1,1\n4001,1,1\n", RIGHT + UNITS.replace("1e-17 erg / (s cm2 Angstrom)", "K"), "flux density"),
        ("w,f,e\n4000,1,1\n4001,1,1\n", RIGHT.replace("0.1", '{ header = "Z" }') + UNITS, "expected Z"),
    ],
)
def test_a_file_that_the_map_does_not_fit_says_why(text: str, toml: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CatalogError) as caught:
        ingest([tmp_path / "a.csv"], tmp_path / "a.zarr", make.mapped(tmp_path, toml), source="tables")
    assert reason in str(caught.value)


def test_columns_and_names_come_from_where_the_map_says(tmp_path: Path) -> None:
    for kind, names in ((make.parquet, ["a", "b"]), (make.eso, ["CDFS1"]), (make.hdf5, ["two_0", "two_1"])):
        (tmp_path / kind.__name__).mkdir()
        files, reader = kind(tmp_path / kind.__name__)
        report = ingest(files, tmp_path / "a.zarr", reader, source="tables")
        catalog = Catalog.open(tmp_path / "a.zarr")
        assert catalog.galaxy_id(0, report.rows).tolist() == names
        if kind is make.parquet:
            assert catalog.column("zspec", 0, 2).tolist() == [make.REDSHIFT] * 2
            assert catalog.column("source_row", 0, 2).tolist() == [0, 1]
            assert (~catalog.rows(0, 2).good).sum(axis=1).tolist() == [0, make.TABLE_WAVE.size - 50]


def test_redshifts_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "z.csv").write_text("file,redshift\na.spec.fits,0.5\nb,0.6\n")
    found = Redshifts(str(tmp_path / "z.csv"))
    assert found.of("none", Path("x/a.spec.fits.gz")) == 0.5
    assert found.of("b", Path("x/y")) == 0.6
    assert np.isnan(found.of("c", Path("x/c.fits")))
    (tmp_path / "z.csv").write_text("file,velocity\na,3\n")
    with pytest.raises(ConfigError, match="expected columns"):
        Redshifts(str(tmp_path / "z.csv"))
    with pytest.raises(ConfigError, match="a number or a table"):
        Redshifts(str(tmp_path / "none.csv"))
