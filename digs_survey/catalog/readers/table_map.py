"""The column map of ``ingest table``: which column is what, in TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from digs_survey.catalog.column_names import name_violations
from digs_survey.catalog.readers.assembling import PROVENANCE
from digs_survey.catalog.schema import SCHEMA
from digs_survey.errors import ConfigError

__all__ = ["From", "TableMap", "load_map"]


class From(BaseModel):
    """Where a value of a spectrum comes from: one of the three.

    Attributes
    ----------
    column : str
        A column, or an HDF5 dataset, with one value a spectrum.
    header : str
        A card of the FITS header, or a key of the table's metadata.
    table : str
        Another table, looked up by galaxy_id or by the name of the file; for redshifts.
    units, description : str
        Of a survey column.
    """

    model_config = ConfigDict(extra="forbid")

    column: str | None = None
    header: str | None = None
    table: str | None = None
    units: str | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _one(self) -> From:
        if sum(value is not None for value in (self.column, self.header, self.table)) != 1:
            raise ValueError("expected one of column, header and table")
        return self


class TableMap(BaseModel):
    """What the columns of a file are.

    Attributes
    ----------
    layout : {"pixels", "arrays", "image"}
        A row of the table is a pixel; or a spectrum, with arrays in its columns; or the file is an image whose header
        has the wavelengths.
    medium : {"vacuum", "air"}
    frame : {"observed", "rest"}
    hdu : int or str
        HDU of the table, or HDF5 group; of an image it is that of the flux.
    wavelength, flux, error, ivar, mask : str
        Columns, HDF5 datasets, or HDUs of an image, whose header has the wavelengths if no HDU has. Either ``error`` or
        ``ivar``; a mask is 0 where good.
    wavelength_unit, flux_unit, error_unit, ivar_unit : str
        In the place of the file's. Where neither the file nor the map gives a unit of error or ivar, it is that of the
        flux (to the power -2).
    wavelength_log10 : bool
        Whether wavelengths are log10 of the unit.
    redshift : number or From
    galaxy_id : From
        Default: the name of the file, with the row where it has several.
    ebv : number or From
    columns : mapping of name to From
        Survey columns.
    """

    model_config = ConfigDict(extra="forbid")

    layout: Literal["pixels", "arrays", "image"]
    medium: Literal["vacuum", "air"]
    flux: str | int
    redshift: float | From
    wavelength: str | None = None
    error: str | int | None = None
    ivar: str | int | None = None
    mask: str | int | None = None
    frame: Literal["observed", "rest"] = "observed"
    hdu: int | str | None = None
    wavelength_unit: str | None = None
    wavelength_log10: bool = False
    flux_unit: str | None = None
    error_unit: str | None = None
    ivar_unit: str | None = None
    galaxy_id: From | None = None
    ebv: float | From | None = None
    columns: dict[str, From] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> TableMap:
        if (self.error is None) == (self.ivar is None):
            raise ValueError("expected either error or ivar")
        if self.wavelength is None and self.layout != "image":
            raise ValueError("wavelength: expected the column; only the header of an image may have them instead")
        if self.layout == "image" and self.hdu is not None:
            raise ValueError("hdu: expected none for an image; flux, error, ivar and mask are HDUs")
        places = {"galaxy_id": self.galaxy_id, "ebv": self.ebv, **{f"columns.{k}": v for k, v in self.columns.items()}}
        for name, place in places.items():
            if isinstance(place, From) and place.table is not None:
                raise ValueError(f"{name}: expected a column or a header card; only redshift may have a table")
        for name, place in {**places, "redshift": self.redshift}.items():
            if isinstance(place, From) and place.column is not None and self.layout == "image":
                raise ValueError(f"{name}: expected a number or a header card, since an image has no columns")
        return self

    @field_validator("columns")
    @classmethod
    def _can_be_named(cls, columns: dict[str, From]) -> dict[str, From]:
        wrong = list(name_violations(columns))
        taken = sorted({*SCHEMA, *PROVENANCE} & {name.casefold() for name in columns})
        wrong += [f"{name}: expected a name that catalogs do not use themselves" for name in taken]
        if wrong:
            raise ValueError("; ".join(wrong))
        return columns


def load_map(path: Path) -> TableMap:
    """Read a column map.

    Raises
    ------
    ConfigError
        Naming every unknown key, missing one and wrong value.
    """
    try:
        return TableMap.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"column map {path}: expected a TOML file, found {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"column map {path} is not valid TOML: {error}") from error
    except ValidationError as error:
        lines = "\n".join(f"  - {line}" for line in _explained(error))
        raise ConfigError(f"column map {path} cannot be used:\n{lines}") from error


def _explained(error: ValidationError) -> Iterator[str]:
    """Yield a line for each fault: an unknown key gets the nearest known one."""
    for found in error.errors():
        place: list[Any] = [part for part in found["loc"] if part not in ("float", "From")]
        key = ".".join(map(str, place))
        if found["type"] == "extra_forbidden":
            known = From.model_fields if len(place) > 1 else TableMap.model_fields
            near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.4)
            yield f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
        else:
            message = found["msg"].removeprefix("Value error, ")
            yield f"{key}: {message}" if key else message
