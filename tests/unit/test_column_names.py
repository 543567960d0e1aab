"""A survey cannot name a column as the results name theirs, whatever the case; it is told before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from digs_survey.catalog import Catalog, validate_catalog, write_catalog
from digs_survey.cli import main
from digs_survey.errors import CatalogError
from digs_survey.parameters import BINS, DERIVED, PARAMETERS, binned_names
from digs_survey.results.columns import ARRAYS, COLUMNS, DIMENSIONS, RENAMED, find_column, percentile
from digs_survey.spectra import WavelengthGrid

ROWS, GRID = 3, WavelengthGrid(np.arange(4000.0, 4400.0, 50.0))
PERCENTS = {"2_5": 0.025, "16": 0.16, "50": 0.5, "97_5": 0.975, "99_865": 0.99865, "1e-05": 1e-7}
SPELLINGS = {"lower": str, "upper": str.upper, "mixed": str.title}
IN_CATALOG = {"galaxy_id", "redshift", "wavelength"}
"""Names that a catalog has by its schema, in just this case."""


def _registered() -> list[str]:
    later = binned_names("continuity", BINS[1])[1:] + binned_names("dirichlet", BINS[1])[1:]
    names = [column.name.replace("<time>", "0_1") for column in (*COLUMNS, *ARRAYS)]
    names = [name for name in names if name.partition("_p<")[0] not in later]
    families = [name for name in names if "<percent>" in name]
    every = [name.replace("<percent>", percent) for name in families for percent in PERCENTS]
    return sorted({*names, *every, *DIMENSIONS, *RENAMED} - set(families))


def _catalog(path: Path, *columns: str) -> Path:
    """Write a catalog, and columns that :func:`write_catalog` might refuse."""
    flux = np.ones((ROWS, len(GRID)))
    write_catalog(
        path,
        grid=GRID,
        flux=flux,
        ivar=flux,
        mask=flux == 0,
        redshift=np.full(ROWS, 0.1),
        galaxy_id=np.arange(ROWS),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    group = zarr.open_group(str(path), mode="r+")
    for name in columns:
        group.create_array(name, shape=(ROWS,), dtype="float64", dimension_names=("galaxy",))
    return path


def test_the_list_has_what_settings_can_make() -> None:
    some = {"agreement", "trust", "tier", "feature_distance", "log_evidence", "quality", "galaxy", "sample"}
    assert some < set(_registered())
    for quantity in (*PARAMETERS, *DERIVED, "sfr_at_0_1gyr"):
        for text, quantile in PERCENTS.items():
            assert percentile(quantity, quantile).name == f"{quantity}_p{text}"
            assert find_column(f"{quantity}_p{text}") == percentile(quantity, quantile)
    assert {f"{name}_p50_weighted" for name in PARAMETERS if "_" not in name} < set(_registered())


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What validation says of each name in each spelling, from one catalog a spelling."""
    found = {}
    for spelled in SPELLINGS.values():
        path = tmp_path_factory.mktemp("reserved") / "catalog.zarr"
        names = sorted({spelled(name) for name in _registered()} - IN_CATALOG)
        report = validate_catalog(_catalog(path, *names))
        assert len(report.errors) == len(names)
        with pytest.raises(CatalogError) as caught:
            Catalog.open(path)
        assert list(caught.value.violations) == report.errors
        found |= {line.partition(":")[0]: line for line in report.errors}
    return found


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, spelled(name)) for name in _registered() for spelled in SPELLINGS.values()],
)
def test_every_name_of_the_results_is_refused_in_any_case(refused: dict[str, str], name: str, given: str) -> None:
    if given in IN_CATALOG:
        assert given not in refused
        return
    assert refused[given].startswith(f"{given}: expected a name that the results do not use")
    assert f"'{name}'" in refused[given]
    assert ("where case does not count" in refused[given]) == (given != name)
    assert f"for example to 'survey_{given}'" in refused[given]


def test_other_names_are_welcome(tmp_path: Path) -> None:
    names = ["true_logmass", "true_tage", "ra", "DEC", "logmass", "sfr_10", "logmass_p", "trusted", "survey_trust"]
    names += ["p50", "logmass_p50_weight", "my_quality", "Flux", "importance"]
    assert validate_catalog(_catalog(tmp_path / "c.zarr", *names)).errors == []


def test_columns_that_differ_by_case_alone_are_refused(tmp_path: Path) -> None:
    errors = validate_catalog(_catalog(tmp_path / "c.zarr", "Mag", "mag", "MAG", "other")).errors
    assert len(errors) == 1
    assert errors[0].startswith("MAG, Mag, mag: expected names that differ by more than upper and lower case")


def test_what_does_not_travel_can_have_any_name(tmp_path: Path) -> None:
    path = _catalog(tmp_path / "c.zarr")
    zarr.open_group(str(path), mode="r+").create_array("agreement", shape=(2,), dtype="f8", dimension_names=("other",))
    found = validate_catalog(path)
    assert (found.errors, found.not_carried) == ([], ["agreement"])


def test_a_catalog_with_such_a_column_is_not_written(tmp_path: Path) -> None:
    flux = np.ones((ROWS, len(GRID)))
    with pytest.raises(CatalogError, match="cannot be written") as caught:
        write_catalog(
            tmp_path / "c.zarr",
            grid=GRID,
            flux=flux,
            ivar=flux,
            mask=flux == 0,
            redshift=np.full(ROWS, 0.1),
            galaxy_id=np.arange(ROWS),
            flux_unit="1e-17 erg / (s cm2 Angstrom)",
            columns={"Agreement": (np.ones(ROWS), {})},
        )
    assert caught.value.violations[0].startswith("Agreement: expected a name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["agreement", "Feature_Distance", "logmass_p50_weighted", "TIER"])
@pytest.mark.parametrize("command", ["run", "map", "simulate", "validate"])
def test_commands_refuse_it_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    path = _catalog(tmp_path / "catalog.zarr", name)
    options = [] if command == "validate" else ["--run-dir", str(tmp_path / "run"), "--quiet"]
    monkeypatch.setattr(sys, "argv", ["digs-survey", command, str(path), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert f"{name}: expected a name that the results do not use" in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["catalog.zarr"]
