"""The column map of ``ingest table``: which column is what, in TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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
        HDU of the table, or HDF5 group.
    wavelength, flux, error, ivar, mask : str
        Columns, HDF5 datasets, or HDUs of an image. Either ``error`` or ``ivar``; a mask is 0 where good.
    wavelength_unit, flux_unit : str
        Where the file gives none.
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
    galaxy_id: From | None = None
    ebv: float | From | None = None
    columns: dict[str, From] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> TableMap:
        if (self.error is None) == (self.ivar is None):
            raise ValueError("expected either error or ivar")
        if (self.wavelength is None) != (self.layout == "image"):
            raise ValueError("wavelength: expected the column, or none for an image, whose header has them")
        return self


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
        lines = [f"  - {'.'.join(map(str, found['loc'])) or 'map'}: {found['msg']}" for found in error.errors()]
        raise ConfigError(f"column map {path} cannot be used:\n" + "\n".join(lines)) from error
