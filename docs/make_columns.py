"""Make docs/columns.md from the registry of result columns.

Run from the root of the checkout: ``python docs/make_columns.py``. A test fails where the page is another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from digs_survey.parameters import BINNED
from digs_survey.quality import DESCRIPTIONS
from digs_survey.results.columns import ARRAYS, COLUMNS, Column

PAGE = Path(__file__).with_name("columns.md")

_HEAD = """# Columns of the results

`python docs/make_columns.py` makes this page from `digs_survey/results/columns.py`; change that file, and not this
one.

## `percentiles.parquet` and `results.parquet`

The columns are in this order. The survey's own stand after `redshift`, with the units and descriptions that the
catalog gives them. `<percent>` is each of `map.quantiles` in percent, with an underscore for the point:
`logmass_p2_5`, `logmass_p50`. Percentiles are ordered by quantity, and within a quantity by percentage; the UCD of a
median ends in `stat.median`. A model that lacks a parameter has no columns of it (`model.sfh = "constant"` has no
`logtau`). `<bin>` counts bins of age from the youngest, 1, to one less than `model.sfh_bins`. `<time>` is each of
`map.history_lookback_gyr`: `sfr_at_0_1gyr_p50`. In `results.parquet` the percentiles, the weighted ones excepted, are
those of the row's `tier`.
`posterior.zarr` has arrays of the columns marked with ●, one value for each galaxy.
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
    columns = _of_bins(
        _table(
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
                for c in COLUMNS
            ],
        )
    )
    arrays = _table(
        ("array", "dimensions", "dtype", "description", "when"),
        [(f"`{c.name}`", ", ".join(c.dims), _dtype(c), c.description, c.when.value) for c in ARRAYS],
    )
    bits = _table(("bit", "name", "meaning"), [(str(f.value), f"`{f.name}`", text) for f, text in DESCRIPTIONS.items()])
    return "\n".join([_HEAD, columns, _NAMES, arrays, _BITS, bits]) + "\n"


def _of_bins(table: str) -> str:
    """Give the columns of all bins of age one line: that of the first."""
    number = re.compile(rf"^\| `({'|'.join(BINNED.values())})_(\d+)_p<")
    kept = []
    for line in table.split("\n"):
        found = number.match(line)
        if found is None:
            kept.append(line)
        elif found[2] == "1":
            kept.append(line.replace("_1_p<", "_<bin>_p<").replace("bin 1", "bin &lt;bin&gt;"))
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
