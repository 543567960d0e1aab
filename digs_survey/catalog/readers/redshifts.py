"""Redshifts of spectra whose own files have none: one number for all, or a table of them by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digs_survey.catalog.readers.fits_files import open_fits, table
from digs_survey.errors import ConfigError
from digs_survey.store.locations import is_file, location

__all__ = ["Redshifts"]

_NAMES = ("galaxy_id", "file", "id", "name", "srcname", "targetid")
_VALUES = ("redshift", "z", "z_best", "zspec", "z_spec", "zbest")


class Redshifts:
    """One redshift for all spectra, or those of a table.

    Parameters
    ----------
    given : str
        A number, or the path of a table (CSV, ECSV, FITS, Parquet) with a column ``galaxy_id``, ``file`` or ``id``, and
        one ``redshift`` or ``z``. A spectrum is looked up by its galaxy_id, then by the name of its file, with and
        without its ending.

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
        raise ConfigError(f"--redshift {path}: expected a number or a table, found no such file")
    if path.suffix in (".fits", ".gz"):
        with open_fits(path) as hdus:
            found = table(hdus, 1)
            columns = {key: found[key] for key in (*_NAMES, *_VALUES) if found.first(key)}
    elif path.suffix in (".parquet", ".pq"):
        import pyarrow.parquet

        read = pyarrow.parquet.read_table(path)
        columns = {key.lower(): np.array(read[key].to_pylist()) for key in read.column_names}
    else:
        from astropy.io import ascii as text

        read = text.read(path, format="ecsv" if path.suffix == ".ecsv" else "csv")
        columns = {key.lower(): np.asarray(read[key]) for key in read.colnames}
    name = next((key for key in _NAMES if key in columns), None)
    value = next((key for key in _VALUES if key in columns), None)
    if name is None or value is None:
        expected = f"one of {', '.join(_NAMES)}, and one of {', '.join(_VALUES)}"
        raise ConfigError(
            f"--redshift {path}: expected columns {expected}, found {', '.join(columns) or 'none of them'}"
        )
    return {str(key).strip(): float(z) for key, z in zip(columns[name], columns[value], strict=True)}
