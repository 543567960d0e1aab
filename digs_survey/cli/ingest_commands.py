"""``digs-survey ingest KIND FILES... OUT.zarr``: surveys' files to catalogs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from digs_survey.cli.options import DaskOption, QuietOption
from digs_survey.logs.progress import ProgressReporter
from digs_survey.store.locations import check_reachable, exists, is_file, location
from digs_survey.store.targets import check_target

if TYPE_CHECKING:
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.reading import Reader

__all__ = ["ingest_app"]

_FEW_FILES = 16
"""Below which workers take longer to start than files to read."""

ingest_app = typer.Typer(help="Turn a survey's files into a catalog.", no_args_is_help=True)


def _files(what: str) -> Any:
    return typer.Argument(help=f"{what}, then the catalog to write.", show_default=False, parser=location)


StepOption = Annotated[
    float | None,
    typer.Option("--step-angstrom", help="Width of the elements; default: the pixels of the files, or 50 at rest."),
]
StartOption = Annotated[
    float | None,
    typer.Option("--start-angstrom", help="Least centre of an element; default: as far as any row reaches."),
]
StopOption = Annotated[float | None, typer.Option("--stop-angstrom", help="Greatest centre of an element.")]
FrameOption = Annotated[
    Literal["observed", "rest"], typer.Option("--frame", help="Frame of the elements; the preset survey takes both.")
]
DereddenOption = Annotated[
    bool, typer.Option("--deredden", help="Correct for Galactic extinction (Fitzpatrick 1999), by the files' E(B-V).")
]
EbvOption = Annotated[
    float | None, typer.Option("--ebv", help="E(B-V) of Schlegel et al. 1998 for all rows, in the place of the files'.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Processes that read files; default: this one for a few files, else one for each core."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the catalog if it is there.")]
RedshiftOption = Annotated[
    str,
    typer.Option(
        "--redshift", help="A number, or a table with galaxy_id or file, and redshift or z.", show_default=False
    ),
]


def _split(files: list[Path], overwrite: bool) -> tuple[list[Path], Path]:
    """Return the files and the catalog to write, which comes last."""
    if len(files) < 2:
        raise typer.BadParameter("expected at least one file to read and then OUT.zarr")
    *inputs, out = files
    check_reachable(out)
    if out.suffix in {".fits", ".gz", ".csv", ".ecsv", ".parquet", ".h5", ".hdf5", ".toml"} or is_file(out):
        raise typer.BadParameter(f"the last argument is the catalog to write, found the file {out}; expected OUT.zarr")
    if exists(out) and not overwrite:
        raise typer.BadParameter(f"{out} exists; choose another name or give --overwrite")
    if exists(out) and not any(exists(out / name) for name in ("zarr.json", ".zgroup")):
        raise typer.BadParameter(f"{out} is a folder, and no catalog that could be replaced; choose another name")
    check_target("catalog", out)
    return inputs, out


def _ingest(
    inputs: list[Path],
    out: Path,
    reader: Reader,
    grid: GridChoice,
    *,
    source: str,
    attrs: dict[str, Any] | None = None,
    strict: bool,
    workers: int | None,
    dask: str | None,
    quiet: bool,
) -> None:
    from digs_survey.catalog.readers.ingesting import ingest

    if workers is None and dask is None and len(inputs) < _FEW_FILES:
        workers = 0
    cluster: dict[str, Any] = {"workers": workers, "address": dask}
    with ProgressReporter(quiet=quiet).task("ingest", len(inputs), "files") as advance:
        report = ingest(
            inputs, out, reader, grid, source=source, strict=strict, attrs=attrs, advance=advance, **cluster
        )
    for line in report.lines():
        print(line, file=sys.stderr)
    print(f"{report.rows} rows", file=sys.stderr)
    print(out)


@ingest_app.command("desi")
def ingest_desi_command(
    files: Annotated[list[Path], _files("coadd-*.fits or spectra-*.fits (and redrock-*.fits, unless beside them)")],
    redshifts: Annotated[
        Path | None,
        typer.Option("--redshifts", help="Redshift catalog with TARGETID and Z, for all files.", parser=location),
    ] = None,
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """DESI coadds or exposures: arms joined, redshifts, photometry and line spread as columns; no sky and stars."""
    from digs_survey.catalog.readers.desi import DesiReader
    from digs_survey.catalog.readers.grid_choice import GridChoice

    inputs, out = _split(files, overwrite)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    attrs = {"bad_pixels": "mask not 0, or ivar = 0", "aperture": "flux through the fibre"}
    reader = DesiReader(inputs, redshifts)
    _ingest(
        inputs,
        out,
        reader,
        grid,
        source="DESI spectra",
        attrs=attrs,
        strict=strict,
        workers=workers,
        dask=dask,
        quiet=quiet,
    )


@ingest_app.command("sdss")
def ingest_sdss_command(
    files: Annotated[list[Path], _files("spec-PLATE-MJD-FIBER.fits or spPlate-*.fits ...")],
    z_noqso: Annotated[
        bool, typer.Option("--z-noqso", help="Redshift and class of the fit without quasars, where there is one.")
    ] = False,
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """SDSS, BOSS, eBOSS and SDSS-V spectra, full or lite, and plates; stars left out."""
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.sdss import SdssReader

    inputs, out = _split(files, overwrite)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    attrs = {"bad_pixels": "ivar = 0, or bit BRIGHTSKY of and_mask", "aperture": "flux through the fibre"}
    reader = SdssReader(inputs, z_noqso=z_noqso)
    _ingest(
        inputs,
        out,
        reader,
        grid,
        source="SDSS spectra",
        attrs=attrs,
        strict=strict,
        workers=workers,
        dask=dask,
        quiet=quiet,
    )


@ingest_app.command("jwst")
def ingest_jwst_command(
    files: Annotated[list[Path], _files("*.spec.fits (msaexp) or *_x1d.fits (pipeline) ...")],
    redshift: RedshiftOption,
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """JWST NIRSpec spectra of msaexp or of the pipeline: per frequency to per wavelength, DQ."""
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.jwst import JwstReader
    from digs_survey.catalog.readers.redshifts import Redshifts

    inputs, out = _split(files, overwrite)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    attrs = {"bad_pixels": "error not positive, not finite, or bit DO_NOT_USE of DQ"}
    reader = JwstReader(Redshifts(redshift))
    _ingest(
        inputs,
        out,
        reader,
        grid,
        source="JWST NIRSpec spectra",
        attrs=attrs,
        strict=strict,
        workers=workers,
        dask=dask,
        quiet=quiet,
    )


@ingest_app.command("table")
def ingest_table_command(
    files: Annotated[list[Path], _files("FITS, ECSV, CSV, HDF5 or Parquet files")],
    column_map: Annotated[
        Path, typer.Option("--map", help="TOML file that says which column is what.", parser=location)
    ],
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Any other spectra, by a column map: pixels in rows, arrays in rows, or FITS images with a WCS."""
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.table_map import load_map
    from digs_survey.catalog.readers.table_reader import TableReader

    inputs, out = _split(files, overwrite)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    reader = TableReader(load_map(column_map), column_map.parent)
    _ingest(
        inputs, out, reader, grid, source="tables of spectra", strict=strict, workers=workers, dask=dask, quiet=quiet
    )


@ingest_app.command("specutils")
def ingest_specutils_command(
    files: Annotated[list[Path], _files("Files that the package specutils loads")],
    redshift: RedshiftOption,
    medium: Annotated[
        Literal["vacuum", "air"], typer.Option("--medium", help="Of the files' wavelengths.", show_default=False)
    ],
    file_format: Annotated[
        str | None, typer.Option("--format", help="Name of the loader; default: the one that knows the file.")
    ] = None,
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Spectra that the package specutils loads, if it is installed."""
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.redshifts import Redshifts
    from digs_survey.catalog.readers.specutils_reader import SpecutilsReader

    inputs, out = _split(files, overwrite)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    reader = SpecutilsReader(Redshifts(redshift), medium, file_format)
    _ingest(
        inputs, out, reader, grid, source="spectra by specutils", strict=strict, workers=workers, dask=dask, quiet=quiet
    )
