"""DESI coadds to a catalog: spectra per core-second, beside reading the same arrays, and memory for few and many files.

Two coadds are made here, with the arms, masks and resolution matrices of DESI's, 500 targets a file. Reading them is
what astropy takes for flux, inverse variance and mask of all arms. Memory is the largest that a process of its own
needed, which reads one file, or as many as ``--files`` says: the two again and again, with other identifiers each time.
``--files 200`` makes a catalog of 100,000 rows, and takes 13 GB of disk.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from benchmarks._form import finish, parser
from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.reading import LeftOut
from digs_survey.catalog.readers.spectra_block import Spectra

_ARMS = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}
"""First wavelength and number of pixels of 0.8 Angstrom."""
_DIAGONALS = 11
_TIMES = 5
_COADDS, _APART = 2, 10**9
"""Coadds that are made, and how far apart the identifiers are each time that one is read."""


def main() -> None:
    options = parser("ingest", __doc__ or "")
    options.add_argument("--files", type=int, help="of the larger catalog (default: 8)")
    options.add_argument("--targets", type=int, help="of each (default: 500)")
    options.add_argument("--memory", type=Path, metavar="FOLDER", help="read its coadds, and print the peak memory")
    args = options.parse_args()
    if args.memory:
        with tempfile.TemporaryDirectory(dir=args.memory) as made:
            files = [args.memory / f"again-{number}.fits" for number in range(args.files)]
            for number, file in enumerate(files):
                file.unlink(missing_ok=True)
                file.symlink_to(args.memory / f"coadd-main-dark-{number % _COADDS}.fits")
            ingest(files, Path(made) / "out.zarr", _Again(), source="benchmark")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    count, targets = args.files or (2 if args.quick else 8), args.targets or (50 if args.quick else 500)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        files = [_coadd(folder, number, targets) for number in range(_COADDS)]
        rates, plain = [], []
        for turn in range(1 + (2 if args.quick else _TIMES)):
            began = time.process_time()
            report = ingest(files, folder / "out.zarr", DesiReader(files), source="benchmark")
            rates.append(report.rows / (time.process_time() - began))
            began = time.process_time()
            _read(files)
            plain.append(report.rows / (time.process_time() - began))
            if not turn:
                rates, plain = [], []
        peaks = [_peak_mib(folder, some) for some in (1, count)]
    ratio = statistics.median(rates) / statistics.median(plain)
    rows: list[tuple[str, Sequence[float], str]] = [
        ("ingest", rates, "spectra/core-s"),
        ("reading the same arrays", plain, "spectra/core-s"),
        ("ingest / reading", [ratio], ""),
        ("peak memory, 1 file", [peaks[0]], "MiB"),
        (f"peak memory, {count} files", [peaks[1]], "MiB"),
        ("ratio", [peaks[1] / peaks[0]], ""),
    ]
    result = {"benchmark": "ingest", "files": count, "targets": targets, "spectra_per_core_s": statistics.median(rates)}
    finish(f"{targets} targets a coadd", rows, result | {"ratio": ratio, "peak_mib": peaks}, args.json)


def _coadd(folder: Path, number: int, targets: int) -> Path:
    """Write a coadd and the Redrock file that belongs to it."""
    rng = np.random.default_rng(number)
    ids = 39_627_000_000_000_000 + number * targets + np.arange(targets)
    fibres = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=ids),
            fits.Column("OBJTYPE", "3A", array=["TGT"] * targets),
            fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(targets)),
            fits.Column("EBV", "E", unit="mag", array=np.full(targets, 0.05)),
        ],
        name="FIBERMAP",
    )
    hdus = [fits.PrimaryHDU(), fibres]
    for arm, (first, pixels) in _ARMS.items():
        shape = (targets, pixels)
        hdus.append(fits.ImageHDU(first + 0.8 * np.arange(pixels), name=f"{arm}_WAVELENGTH"))
        hdus.append(fits.ImageHDU(rng.normal(5, 1, shape).astype("f4"), name=f"{arm}_FLUX"))
        hdus[-1].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
        hdus.append(fits.ImageHDU(np.ones(shape, "f4"), name=f"{arm}_IVAR"))
        hdus.append(fits.ImageHDU(np.zeros(shape, "i4"), name=f"{arm}_MASK"))
        offsets = np.arange(_DIAGONALS) - _DIAGONALS // 2
        kernel = np.exp(-0.5 * (offsets / 1.2) ** 2)
        matrix = np.broadcast_to((kernel / kernel.sum()).astype("f4")[:, None], (targets, _DIAGONALS, pixels))
        hdus.append(fits.ImageHDU(np.ascontiguousarray(matrix), name=f"{arm}_RESOLUTION"))
    path = folder / f"coadd-main-dark-{number}.fits"
    fits.HDUList(hdus).writeto(path)
    fit: dict[str, tuple[str, Any]] = {"TARGETID": ("K", ids)}
    fit |= {"Z": ("D", 0.1 + 0.4 * rng.random(targets)), "ZERR": ("D", np.full(targets, 1e-4))}
    fit |= {"ZWARN": ("K", np.zeros(targets)), "SPECTYPE": ("6A", ["GALAXY"] * targets)}
    fit |= {"DELTACHI2": ("D", np.full(targets, 100.0))}
    columns = [fits.Column(name, kind, array=values) for name, (kind, values) in fit.items()]
    table = fits.BinTableHDU.from_columns(columns, name="REDSHIFTS")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / f"redrock-main-dark-{number}.fits")
    return path


def _read(files: Sequence[Path]) -> None:
    for path in files:
        with fits.open(path) as hdus:
            for arm in _ARMS:
                for what in ("FLUX", "IVAR", "MASK"):
                    np.ascontiguousarray(hdus[f"{arm}_{what}"].data, dtype=np.float32)


class _Again:
    """Reads what a link points to; the identifiers tell links apart."""

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        coadd, number = path.resolve(), int(path.stem.partition("-")[2])
        for found in DesiReader([coadd])(coadd):
            if isinstance(found, Spectra):
                found.galaxy_id = found.galaxy_id + number * _APART
            yield found


def _peak_mib(folder: Path, files: int) -> float:
    command = [sys.executable, "-m", "benchmarks.ingest", "--memory", str(folder), "--files", str(files)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
