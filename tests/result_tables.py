"""Tables of results as the map stage leaves them: a folder of parts, with units and descriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from digs_survey.parameters import PARAMETERS
from digs_survey.quality import DESCRIPTIONS
from digs_survey.results.columns import percentile

QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)
DERIVED = {
    "surviving_mass": "solMass",
    "mass_weighted_age": "Gyr",
    "sfr_10": "solMass / yr",
    "sfr_100": "solMass / yr",
    "ssfr_10": "1 / yr",
    "ssfr_100": "1 / yr",
}


def schema(identifiers: pa.DataType | None = None) -> pa.Schema:
    """Of a table with ``ra`` and ``dec``, all parameters, derived quantities and weighted medians."""
    fields = [
        ("galaxy_id", identifiers or pa.string(), "", "identifier in the survey"),
        ("redshift", pa.float64(), "", "redshift"),
        ("ra", pa.float64(), "deg", "right ascension of the fibre, J2000"),
        ("dec", pa.float64(), "deg", "declination of the fibre, J2000"),
        ("zwarning", pa.int64(), "", "bits that warn of the redshift; 0 = none"),
        ("primary", pa.bool_(), "", "best spectrum of the object"),
    ]
    for p in PARAMETERS.values():
        fields += [(percentile(p.name, q).name, pa.float32(), p.unit, p.description) for q in QUANTILES]
        fields.append((percentile(p.name, 0.5, weighted=True).name, pa.float32(), p.unit, p.description))
    fields += [(f"{name}_p50", pa.float32(), unit, f"median of {name}") for name, unit in DERIVED.items()]
    fields += [("n_good", pa.int32(), "", "wavelength elements"), ("quality", pa.int64(), "", "quality bits")]
    bits = {str(flag.name): {"bit": flag.value, "meaning": text} for flag, text in DESCRIPTIONS.items()}
    return pa.schema(
        [pa.field(name, kind, metadata={"unit": unit, "description": text}) for name, kind, unit, text in fields],
        metadata={
            "digs_survey": "0.1.0",
            "model_hash": "a1b2",
            "catalog_fingerprint": "c3d4",
            "quality_bits": json.dumps(bits),
        },
    )


def rows(start: int, stop: int, of: pa.Schema) -> pa.Table:
    """Rows ``start`` to ``stop``, whatever they are asked for with; every seventh has no posterior."""
    number = np.arange(start, stop)
    values: dict[str, Any] = {}
    for i, field in enumerate(of):
        if pa.types.is_string(field.type):
            values[field.name] = [f"spec-{n:09d}" for n in number]
        elif pa.types.is_boolean(field.type):
            values[field.name] = number % 3 == 0
        elif pa.types.is_integer(field.type):
            values[field.name] = number + i
        else:
            value = np.mod((number + 1.0) * (i + 1) * 0.6180339887498949, 1)
            lost = (number % 7 == 0) & ("_p" in field.name)
            values[field.name] = np.where(lost, np.nan, value)
    arrays = [pa.array(values[field.name]).cast(field.type) for field in of]
    return pa.Table.from_arrays(arrays, schema=of)


def write_parts(folder: Path, n_rows: int, rows_per_part: int, of: pa.Schema | None = None) -> Path:
    """Write a dataset as the map stage does."""
    of = of or schema()
    folder.mkdir()
    for i, start in enumerate(range(0, n_rows, rows_per_part)):
        table = rows(start, min(start + rows_per_part, n_rows), of)
        pq.write_table(table, folder / f"part-{i:08d}.parquet", compression="zstd")
    return folder


def write_columns(path: Path, columns: Mapping[str, pa.Array], units: Mapping[str, str] | None = None) -> Path:
    """Write one Parquet file."""
    fields = [
        pa.field(name, array.type, metadata={"unit": (units or {}).get(name, "")}) for name, array in columns.items()
    ]
    pq.write_table(pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields)), path)
    return path
