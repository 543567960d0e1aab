"""The registry of result columns says what is really written: array by array, column by column, word by word."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import xarray as xr
from astropy.units import Unit
from pyarrow import BufferReader, parquet

from digs_survey.config import MapConfig
from digs_survey.errors import DigsError
from digs_survey.importance.predictive_check import PredictiveCheck
from digs_survey.importance.weights import Importance
from digs_survey.infer.rows import RowResult
from digs_survey.parameters import DERIVED, PARAMETERS
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.results.columns import ARRAYS, COLUMNS, RENAMED, Column, When, find_column, percentile
from digs_survey.results.dataset import lay_out
from digs_survey.results.final import RefinedRows, final_part
from digs_survey.results.table import ResultTable
from digs_survey.run.opened_run import Run
from digs_survey.store.ledger import Ledger

ROWS, PRIOR = 4, Prior()
ARROW = {"catalog": "int64", "float32": "float", "float64": "double"}
DOCS = Path(__file__).parents[2] / "docs"
ALL = {"derived": tuple(DERIVED), "history_lookback_gyr": (0.1, 2.0), "samples": 3, "predictive_draws": 16}
SETTINGS = {
    "plain": ({}, None, {When.ALWAYS}),
    "derived": ({"derived": ("surviving_mass", "sfr_10")}, None, {When.ALWAYS, When.DERIVED}),
    "samples": ({"samples": 3}, None, {When.ALWAYS, When.SAMPLES}),
    "predictive": ({"predictive_draws": 16}, None, {When.ALWAYS, When.PREDICTIVE}),
    "weighted": ({}, 128, {When.ALWAYS, When.WEIGHTED}),
    "everything": (ALL, 128, set(When) - {When.FINAL, When.REPRIOR}),
}


def _result(config: MapConfig, weighted: bool) -> RowResult:
    quantiles = len(config.quantiles)
    numbers = np.arange(ROWS * PRIOR.ndim * quantiles, dtype=np.float32).reshape(ROWS, PRIOR.ndim, quantiles)
    derived = np.ones((ROWS, len(config.quantities), quantiles), dtype=np.float32)
    samples = np.ones((ROWS, PRIOR.ndim, config.samples), dtype=np.float32)
    return RowResult(
        numbers,
        np.zeros(ROWS, dtype=np.int64),
        np.full(ROWS, 9, dtype=np.int32),
        Importance.unknown(ROWS, PRIOR.ndim, quantiles) if weighted else None,
        derived if config.quantities else None,
        samples if config.samples else None,
        PredictiveCheck.unknown(ROWS) if config.predictive_draws else None,
    )


def _part(config: MapConfig, draws: int | None, attributes: dict | None = None) -> bytes:
    given = {"galaxy_id": np.arange(ROWS), "redshift": np.full(ROWS, 0.1), "ra": np.ones(ROWS, dtype=">f4")}
    described = {name: (attributes or {}).get(name, {}) for name in given}
    table = ResultTable(described, PRIOR, config.quantiles, config.quantities, "model", "catalog", draws)
    return table.part(0, given, _result(config, draws is not None).arrays())


def _expected(config: MapConfig, present: set[When]) -> list[Column]:
    """Columns of the table by the registry, one for each quantile."""
    expected = []
    for column in COLUMNS:
        quantity, family, rest = column.name.partition("_p<percent>")
        if column.when not in present or (quantity in DERIVED and quantity not in config.derived):
            continue
        if quantity in PARAMETERS and quantity not in PRIOR.names:
            continue
        if quantity == "sfr_at_<time>gyr":
            expected += [
                percentile(name, q) for name in config.quantities[len(config.derived) :] for q in config.quantiles
            ]
            continue
        weighted = rest == "_weighted"
        every = [percentile(quantity, q, weighted=weighted) for q in config.quantiles] if family else [column]
        expected += every
    return expected


@pytest.mark.parametrize(("settings", "draws", "present"), SETTINGS.values(), ids=SETTINGS)
def test_the_table_has_the_columns_of_the_registry(settings: dict, draws: int | None, present: set[When]) -> None:
    config = MapConfig(**settings)
    schema = parquet.read_schema(BufferReader(_part(config, draws)))
    expected = _expected(config, present)
    assert [name for name in schema.names if name != "ra"] == [column.name for column in expected]
    assert schema.names.index("ra") == 2
    for column in expected:
        field = schema.field(column.name)
        metadata = {key.decode(): text.decode() for key, text in field.metadata.items()}
        assert str(field.type) == ARROW.get(column.dtype, column.dtype)
        assert metadata["unit"] == column.unit
        assert metadata["description"].startswith(column.description)
        assert metadata.get("ucd") == column.ucd


@pytest.mark.parametrize(("settings", "draws", "present"), SETTINGS.values(), ids=SETTINGS)
def test_the_dataset_has_the_arrays_of_the_registry(
    tmp_path: Path, settings: dict, draws: int | None, present: set[When]
) -> None:
    config = MapConfig(**settings)
    lay_out(
        tmp_path / "posterior.zarr",
        {},
        Ledger(tmp_path / "ledger"),
        rows=ROWS,
        prior=PRIOR,
        config=config,
        id_dtype=np.dtype("<U7"),
        importance_draws=draws,
    )
    data = xr.open_zarr(tmp_path / "posterior.zarr", consolidated=False, decode_coords=False)
    expected = [column for column in (*ARRAYS, *COLUMNS) if column.in_dataset and column.when in present]
    assert set(data.variables) == {column.name for column in expected}
    for column in expected:
        array = data[column.name]
        assert array.dims == column.dims
        assert array.attrs["description"] == column.description
        assert array.dtype.kind in "TUO" if column.dtype in ("catalog", "str") else str(array.dtype) == column.dtype
    filled = _result(config, draws is not None).arrays()
    assert set(filled) == {c.name for c in expected if c.dims[0] == "galaxy" and c.name != "galaxy_id"}
    assert all(data[name].shape == values.shape and data[name].dtype == values.dtype for name, values in filled.items())
    assert data["quality"].attrs["flag_masks"] == [flag.value for flag in QualityFlag]


def test_the_final_table_adds_the_columns_that_it_alone_has(tmp_path: Path) -> None:
    config = MapConfig(**ALL)
    (tmp_path / "part.parquet").write_bytes(_part(config, 128))
    none = RefinedRows.of({}, PRIOR.ndim, len(config.quantities), len(config.quantiles))
    agreement, low = np.full(ROWS, 0.5), np.zeros(ROWS, dtype=np.int64)
    quantities = PRIOR.names, config.quantities
    final = final_part(tmp_path / "part.parquet", agreement, none, low, quantities, config.quantiles, {})
    schema, before = parquet.read_schema(BufferReader(final)), parquet.read_schema(tmp_path / "part.parquet")
    added = [column for column in COLUMNS if column.when is When.FINAL]
    assert schema.names == [*before.names, *(column.name for column in added)]
    for column in added:
        metadata = schema.field(column.name).metadata
        assert metadata[b"description"].decode() == column.description
        assert metadata[b"ucd"].decode() == column.ucd


def test_the_catalog_describes_its_columns_better_than_the_registry() -> None:
    said = {"redshift": {"long_name": "by CAMEO"}, "ra": {"units": "deg", "description": "J2000"}}
    schema = parquet.read_schema(BufferReader(_part(MapConfig(), None, said)))
    assert schema.field("redshift").metadata[b"description"] == b"by CAMEO"
    assert schema.field("galaxy_id").metadata[b"description"] == b"identifier in the survey"
    assert schema.field("ra").metadata == {b"unit": b"deg", b"description": b"J2000", b"ucd": b"pos.eq.ra"}


def test_names_are_unique_and_units_can_be_read() -> None:
    folded = [column.name.casefold() for column in (*COLUMNS, *ARRAYS)]
    assert len(set(folded)) == len(folded)
    for column in COLUMNS:
        Unit(column.unit)
        assert column.description
        assert column.description[-1] != "."


def test_the_page_is_the_one_that_the_registry_gives() -> None:
    made = runpy.run_path(str(DOCS / "make_columns.py"))["page"]()
    assert (DOCS / "columns.md").read_text(encoding="utf-8") == made, "run python docs/make_columns.py"
    for column in (*COLUMNS, *ARRAYS):
        # Those of all bins of age have one line.
        name = re.sub(r"^(logsfr_ratios|z_fraction)_\d+_", r"\1_<bin>_", column.name)
        assert made.count(f"| `{name}` |") == 1


def test_the_old_name_of_a_column_names_the_new_one() -> None:
    for old, now in RENAMED.items():
        assert find_column(old) is None
        assert find_column(now) is not None
        with pytest.raises(DigsError, match=f"column '{old}': this column is now called '{now}'"):
            Run(Path("nowhere"), cast(Any, None)).table(["galaxy_id", old])
