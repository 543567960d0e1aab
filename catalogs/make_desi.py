"""Make ``catalogs/desi.zarr``: two public spectra of DESI, with published values beside them.

The files are test data of the wheel of fastspecfit (BSD-3). ``python catalogs/make_desi.py FOLDER``, with the folder
that has them, runs ``digs-survey ingest desi`` with elements of three pixels of DESI, so that no pixel is shared, and
adds columns that ingest cannot know of.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from digs_survey.catalog import Catalog, write_catalog

OUT = Path(__file__).with_name("desi.zarr")
NAMES = ("4-80613-thru20210324", "special-dark-27247")
FILES = [f"{kind}-{name}.fits" for name in NAMES for kind in ("coadd", "redrock")]
GALAXY, TRAP = 39633345008634465, 39089837499744649
NAN = float("nan")
PUBLISHED = {
    "published_log_mass": (
        {GALAXY: 9.36},
        {"units": "dex(solMass)", "description": "log10 of the mass of living stars by FastSpecFit, with photometry"},
    ),
    "published_log_mass_error": ({GALAXY: 0.05}, {"units": "dex", "description": "error of published_log_mass"}),
    "redshift_by_hand": ({GALAXY: 0.3687, TRAP: 3.148}, {"description": "redshift, looked at"}),
}
"""The mass is that of the documentation of FastSpecFit (doc/running.rst of github.com/desihub/fastspecfit)."""


def main() -> None:
    """Write the catalog."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ingested = Path(scratch) / "desi.zarr"
        pixels = ["--start-angstrom", "3600.8", "--stop-angstrom", "9821.6", "--step-angstrom", "2.4"]
        command = [sys.executable, "-m", "digs_survey", "ingest", "desi", *FILES, str(ingested), "--deredden", *pixels]
        subprocess.run(command, cwd=arguments.folder, check=True)
        add_published(ingested, arguments.out)


def add_published(ingested: Path, out: Path) -> None:
    """Write a catalog again, with :data:`PUBLISHED`."""
    catalog = Catalog.open(ingested)
    rows = catalog.rows(0, catalog.n_rows)
    columns = {
        name: (values, catalog.column_attrs(name)) for name, values in catalog.columns(0, catalog.n_rows).items()
    }
    for name, (known, attrs) in PUBLISHED.items():
        columns[name] = np.array([known.get(int(one), NAN) for one in rows.galaxy_id]), attrs
    write_catalog(
        out,
        grid=catalog.grid,
        flux=rows.flux * 1e17,
        ivar=rows.ivar * 1e-34,
        mask=(~rows.good).astype(np.uint8),
        redshift=rows.redshift,
        galaxy_id=rows.galaxy_id,
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
        columns=columns,
        attrs={
            "description": "two public spectra of DESI, corrected for Galactic extinction; see catalogs/README.md",
            "license": "CC BY 4.0",
            "source": "https://data.desi.lbl.gov/doc/, as in the test data of fastspecfit 3.6.1",
            "galactic_extinction": "corrected: Fitzpatrick 1999, R_V = 3.1, E(B-V) times 0.86",
        },
        rows_per_shard=2,
    )


if __name__ == "__main__":
    main()
