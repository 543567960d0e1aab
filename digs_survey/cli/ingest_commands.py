"""``digs-survey ingest KIND FILES... OUT.zarr``: surveys' files to catalogs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from digs_survey.cli.options import DaskOption, QuietOption
from digs_survey.logs.progress import ProgressReporter
from digs_survey.store.locations import check_reachable, exists, is_file, location
from digs_survey.store.targets import check_target

if TYPE_CHECKING:
    from digs_survey.catalog.readers.reading import Reader

__all__ = ["ingest_app"]

_FEW_FILES = 16
"""Below which workers take longer to start than files to read."""

ingest_app = typer.Typer(help="Turn a survey's files into a catalog.", no_args_is_help=True)


@dataclass(frozen=True)
class _Source:
    """What a command reads.

    Attributes
    ----------
    reader : Reader
    name : str
        What the files are, for the catalog and for messages.
    attrs : dict
        More attributes of the catalog.
    """

    reader: Reader
    name: str
    attrs: dict[str, Any] = field(default_factory=dict)


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
AppendOption = Annotated[
    bool,
    typer.Option("--append", help="Add to the catalog, on its own elements; a file that it has already is read again."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the catalog if it is there.")]
RedshiftOption = Annotated[
    str,
    typer.Option(
        "--redshift", help="A number, or a table with galaxy_id or file, and redshift or z.", show_default=False
    ),
]


def _split(files: list[Path], overwrite: bool, append: bool) -> tuple[list[Path], Path]:
    """Return the files and the catalog to write, which comes last."""
    if len(files) < 2:
        raise typer.BadParameter("expected at least one file to read and then OUT.zarr")
    *inputs, out = files
    check_reachable(out)
    if out.suffix in {".fits", ".gz", ".csv", ".ecsv", ".parquet", ".h5", ".hdf5", ".toml"} or is_file(out):
        raise typer.BadParameter(f"the last argument is the catalog to write, found the file {out}; expected OUT.zarr")
    if overwrite and append:
        raise typer.BadParameter("expected one of --append and --overwrite")
    if exists(out) and not (overwrite or append):
        raise typer.BadParameter(f"{out} exists; choose another name, or give --append or --overwrite")
    if exists(out) and not any(exists(out / name) for name in ("zarr.json", ".zgroup")):
        raise typer.BadParameter(f"{out} is a folder, and no catalog that could be replaced; choose another name")
    check_target("catalog", out)
    return inputs, out


def _ingest(
    source: Callable[[list[Path]], _Source],
    files: list[Path],
    *,
    step_angstrom: StepOption = None,
    start_angstrom: StartOption = None,
    stop_angstrom: StopOption = None,
    frame: FrameOption = "observed",
    deredden: DereddenOption = False,
    ebv: EbvOption = None,
    strict: StrictOption = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    append: AppendOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Do what all commands do; its options are theirs."""
    from digs_survey.catalog.readers.grid_choice import GridChoice
    from digs_survey.catalog.readers.ingesting import ingest

    inputs, out = _split(files, overwrite, append)
    grid = GridChoice(step_angstrom, start_angstrom, stop_angstrom, frame, deredden, ebv)
    given = source(inputs)
    if workers is None and dask is None and len(inputs) < _FEW_FILES:
        workers = 0
    with ProgressReporter(quiet=quiet).task("ingest", len(inputs), "files") as advance:
        report = ingest(
            inputs,
            out,
            given.reader,
            grid,
            source=given.name,
            strict=strict,
            append=append,
            attrs=given.attrs,
            workers=workers,
            address=dask,
            advance=advance,
        )
    for line in report.lines():
        print(line, file=sys.stderr)
    told = f": {report.added} added, {report.replaced} read again" if append else ""
    if report.gone:
        print(f"{report.gone} rows were kept that their files, read again, have no more", file=sys.stderr)
    print(f"{report.rows} rows{told}", file=sys.stderr)
    print(out)


