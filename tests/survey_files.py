"""Small files in the formats of surveys, all with the same known spectrum, and what their readers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.jwst import JwstReader
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.sdss import SdssReader
from digs_survey.catalog.readers.table_map import load_map
from digs_survey.catalog.readers.table_reader import TableReader
from digs_survey.spectra import vacuum_to_air

LIGHT = 2.99792458e18
"""Angstrom per second."""
REDSHIFT = 0.2
ERROR = 0.05


def known(wave: np.ndarray) -> np.ndarray:
    """Flux in 1e-17 erg/s/cm2/Angstrom at vacuum wavelengths in Angstrom: a continuum, a line and a break."""
    line = 3.0 * np.exp(-0.5 * ((wave - 3700.0) / 8.0) ** 2)
    return 2.0 + 0.5 * np.sin(wave / 90.0) + line + 0.4 / (1 + np.exp((3650.0 - wave) / 4.0))


ARMS = {"B": 3600 + 0.8 * np.arange(120), "R": 3664 + 0.8 * np.arange(120), "Z": 3728 + 0.8 * np.arange(100)}
"""Pixels of the short arms of the DESI files here, which overlap."""


def arms_at(wave: np.ndarray) -> np.ndarray:
    """Return how many arms of DESI have a pixel at each wavelength."""
    return sum((wave > arm[0] - 0.1) & (wave < arm[-1] + 0.1) for arm in ARMS.values()).astype(float)


def coadd(path: Path, rows: int = 2, **changes: Any) -> Path:
    """Write a DESI coadd of ``rows`` targets (TARGETID 100, 101, ...) with short arms that overlap."""
    arms = ARMS
    ids = np.array(changes.get("targetid", 100 + np.arange(rows)))
    objtype = np.array(changes.get("objtype", ["TGT"] * rows))
    fibermap = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=ids),
            fits.Column("OBJTYPE", "3A", array=objtype),
            fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(rows)),
            fits.Column("TARGET_RA", "D", unit="deg", array=np.linspace(10, 20, rows)),
            fits.Column("EBV", "E", unit="mag", array=np.full(rows, 0.1)),
            *(
                fits.Column(f"FLUX_{ivar}{band}", "E", array=np.full(rows, 3.0))
                for ivar in ("", "IVAR_")
                for band in ("G", "R", "Z", "W1", "W2")
            ),
        ],
        name="FIBERMAP",
    )
    if "fiberstatus" in changes:
        fibermap.columns.change_name("COADD_FIBERSTATUS", "FIBERSTATUS")
        fibermap.data["FIBERSTATUS"] = changes["fiberstatus"]
    hdus = [fits.PrimaryHDU(), fibermap]
    hdus[0].header["SURVEY"] = "main"
    for arm, wave in arms.items():
        flux = np.tile(known(wave), (rows, 1))
        hdus.append(fits.ImageHDU(changes.get("wavelength", lambda w: w)(wave), name=f"{arm}_WAVELENGTH"))
        hdus.append(fits.ImageHDU(changes.get("flux", lambda f: f)(flux).astype("f4"), name=f"{arm}_FLUX"))
        hdus[-1].header["BUNIT"] = changes.get("bunit", "10**-17 erg/(s cm2 Angstrom)")
        hdus.append(fits.ImageHDU(np.full(flux.shape, ERROR**-2, "f4"), name=f"{arm}_IVAR"))
        hdus.append(fits.ImageHDU(np.zeros(flux.shape, "u4"), name=f"{arm}_MASK"))
        if "sigma" in changes:
            shares = np.exp(-0.5 * (np.arange(-5, 6) * 0.8 / changes["sigma"]) ** 2)
            matrix = np.broadcast_to((shares / shares.sum())[:, None], (rows, 11, wave.size))
            hdus.append(fits.ImageHDU(matrix.astype("f4"), name=f"{arm}_RESOLUTION"))
    kept = [hdu for hdu in hdus if hdu.name not in changes.get("without", ())]
    fits.HDUList(kept).writeto(path, overwrite=True)
    return path


def redrock(path: Path, targetid: Any, redshift: Any, spectype: Any = "GALAXY") -> Path:
    """Write the Redrock file of a coadd."""
    rows = len(targetid)
    columns = [
        fits.Column("TARGETID", "K", array=np.array(targetid)),
        fits.Column("Z", "D", array=np.broadcast_to(redshift, rows)),
        fits.Column("ZERR", "D", array=np.full(rows, 1e-5)),
        fits.Column("ZWARN", "K", array=np.zeros(rows)),
        fits.Column("SPECTYPE", "6A", array=np.broadcast_to(spectype, rows)),
        fits.Column("DELTACHI2", "D", array=np.full(rows, 99.0)),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="REDSHIFTS")]).writeto(path)
    return path


def desi(folder: Path) -> tuple[list[Path], Any]:
    """A coadd with its redshifts."""
    files = [
        coadd(folder / "coadd-main-dark-1.fits", rows=1),
        redrock(folder / "redrock-main-dark-1.fits", [100], REDSHIFT),
    ]
    return files, DesiReader(files)


LOGLAM = np.arange(35563, 35800) * 1e-4


def specobj(rows: int = 1, **changes: Any) -> fits.BinTableHDU:
    """The redshifts of SDSS spectra, as HDU 2 of a spec file or as a spZbest file has them."""
    values: dict[str, Any] = {"PLATE": 266, "MJD": 51630, "FIBERID": 1 + np.arange(rows), "Z": REDSHIFT, "Z_ERR": 1e-5}
    values |= {"ZWARNING": 0, "CLASS": "GALAXY", "SUBCLASS": "", "PLUG_RA": 10.0, "PLUG_DEC": 1.0} | changes
    columns = []
    for name, value in values.items():
        if value is None:
            continue
        array = np.broadcast_to(value, rows)
        kind = "12A" if array.dtype.kind == "U" else "K" if array.dtype.kind == "i" else "D"
        columns.append(fits.Column(name, kind, array=array))
    return fits.BinTableHDU.from_columns(columns, name="SPECOBJ")


def spec(path: Path, **changes: Any) -> Path:
    """Write a spec file."""
    flux = known(10**LOGLAM)
    coadded = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=flux),
            fits.Column("loglam", "E", array=LOGLAM),
            fits.Column("ivar", "E", array=np.full(flux.size, ERROR**-2)),
            fits.Column("and_mask", "J", array=np.zeros(flux.size)),
            fits.Column("wdisp", "E", array=np.ones(flux.size)),
        ],
        name="COADD",
    )
    hdus = fits.HDUList([fits.PrimaryHDU(), coadded, specobj(**changes)])
    hdus[0].header["BUNIT"] = "1E-17 erg/cm^2/s/Ang"
    hdus.writeto(path, overwrite=True)
    return path


def sdss(folder: Path) -> tuple[list[Path], Any]:
    """A spec file."""
    return [spec(folder / "spec-0266-51630-0001.fits")], SdssReader()


def plate(folder: Path) -> tuple[list[Path], Any]:
    """A plate of one galaxy, one sky fibre and one star, with its redshifts in a folder beside it."""
    flux = np.tile(known(10**LOGLAM), (3, 1)).astype("f4")
    head = fits.PrimaryHDU(flux)
    head.header.update({"COEFF0": LOGLAM[0], "COEFF1": 1e-4, "BUNIT": "1E-17 erg/cm^2/s/Ang"})
    images = [
        fits.ImageHDU(np.full(flux.shape, ERROR**-2, "f4")),
        *(fits.ImageHDU(np.zeros(flux.shape, "i4")) for _ in "ao"),
    ]
    fibres = fits.BinTableHDU.from_columns([fits.Column("OBJTYPE", "8A", array=["GALAXY", "SKY", "GALAXY"])])
    path = folder / "spPlate-0266-51630.fits"
    fits.HDUList([head, *images, fits.ImageHDU(np.ones(flux.shape, "f4")), fibres]).writeto(path)
    (folder / "v5").mkdir()
    zbest = specobj(3, CLASS=["GALAXY", "GALAXY", "STAR"])
    fits.HDUList([fits.PrimaryHDU(), zbest]).writeto(folder / "v5" / "spZbest-0266-51630.fits")
    return [path], SdssReader()


PRISM = np.linspace(0.35, 0.40, 241)
"""Microns: 2 Angstrom a pixel."""


def per_frequency(wave: np.ndarray) -> np.ndarray:
    """The known spectrum in microjansky."""
    return known(wave) * 1e-17 * wave**2 / LIGHT / 1e-29


def msaexp(folder: Path) -> tuple[list[Path], Any]:
    """A spectrum of msaexp."""
    scale = per_frequency(PRISM * 1e4) / known(PRISM * 1e4)
    columns = [
        fits.Column("wave", "D", unit="um", array=PRISM),
        fits.Column("flux", "D", unit="uJy", array=per_frequency(PRISM * 1e4)),
        fits.Column("err", "D", unit="uJy", array=ERROR * scale),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPEC1D")
    table.header["GRATING"] = "PRISM"
    path = folder / "field-prism.spec.fits"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return [path], JwstReader(Redshifts(str(REDSHIFT)))


def x1d(folder: Path) -> tuple[list[Path], Any]:
    """Two sources in a file of the pipeline, in jansky; the first has a bad pixel, the second no redshift."""
    scale = per_frequency(PRISM * 1e4) / known(PRISM * 1e4) * 1e-6
    hdus: list[Any] = [fits.PrimaryHDU()]
    for source in (7, 8):
        flux = per_frequency(PRISM * 1e4) * 1e-6
        bad = np.zeros(flux.size, dtype=int)
        flux[100], bad[100] = 1e3, 1
        columns = [
            fits.Column("WAVELENGTH", "D", unit="um", array=PRISM),
            fits.Column("FLUX", "D", unit="Jy", array=flux),
            fits.Column("FLUX_ERROR", "D", unit="Jy", array=ERROR * scale),
            fits.Column("DQ", "J", array=bad),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns, name="EXTRACT1D", ver=source))
        hdus[-1].header["SOURCEID"] = source
    path, given = folder / "jw1_x1d.fits", folder / "z.csv"
    fits.HDUList(hdus).writeto(path)
    given.write_text(f"galaxy_id,z\njw1_7,{REDSHIFT}\n")
    return [path], JwstReader(Redshifts(str(given)))


TABLE_WAVE = 3550.0 + 1.5 * np.arange(200)
"""Vacuum wavelengths of the tables' pixels."""


