"""A catalog that was made of files, taken up again: its elements, its choices, and its rows as parts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from digs_survey.catalog.catalog import Catalog
from digs_survey.catalog.decoding import StoredArray, numbers
from digs_survey.catalog.readers.assembling import PROVENANCE, PartsWriter, plain
from digs_survey.catalog.readers.elements import Elements, continued
from digs_survey.catalog.readers.flux_units import STORED_UNIT
from digs_survey.catalog.readers.grid_choice import CHOICE_ATTRIBUTE, GridChoice
from digs_survey.catalog.readers.rebinning import Rebinned
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.catalog.schema import FORMAT_ATTRIBUTE, open_group, stored_arrays
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.store.locations import exists

__all__ = ["EarlierCatalog"]

_ROWS = 512
"""In a part."""


@dataclass(frozen=True)
class EarlierCatalog:
    """A catalog to which files are added.

    Attributes
    ----------
    catalog : Catalog
    choice : GridChoice
        That it was made with.
    attrs : dict
        Of the catalog as a whole.
    """

    catalog: Catalog
    choice: GridChoice
    attrs: dict[str, Any]

    @classmethod
    def open(cls, path: Path, asked: GridChoice | None) -> EarlierCatalog:
        """Open a catalog.

        Parameters
        ----------
        path : Path
        asked : GridChoice, optional
            Must be what the catalog was made with; one with nothing but defaults says nothing.

        Raises
        ------
        CatalogError
            It is not there, or was not made of files.
        ConfigError
            Another choice was asked for.
        """
        if not exists(path):
            raise CatalogError(f"{path}: expected a catalog to append to, found none; leave --append away to make it")
        catalog, attrs = Catalog.open(path), dict(open_group(path).attrs)
        if CHOICE_ATTRIBUTE not in attrs or not set(PROVENANCE) <= set(catalog.survey_columns):
            raise CatalogError(
                f"{path}: expected a catalog that this version's 'digs-survey ingest' made, found none of its "
                f"attribute {CHOICE_ATTRIBUTE!r}; make it of all files, or append to a catalog of its own"
            )
        made_with = json.loads(str(attrs[CHOICE_ATTRIBUTE]))
        found = catalog.column_attrs("flux").get("units"), catalog.grid.medium, catalog.grid.frame
        if found != (STORED_UNIT, "vacuum", made_with["frame"]) or catalog.not_carried:
            told = ", ".join(map(str, [*found, *catalog.not_carried]))
            raise CatalogError(
                f"{path}: expected flux in {STORED_UNIT!r}, wavelengths in vacuum, the {made_with['frame']} frame, and "
                "no arrays but those that ingest writes and columns of one value a row; found "
                f"{told}; undo what was changed, or ingest all files anew"
            )
        wrong = [
            f"{name}: the catalog has {made_with[name]}, asked for is {value}"
            for name, value in asdict(asked or GridChoice()).items()
            if value not in (made_with[name], getattr(GridChoice(), name))
        ]
        if wrong:
            raise ConfigError(
                "\n  - ".join(
                    [f"{path}: rows are added on the elements that it has, and as its own were made:", *wrong]
                )
            )
        return cls(catalog, GridChoice(**made_with), {k: v for k, v in attrs.items() if k != FORMAT_ATTRIBUTE})

    @property
    def elements(self) -> Elements:
        """Its elements, continued to wherever rows reach; number 0 is its first."""
        return continued(self.catalog.grid.wavelength)

    def write_parts(self, path: Path) -> None:
        """Write its rows to an archive, as those of files are."""
        arrays = stored_arrays(open_group(self.catalog.path))
        with PartsWriter(path) as parts:
            for start in range(0, self.catalog.n_rows, _ROWS):
                parts.add(self._block(arrays, slice(start, start + _ROWS)), "")

    def _block(self, arrays: dict[str, StoredArray], rows: slice) -> Rebinned:
        flux, ivar = (numbers(arrays[name][rows]) for name in ("flux", "ivar"))
        ivar[np.ma.filled(arrays["mask"][rows], 1) != 0] = 0
        columns = self.catalog.columns(rows.start, min(rows.stop, self.catalog.n_rows))
        source_row = columns.pop("source_row")
        spectra = Spectra(
            self.catalog.grid.wavelength,
            flux,
            ivar=ivar,
            redshift=numbers(arrays["redshift"][rows]),
            galaxy_id=np.ma.getdata(arrays["galaxy_id"][rows]),
            flux_unit=STORED_UNIT,
            medium="vacuum",
            frame=self.choice.frame,
            columns={name: (plain(values), _attributes(self.catalog, name)) for name, values in columns.items()},
            rows=source_row,
        )
        return Rebinned(spectra, 0, flux.astype(np.float32), ivar.astype(np.float32))


def _attributes(catalog: Catalog, name: str) -> dict[str, Any]:
    coded = ("_FillValue", "missing_value", "scale_factor", "add_offset")
    return {key: value for key, value in catalog.column_attrs(name).items() if key not in coded}