def _command(name: str, files: str) -> Callable[[Callable[..., _Source]], Callable[..., None]]:
    """Make a command of a function of the files, and of options of its own, that says what is read.

    The command has the options of :func:`_ingest` besides.
    """

    def register(kind: Callable[..., _Source]) -> Callable[..., None]:
        argument = typer.Argument(help=f"{files}, then the catalog to write.", show_default=False, parser=location)
        own = list(signature(kind, eval_str=True).parameters.values())[1:]
        common = list(signature(_ingest, eval_str=True).parameters.values())[2:]

        def command(files: list[Path], **options: Any) -> None:
            given = {parameter.name: options.pop(parameter.name) for parameter in own}
            _ingest(lambda inputs: kind(inputs, **given), files, **options)

        first = Parameter("files", Parameter.KEYWORD_ONLY, annotation=Annotated[list[Path], argument])
        options = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*own, *common)]
        command.__signature__ = Signature([first, *options])  # type: ignore[attr-defined]
        command.__doc__ = kind.__doc__
        return ingest_app.command(name)(command)

    return register


@_command("desi", "coadd-*.fits or spectra-*.fits (and redrock-*.fits, unless beside them)")
def _desi(
    files: list[Path],
    redshifts: Annotated[
        Path | None,
        typer.Option("--redshifts", help="Redshift catalog with TARGETID and Z, for all files.", parser=location),
    ] = None,
) -> _Source:
    """DESI coadds or exposures: arms joined, redshifts, photometry and line spread as columns; no sky and stars."""
    from digs_survey.catalog.readers.desi import DesiReader

    attrs = {"bad_pixels": "mask not 0, or ivar = 0", "aperture": "flux through the fibre"}
    return _Source(DesiReader(files, redshifts), "DESI spectra", attrs)


@_command("sdss", "spec-PLATE-MJD-FIBER.fits or spPlate-*.fits ...")
def _sdss(
    files: list[Path],
    z_noqso: Annotated[
        bool, typer.Option("--z-noqso", help="Redshift and class of the fit without quasars, where there is one.")
    ] = False,
) -> _Source:
    """SDSS, BOSS, eBOSS and SDSS-V spectra, full or lite, and plates; stars left out."""
    from digs_survey.catalog.readers.sdss import SdssReader

    attrs = {"bad_pixels": "ivar = 0, or bit BRIGHTSKY of and_mask", "aperture": "flux through the fibre"}
    return _Source(SdssReader(files, z_noqso=z_noqso), "SDSS spectra", attrs)


@_command("jwst", "*.spec.fits (msaexp) or *_x1d.fits (pipeline) ...")
def _jwst(files: list[Path], redshift: RedshiftOption) -> _Source:
    """JWST NIRSpec spectra of msaexp or of the pipeline: per frequency to per wavelength, DQ."""
    from digs_survey.catalog.readers.jwst import JwstReader
    from digs_survey.catalog.readers.redshifts import Redshifts

    attrs = {"bad_pixels": "error not positive, not finite, or bit DO_NOT_USE of DQ"}
    return _Source(JwstReader(Redshifts(redshift)), "JWST NIRSpec spectra", attrs)


@_command("table", "FITS, ECSV, CSV, HDF5 or Parquet files")
def _table(
    files: list[Path],
    column_map: Annotated[
        Path, typer.Option("--map", help="TOML file that says which column is what.", parser=location)
    ],
) -> _Source:
    """Any other spectra, by a column map: pixels in rows, arrays in rows, or FITS images with a WCS."""
    from digs_survey.catalog.readers.table_map import load_map
    from digs_survey.catalog.readers.table_reader import TableReader

    return _Source(TableReader(load_map(column_map), column_map.parent), "tables of spectra")


@_command("specutils", "Files that the package specutils loads")
def _specutils(
    files: list[Path],
    redshift: RedshiftOption,
    medium: Annotated[
        Literal["vacuum", "air"], typer.Option("--medium", help="Of the files' wavelengths.", show_default=False)
    ],
    file_format: Annotated[
        str | None, typer.Option("--format", help="Name of the loader; default: the one that knows the file.")
    ] = None,
) -> _Source:
    """Spectra that the package specutils loads, if it is installed."""
    from digs_survey.catalog.readers.redshifts import Redshifts
    from digs_survey.catalog.readers.specutils_reader import SpecutilsReader

    return _Source(SpecutilsReader(Redshifts(redshift), medium, file_format), "spectra by specutils")
