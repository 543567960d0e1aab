"""Make docs/columns.md from the registry of result columns.

Run from the root of the checkout: ``python docs/make_columns.py``. A test fails where the page is another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from digs_survey.parameters import BINNED
from digs_survey.quality import DESCRIPTIONS
from digs_survey.results.columns import ARRAYS, COLUMNS, Column, When

PAGE = Path(__file__).with_name("columns.md")

_HEAD = """# Columns of the results

`python docs/make_columns.py` makes this page from `digs_survey/results/columns.py`; change that file, and not this
one.

## `percentiles.parquet` and `results.parquet`

The columns are in this order. The survey's own stand after `redshift`, with the units and descriptions that the
catalog gives them. `posterior.zarr` has arrays of the columns marked with ●, one value for each galaxy.
"""

_PERCENTILES = """
### Percentiles of parameters

Percentiles are float32. `<percent>` is each of `map.quantiles` in percent, with an underscore for the point:
`logmass_p2_5`, `logmass_p50`. They are ordered by quantity, and within a quantity by percentage. A model that lacks a
parameter has no columns of it (`model.sfh = "constant"` has no `logtau`). `<bin>` counts bins of age from the youngest,
1, to one less than `model.sfh_bins`. In `results.parquet` percentiles are those of the row's `tier`.
"""

_DERIVED = """
### Percentiles of derived quantities

`<time>` is each of `map.history_lookback_gyr`: `sfr_at_0_1gyr_p50`. The others are there where `map.derived` names
them.
"""

_WEIGHTED = """
### Weighted percentiles

With `importance.rows = "all"`: percentiles of the draws with importance weights, in the units above.
"""

_UCDS = """
### UCDs of percentiles

A column has the UCD of its quantity, and `stat.percentile`, or `stat.median` for a median.
"""

_OTHERS = """
### Quality of a row
"""

_NAMES = """
A catalog cannot use any of these names for a column of its own, nor those of the arrays and dimensions below, in
upper or lower case: `validate` and every command that reads the catalog refuse it before any work. Two columns that
differ only by case are refused too, since FITS and SQL do not tell them apart. Such a column is to be renamed in the
catalog. `true_<parameter>` is free: simulated surveys keep their truth there.

## `posterior.zarr`
"""

_BITS = """
Its dimensions are `galaxy`, `parameter`, `quantile`, and where they are needed `quantity` and `sample`. Units are in
the attributes `parameter_units` and `quantity_units`.

## Bits of `quality`
"""


def page() -> str:
    """Return the page."""
    percentiles = [c for c in COLUMNS if "_p<percent>" in c.name]
    plain = [c for c in percentiles if not c.name.endswith("_weighted")]
    first, others = COLUMNS[:2], [c for c in COLUMNS[2:] if c not in percentiles]
    of_parameters = [c for c in plain if c.when is When.ALWAYS]
    columns = [
        _columns(first),
        _PERCENTILES,
        _of_bins(_quantities(of_parameters)),
        _DERIVED,
        _quantities([c for c in plain if c not in of_parameters]),
        _WEIGHTED,
        _of_bins(_table(("column",), [(f"`{c.name}`",) for c in percentiles if c not in plain])),
        _UCDS,
        _ucds(plain),
        _OTHERS,
        _columns(others),
    ]
    arrays = _table(
        ("array", "dimensions", "dtype", "description", "when"),
        [(f"`{c.name}`", ", ".join(c.dims), _dtype(c), c.description, c.when.value) for c in ARRAYS],
    )
    bits = _table(("bit", "name", "meaning"), [(str(f.value), f"`{f.name}`", text) for f, text in DESCRIPTIONS.items()])
    return "\n".join([_HEAD, *columns, _NAMES, arrays, _BITS, bits]) + "\n"


def _columns(columns: Sequence[Column]) -> str:
    return _table(
        ("column", "dtype", "unit", "UCD", "description", "when", "in `posterior.zarr`"),
        [
            (
                f"`{c.name}`",
                _dtype(c),
                _code(c.unit),
                _code(c.ucd),
                _text(c.description),
                c.when.value,
                "●" * c.in_dataset,
            )
            for c in columns
        ],
    )


def _quantities(columns: Sequence[Column]) -> str:
    """Describe what columns are percentiles of."""
    return _table(
        ("column", "unit", "of what"),
        [(f"`{c.name}`", _code(c.unit), _text(c.description.partition(": <percent>")[0])) for c in columns],
    )


def _ucds(columns: Sequence[Column]) -> str:
    """Give each UCD with the quantities that have it."""
    quantities: dict[str, dict[str, None]] = {}
    for c in columns:
        name = re.sub(rf"^({'|'.join(BINNED.values())})_\d+$", r"\1", c.name.removesuffix("_p<percent>"))
        quantities.setdefault((c.ucd or "").removesuffix(";stat.percentile"), {})[name] = None
    rows = [(_code(ucd), ", ".join(map(_code, found))) for ucd, found in quantities.items()]
    return _table(("UCD", "quantities"), rows)


def _of_bins(table: str) -> str:
    """Give the columns of all bins of age one line: that of the first."""
    number = re.compile(rf"^\| `({'|'.join(BINNED.values())})_(\d+)_p<")
    kept = []
    for line in table.split("\n"):
        found = number.match(line)
        if found is None:
            kept.append(line)
        elif found[2] == "1":
            shown = line.replace("_1_p<", "_<bin>_p<").replace("bin 1", "bin &lt;bin&gt;")
            kept.append(shown.replace("bin 2, the next older", "the next older one"))
    return "\n".join(kept)


def _dtype(column: Column) -> str:
    return "as in the catalog" if column.dtype == "catalog" else column.dtype


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def _text(description: str) -> str:
    """Keep angle brackets from being taken for a tag."""
    return description.replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
