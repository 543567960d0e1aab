"""Redshifts of spectra whose own files have none: one number for all, or a table of them by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digs_survey.catalog.readers.reading import DAMAGE
from digs_survey.catalog.readers.table_files import sources
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.store.locations import is_file, location, store_errors

__all__ = ["Redshifts"]

_NAMES = ("galaxy_id", "file", "id", "name", "srcname", "targetid")
_VALUES = ("redshift", "z", "z_best", "zspec", "z_spec", "zbest")


class Redshifts:
    """One redshift for all spectra, or those of a table.

    Parameters
    ----------
    given : str
        A number, or the path of a table (CSV, ECSV, FITS, HDF5, Parquet) with a column ``galaxy_id``, ``file`` or
        ``id``, and one ``redshift`` or ``z``. A spectrum is looked up by its galaxy_id, then by the name of its file,
        with and without its ending.

    Raises
    ------
    ConfigError
        Neither a number nor such a table.
    """

    def __init__(self, given: str) -> None:
        self._one: float | None = None
        self._by_name: dict[str, float] = {}
        try:
            self._one = float(given)
        except ValueError:
            self._by_name = _read(location(given))

    def of(self, name: str, path: Path) -> float:
        """Return the redshift of a spectrum, NaN where the table has none."""
        if self._one is not None:
            return self._one
        plain = path.name.removesuffix(".gz")
        names = (name, path.name, plain, plain.rpartition(".")[0], plain.partition(".")[0])
        return next((self._by_name[key] for key in names if key in self._by_name), np.nan)


def _read(path: Path) -> dict[str, float]:
    if not is_file(path):
        raise ConfigError(f"redshifts {path}: expected a number or a table, found no such file")
    try:
        return _table(path)
    except ConfigError:
        raise
    except (CatalogError, *DAMAGE, *store_errors()) as error:
        found = str(error) or type(error).__name__
        raise ConfigError(f"redshifts {path}: expected a table that can be read, found: {found}") from error


def _table(path: Path) -> dict[str, float]:
    redshifts: dict[str, float] = {}
    with sources(path, None, "arrays") as found:
        for source in found:
            names = {name.lower(): name for name in reversed(source.names)}
            name = next((names[key] for key in _NAMES if key in names), None)
            value = next((names[key] for key in _VALUES if key in names), None)
            if name is None or value is None:
                expected = f"one of {', '.join(_NAMES)}, and one of {', '.join(_VALUES)}"
                shown = ", ".join(source.names) or "none"
                raise ConfigError(f"redshifts {path}: expected columns {expected}, found {shown}")
            for key, z in zip(source.read(name).tolist(), source.read(value).tolist(), strict=True):
                if not redshifts.setdefault(str(key).strip(), float(z)) == z and np.isfinite(z):
                    raise ConfigError(f"redshifts {path}: expected one for each {name}, found several of {key}")
    return redshifts
