"""Spectra of whatever format ``specutils`` loads: https://specutils.readthedocs.io, class ``Spectrum``.

The package is not one that digs-survey needs; it is imported here only. Its loaders give wavelengths, fluxes and
uncertainties with units, and masks that are true where bad. They do not say whether wavelengths are in vacuum or air.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.nddata import StdDevUncertainty
from numpy.typing import NDArray

from digs_survey.catalog.readers.reading import LeftOut, Unusable
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import DigsError, MissingDependencyError

__all__ = ["SpecutilsReader"]


class SpecutilsReader:
    """Reads what ``specutils`` loads; redshifts are one number, or a table of them.

    Parameters
    ----------
    redshifts : Redshifts
    medium : {"vacuum", "air"}
        Of the wavelengths.
    format : str, optional
        Name of the loader; default: the one that knows the file.

    Raises
    ------
    MissingDependencyError
        ``specutils`` is not installed.
    """

    def __init__(self, redshifts: Redshifts, medium: str, format: str | None = None) -> None:
        try:
            self._list = import_module("specutils").SpectrumList
        except ImportError as error:
            raise MissingDependencyError(
                "specutils: expected the package to be installed, found none; pip install specutils"
            ) from error
        self._redshifts, self._medium, self._format = redshifts, medium, format

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a file."""
        chosen = {} if self._format is None else {"format": self._format}
        try:
            loaded = list(self._list.read(str(path), **chosen))
        # Loaders raise what they like, and astropy's registry its own kind.
        except Exception as error:
            raise Unusable(f"specutils cannot load it: {type(error).__name__}: {str(error)[:300]}") from error
        stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
        for number, spectrum in enumerate(loaded):
            name = stem if len(loaded) == 1 else f"{stem}_{number}"
            try:
                yield self._spectra(path, spectrum, name, number)
            except DigsError as error:
                yield LeftOut(str(error))

    def _spectra(self, path: Path, spectrum: Any, name: str, number: int) -> Spectra:
        flux = _rows(spectrum, spectrum.flux.value)
        if spectrum.uncertainty is None:
            raise Unusable("expected uncertainties, found none")
        deviation = spectrum.uncertainty.represent_as(StdDevUncertainty)
        error = deviation.array * (1.0 if deviation.unit is None else deviation.unit.to(spectrum.flux.unit))
        mask = None if spectrum.mask is None else _rows(spectrum, np.broadcast_to(spectrum.mask, spectrum.flux.shape))
        names = [name] if len(flux) == 1 else [f"{name}_{row}" for row in range(len(flux))]
        return Spectra(
            spectrum.spectral_axis.to_value(units.AA, equivalencies=units.spectral()),
            flux,
            error=_rows(spectrum, error),
            mask=mask,
            redshift=np.array([self._redshifts.of(each, path) for each in names]),
            galaxy_id=np.array(names),
            flux_unit=spectrum.flux.unit.to_string(),
            medium=self._medium,
            hdu=str(number),
        )


def _rows(spectrum: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Return values of a spectrum as (row, pixel)."""
    axis = getattr(spectrum, "spectral_axis_index", None)
    rows = np.moveaxis(np.asarray(values), -1 if axis is None else axis, -1)
    if rows.ndim > 2:
        raise Unusable(f"expected one spectrum or rows of them, found a cube of shape {rows.shape}")
    return np.atleast_2d(rows)
