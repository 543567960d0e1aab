"""SDSS and BOSS ``spec-PLATE-MJD-FIBER.fits`` files: galaxy spectra to a catalog, at rest or as observed.

Format: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html. HDU 1 holds
the coadded spectrum (``flux`` in 1e-17 erg/s/cm2/Angstrom, ``loglam`` = log10 of the heliocentric vacuum
wavelength in Angstrom, ``ivar``, ``and_mask``), HDU 2 the row of the redshift catalog.

Spectra are brought to the rest frame by wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2, so that the integral
over a range of the spectrum is kept, unless the observed frame is asked for, and rebinned onto contiguous elements.
Fluxes are those through
the fibre, and are not corrected for Galactic extinction, as in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.config import GridConfig
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid, rebin_spectrum
from digs_survey.store.locations import location

__all__ = ["BRIGHTSKY", "ingest_sdss", "read_sdss"]

BRIGHTSKY = 1 << 23
"""Bit of ``and_mask``: in every exposure the sky outshone the object by far.

By www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php the very bad conditions already have ``ivar`` = 0,
and of the other bits this is the one to look at: near strong sky lines the errors cannot be trusted.
"""

_FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"
_COADD_COLUMNS = ("FLUX", "LOGLAM", "IVAR", "AND_MASK")
_REQUIRED = ("PLATE", "MJD", "FIBERID", "Z", "ZWARNING")

_COLUMNS: dict[str, tuple[tuple[str, ...], type, dict[str, str]]] = {
    "ra": (("PLUG_RA", "RA"), float, {"units": "deg", "description": "right ascension of the fibre, J2000"}),
    "dec": (("PLUG_DEC", "DEC"), float, {"units": "deg", "description": "declination of the fibre, J2000"}),
    "plate": (("PLATE",), int, {"description": "SDSS plate"}),
    "mjd": (("MJD",), int, {"units": "d", "description": "modified Julian date of the observation"}),
    "fiberid": (("FIBERID",), int, {"description": "SDSS fibre"}),
    "z_err": (("Z_ERR",), float, {"description": "error of the redshift; negative if the fit failed"}),
    "zwarning": (("ZWARNING",), int, {"description": "bits that warn of the redshift; 0 = none"}),
    "class": (("CLASS",), str, {"description": "class by the redshift pipeline"}),
    "subclass": (("SUBCLASS",), str, {"description": "subclass by the redshift pipeline"}),
    "sn_median": (
        ("SN_MEDIAN_ALL", "SN_MEDIAN"),
        float,
        {"description": "median signal-to-noise ratio per pixel of the whole spectrum"},
    ),
}
"""Survey columns: their names in SPECOBJ (the first that holds one value), type and attributes."""


@dataclass(frozen=True)
class _Spectrum:
    """One file, in the frame of the catalog; ``ivar`` is 0 where a pixel is bad."""

    path: Path
    galaxy_id: str
    redshift: float
    columns: dict[str, Any]
    pixel_edges: NDArray[np.float64]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]

    @property
    def reach(self) -> tuple[float, float]:
        """Wavelengths between which there are good pixels (all pixels if none is good)."""
        good = np.flatnonzero(self.ivar > 0)
        first, last = (good[0], good[-1]) if good.size else (0, self.ivar.size - 1)
        return float(self.pixel_edges[first]), float(self.pixel_edges[last + 1])


def read_sdss(
    paths: Sequence[Path | str],
    *,
    step_angstrom: float = 50.0,
    start_angstrom: float | None = None,
    stop_angstrom: float | None = None,
    frame: Literal["rest", "observed"] = "rest",
) -> dict[str, Any]:
    """Read SDSS spectra and rebin them onto one grid; every file gives one row, in their order.

    Pixels with ``ivar`` = 0 or :data:`BRIGHTSKY` do not count; elements that good pixels cover to less than
    half are masked.

    Parameters
    ----------
    paths : sequence of path-like
    step_angstrom : float
        Width of the elements.
    start_angstrom, stop_angstrom : float, optional
        Centres of the first and the last element. By default the elements fill the range that all rows have,
        with edges on multiples of the step. Elements beyond a row's own range are masked in it.
    frame : {"rest", "observed"}
        Of the grid.

    Returns
    -------
    dict
        Arguments of :func:`digs_survey.catalog.write_catalog`.

    Raises
    ------
    CatalogError
        A file that is no SDSS spectrum or has no positive redshift, or no common range of wavelengths;
        the message names the files.
    """
    files = [location(path) for path in paths]
    if not files:
        raise CatalogError("SDSS spectra: expected at least one spec-PLATE-MJD-FIBER.fits file, found none")
    # read twice, so that no more than one spectrum is held at its full resolution
    reach = {path: _read(path, frame).reach for path in files}
    grid = _common_grid(reach, step_angstrom, start_angstrom, stop_angstrom, frame)
    spectra, rows = [], []
    for path in files:
        spectrum = _read(path, frame)
        rows.append(rebin_spectrum(spectrum.pixel_edges, spectrum.flux, spectrum.ivar, grid.edges))
        spectra.append((spectrum.galaxy_id, spectrum.redshift, spectrum.columns))
    flux, ivar, mask = (np.stack(parts) for parts in zip(*rows, strict=True))
    ids, redshifts, columns = zip(*spectra, strict=True)
    return {
        "grid": grid,
        "flux": flux,
        "ivar": ivar,
        "mask": mask,
        "redshift": np.array(redshifts),
        "galaxy_id": np.array(ids),
        "flux_unit": _FLUX_UNIT,
        "columns": {
            name: (np.array([row[name] for row in columns]), attrs) for name, (_, _, attrs) in _COLUMNS.items()
        },
        "attrs": {
            "source": "SDSS spec-PLATE-MJD-FIBER files",
            **({"rest_frame": "wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2"} if frame == "rest" else {}),
            "bad_pixels": "ivar = 0, or bit BRIGHTSKY of and_mask",
            "galactic_extinction": "not corrected",
            "aperture": "flux through the fibre",
        },
    }


def ingest_sdss(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    step_angstrom: float = 50.0,
    start_angstrom: float | None = None,
    stop_angstrom: float | None = None,
    frame: Literal["rest", "observed"] = "rest",
) -> Catalog:
    """Turn SDSS spectra into a catalog at ``out`` and open it; parameters and errors as :func:`read_sdss`."""
    arguments = read_sdss(
        paths,
        step_angstrom=step_angstrom,
        start_angstrom=start_angstrom,
        stop_angstrom=stop_angstrom,
        frame=frame,
    )
    write_catalog(out, **arguments)
    return Catalog.open(out)


def _common_grid(
    reach: dict[Path, tuple[float, float]],
    step: float,
    start: float | None,
    stop: float | None,
    frame: Literal["rest", "observed"],
) -> WavelengthGrid:
    if not (np.isfinite(step) and step > 0):
        raise CatalogError(f"step_angstrom: expected a positive number, found {step}")
    lowest = max(reach, key=lambda path: reach[path][0])
    highest = min(reach, key=lambda path: reach[path][1])
    low, high = reach[lowest][0], reach[highest][1]
    first = step * (np.ceil(low / step) + 0.5) if start is None else start
    last = step * (np.floor(high / step) - 0.5) if stop is None else stop
    if not (first > 0 and last >= first + step):
        raise CatalogError(
            f"SDSS spectra: expected at least two elements of {step:g} Angstrom in the {frame}-frame range that "
            f"all rows have, found {low:.1f} (where {lowest.name} begins) to {high:.1f} Angstrom (where "
            f"{highest.name} ends); leave such files out, or give start_angstrom and stop_angstrom"
        )
    config = GridConfig(start_angstrom=first, stop_angstrom=last, step_angstrom=step, frame=frame, medium="vacuum")
    return WavelengthGrid.from_config(config)


def _read(path: Path, frame: Literal["rest", "observed"]) -> _Spectrum:
    from astropy.io import fits

    if not path.is_file():
        raise CatalogError(f"{path}: no such file")
    try:
        with path.open("rb") as file, fits.open(file, memmap=False) as hdus:
            _check(path, hdus)
            coadd, specobj = hdus[1].data, hdus[2].data[0]
            wave, flux, ivar = (np.asarray(coadd[n], dtype=np.float64) for n in ("LOGLAM", "FLUX", "IVAR"))
            bright_sky = (np.asarray(coadd["AND_MASK"]) & BRIGHTSKY) != 0
            names = {name.upper() for name in hdus[2].columns.names}
            record = {name: np.asarray(specobj[name]) for name in names}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise CatalogError(f"{path}: expected an SDSS spec file, but it cannot be read ({error})") from error
    if wave.size < 2 or not (np.isfinite(wave).all() and (np.diff(wave) > 0).all()):
        raise CatalogError(f"{path}: LOGLAM: expected at least two increasing values; the file is damaged")
    redshift = float(record["Z"])
    if not (np.isfinite(redshift) and redshift > 0):
        raise CatalogError(f"{path}: Z: expected a positive redshift, found {redshift}; leave this file out")
    middle = 0.5 * (wave[1:] + wave[:-1])
    log_edges = np.concatenate([[2 * wave[0] - middle[0]], middle, [2 * wave[-1] - middle[-1]]])
    stretch = 1 + redshift if frame == "rest" else 1.0
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0) & ~bright_sky
    plate, mjd, fiber = (int(record[name]) for name in ("PLATE", "MJD", "FIBERID"))
    return _Spectrum(
        path=path,
        galaxy_id=f"{plate:04d}-{mjd:05d}-{fiber:04d}",
        redshift=redshift,
        columns={name: _column(record, keys, kind) for name, (keys, kind, _) in _COLUMNS.items()},
        pixel_edges=10**log_edges / stretch,
        flux=flux * stretch,
        ivar=np.where(good, ivar, 0.0) / stretch**2,
    )


def _check(path: Path, hdus: Any) -> None:
    for index, needed in ((1, _COADD_COLUMNS), (2, _REQUIRED)):
        columns = getattr(hdus[index], "columns", None) if index < len(hdus) else None
        found = set() if columns is None else {name.upper() for name in columns.names}
        missing = [name for name in needed if name not in found]
        if missing:
            raise CatalogError(
                f"{path}: expected an SDSS spec-PLATE-MJD-FIBER file with {', '.join(needed)} in HDU "
                f"{index}; found no {', '.join(missing)} there"
            )
    if len(hdus[2].data) != 1:
        raise CatalogError(f"{path}: HDU 2: expected one row, found {len(hdus[2].data)}")
    unit = str(hdus[0].header.get("BUNIT", "1E-17 erg"))
    if not unit.upper().startswith("1E-17 ERG"):
        raise CatalogError(f"{path}: BUNIT: expected 1E-17 erg/cm^2/s/Ang, found {unit!r}")
    if not hdus[0].header.get("VACUUM", True):
        raise CatalogError(f"{path}: VACUUM: expected vacuum wavelengths, found VACUUM = F")


def _column(record: dict[str, NDArray[Any]], keys: tuple[str, ...], kind: type) -> Any:
    """Return the first of the keys that holds one value; NaN or "" if none does."""
    value = next((record[key] for key in keys if key in record and record[key].size == 1), None)
    if value is None:
        return "" if kind is str else float("nan")
    return str(value.item()).strip() if kind is str else kind(value.item())