def mapped(folder: Path, toml: str) -> TableReader:
    """A reader of tables by a column map."""
    path = folder / "map.toml"
    path.write_text(toml)
    return TableReader(load_map(path), folder)


def eso(folder: Path) -> tuple[list[Path], Any]:
    """One row with arrays, as ESO's Phase 3 has it, in air and erg, per Angstrom."""
    wave = vacuum_to_air(TABLE_WAVE)
    n = wave.size
    columns = [
        fits.Column("WAVE", f"{n}D", unit="angstrom", array=wave[None]),
        fits.Column("FLUX", f"{n}D", unit="erg cm**(-2) s**(-1) angstrom**(-1)", array=known(TABLE_WAVE)[None] * 1e-17),
        fits.Column("ERR", f"{n}D", unit="erg cm**(-2) s**(-1) angstrom**(-1)", array=np.full((1, n), ERROR * 1e-17)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="PHASE3SPECTRUM")
    path = folder / "vandels.fits"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    path_header = 'galaxy_id = { header = "OBJECT" }'
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["OBJECT"], hdus[0].header["Z_SPEC"] = "CDFS1", REDSHIFT
    toml = f'layout = "arrays"\nmedium = "air"\nwavelength = "WAVE"\nflux = "FLUX"\nerror = "ERR"\n{path_header}\n'
    return [path], mapped(folder, toml + 'redshift = { header = "Z_SPEC" }\n')


_PIXELS = 'layout = "pixels"\nmedium = "vacuum"\nwavelength = "wave"\nflux = "flux"\nivar = "ivar"\n'


def csv(folder: Path) -> tuple[list[Path], Any]:
    """A CSV file in nanometres, with decreasing wavelengths, whose units are in the map."""
    rows = [f"{w / 10!r},{f!r},{ERROR**-2!r}" for w, f in zip(TABLE_WAVE[::-1], known(TABLE_WAVE)[::-1], strict=True)]
    rows = [row.replace("np.float64(", "").replace(")", "") for row in rows]
    path = folder / "one.csv"
    path.write_text("\n".join(["wave,flux,ivar", *rows]) + "\n")
    units = f'wavelength_unit = "nm"\nflux_unit = "1e-17 erg / (s cm2 Angstrom)"\nredshift = {REDSHIFT}\n'
    return [path], mapped(folder, _PIXELS + units)


def ecsv(folder: Path) -> tuple[list[Path], Any]:
    """An ECSV file with units, in microjansky."""
    from astropy.table import QTable

    scale = per_frequency(TABLE_WAVE) / known(TABLE_WAVE)
    table = QTable({"wave": TABLE_WAVE, "flux": per_frequency(TABLE_WAVE), "ivar": (ERROR * scale) ** -2.0})
    table["wave"].unit, table["flux"].unit = "Angstrom", "uJy"
    table.meta["z"] = REDSHIFT
    table.write(folder / "one.ecsv")
    return [folder / "one.ecsv"], mapped(folder, _PIXELS + 'redshift = { header = "z" }\n')


def parquet(folder: Path) -> tuple[list[Path], Any]:
    """List columns, with a second row that is shorter."""
    import pyarrow as pa
    import pyarrow.parquet

    lengths = (TABLE_WAVE.size, 50)
    lists = {
        "wave": [TABLE_WAVE[:n].tolist() for n in lengths],
        "flux": [known(TABLE_WAVE[:n]).tolist() for n in lengths],
        "ivar": [[ERROR**-2] * n for n in lengths],
        "name": ["a", "b"],
        "z": [REDSHIFT, REDSHIFT],
    }
    pyarrow.parquet.write_table(pa.table(lists), folder / "two.parquet")
    toml = (
        _PIXELS.replace("pixels", "arrays") + 'wavelength_unit = "Angstrom"\nflux_unit = "1e-17 erg/(s cm2 Angstrom)"\n'
    )
    toml += 'redshift = { column = "z" }\ngalaxy_id = { column = "name" }\n[columns]\nzspec = { column = "z" }\n'
    return [folder / "two.parquet"], mapped(folder, toml)


def hdf5(folder: Path) -> tuple[list[Path], Any]:
    """Datasets with one array of wavelengths for all rows."""
    import h5py

    with h5py.File(folder / "two.h5", "w") as file:
        file["wave"], file["flux"] = TABLE_WAVE, np.tile(known(TABLE_WAVE), (2, 1))
        file["ivar"], file["z"] = np.full((2, TABLE_WAVE.size), ERROR**-2), [REDSHIFT, REDSHIFT]
        file["wave"].attrs["units"], file["flux"].attrs["units"] = "Angstrom", "1e-17 erg / (s cm2 Angstrom)"
    return [folder / "two.h5"], mapped(folder, _PIXELS.replace("pixels", "arrays") + 'redshift = { column = "z" }\n')


def _image(folder: Path, wave: np.ndarray, medium: str, **cards: Any) -> tuple[list[Path], Any]:
    flux = fits.PrimaryHDU(known(wave))
    flux.header.update({"BUNIT": "10**(-17) erg/s/cm**2/Angstrom", "CRPIX1": 1.0, **cards})
    error = fits.ImageHDU(np.full(wave.size, ERROR), name="ERR")
    fits.HDUList([flux, error]).writeto(folder / "one.fits")
    toml = f'layout = "image"\nmedium = "{medium}"\nflux = 0\nerror = "ERR"\nredshift = {REDSHIFT}\n'
    return [folder / "one.fits"], mapped(folder, toml)


def linear(folder: Path) -> tuple[list[Path], Any]:
    """An image in steps of 0.15 nm."""
    return _image(folder, TABLE_WAVE, "vacuum", CTYPE1="WAVE", CUNIT1="nm", CRVAL1=355.0, CDELT1=0.15)


IRAF = {"DC-FLAG": 1, "WAT1_001": "wtype=linear label=Wavelength units=angstroms"}


def log10(folder: Path) -> tuple[list[Path], Any]:
    """An image in steps of log10, as IRAF writes it."""
    return _image(folder, 10 ** (3.55 + 1e-4 * np.arange(300)), "vacuum", CRVAL1=3.55, CD1_1=1e-4, **IRAF)


def natural_log(folder: Path) -> tuple[list[Path], Any]:
    """An image on FITS's own logarithmic axis, in air."""
    from digs_survey.spectra import air_to_vacuum

    air = 3560.0 * np.exp(1.4 * np.arange(200) / 3560.0)
    return _image(folder, air_to_vacuum(air), "air", CTYPE1="AWAV-LOG", CUNIT1="Angstrom", CRVAL1=3560.0, CDELT1=1.4)


KINDS = (desi, sdss, plate, msaexp, x1d, eso, csv, ecsv, parquet, hdf5, linear, log10, natural_log)
"""Each returns files and their reader; the first row of each has the known spectrum, error and redshift."""
