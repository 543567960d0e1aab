"""A run opened for reading: its tables, its posteriors, what its audit found, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.config import SurveyConfig, load_config
from digs_survey.errors import CatalogError, ConfigError, DigsError, RunDirectoryError
from digs_survey.estimator.artefact import recorded_config
from digs_survey.run.manifest import RunManifest
from digs_survey.run.stages import stage_named
from digs_survey.store.locations import exists, location
from digs_survey.store.storage import read_json
from digs_survey.store.targets import check_target

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

    from digs_survey.identity import RunIdentity
    from digs_survey.refine.population import Population
    from digs_survey.refine.reprior import Counts
    from digs_survey.run.replay import Replay
    from digs_survey.run.status import StageStatus

__all__ = ["GalaxyDraws", "Run", "open_run"]


@dataclass(frozen=True)
class GalaxyDraws:
    """Draws of one galaxy's neural posterior.

    Attributes
    ----------
    galaxy_id : int or str
    row : int
        In the catalog.
    parameters : tuple of str
    units : tuple of str
        Of the parameters, as :mod:`astropy.units` reads them.
    theta : ndarray of float64, shape (draw, parameter)
        NaN where the row has no posterior.
    quality : int
        Bits of :class:`~digs_survey.quality.QualityFlag`.
    """

    galaxy_id: Any
    row: int
    parameters: tuple[str, ...]
    units: tuple[str, ...]
    theta: NDArray[np.float64]
    quality: int


class Run:
    """A run directory, opened for reading; see :func:`open_run`.

    Attributes
    ----------
    run_dir : Path
    manifest : RunManifest
    """

    def __init__(self, run_dir: Path, manifest: RunManifest) -> None:
        self.run_dir = run_dir
        self.manifest = manifest

    @cached_property
    def config(self) -> SurveyConfig:
        """The run's configuration: of the table, where there is one."""
        config = load_config(self._there("config.toml", "simulate"))
        return recorded_config(self.run_dir, self.manifest.data, config)

    @cached_property
    def identity(self) -> RunIdentity:
        """The posterior and the catalog of the tables, with the posterior's model, prior, noise and grid."""
        return self.manifest.identity()

    @property
    def table_path(self) -> Path:
        """The table of results: ``results.parquet`` where the run was escalated, else ``percentiles.parquet``.

        Raises
        ------
        RunDirectoryError
            If nothing is mapped, or not to its end.
        """
        stages = self.manifest.stages
        final = stages.get("escalate", {}).get("status") == "done"
        path = self._there("results.parquet" if final else "percentiles.parquet", "map")
        made = stages.get("map", {})
        for stage in ("map", *(["escalate"] if final else [])):
            if stage in stages:
                self.manifest.check_formats(stage)
        if made.get("status", "done") != "done":
            raise RunDirectoryError(
                f"{self.run_dir}: the map stage is {made['status']}, not done; run 'digs-survey map' first"
            )
        return path

    @property
    def rows(self) -> int | None:
        """Rows of the table, as the manifest counts them; None where nothing is mapped."""
        return self.manifest.stages.get("map", {}).get("rows")

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table of results, one row for each row of the catalog.

        Parameters
        ----------
        columns : sequence of str, optional
            By default all. ``docs/columns.md`` has their names; fields carry units and descriptions as metadata.

        Raises
        ------
        DigsError
            If a column has another name now.

        Examples
        --------
        >>> open_run("runs/survey").table(["galaxy_id", "logmass_p50"])  # doctest: +SKIP
        """
        from digs_survey.report.load import open_table
        from digs_survey.results.columns import RENAMED

        for name in columns or ():
            if name in RENAMED:
                raise DigsError(f"column {name!r}: this column is now called {RENAMED[name]!r}")
        return open_table(self.table_path).to_table(columns=None if columns is None else list(columns))

    def dataset(self) -> xr.Dataset:
        """Return ``posterior.zarr``, whose arrays are read when they are used."""
        import xarray as xr

        path = self._there("posterior.zarr", "map")
        return xr.open_zarr(str(path), consolidated=False, chunks=None)

    def posterior(self, galaxy_id: int | str, draws: int | None = None) -> GalaxyDraws:
        """Draw from the neural posterior of one galaxy, as the map did.

        Parameters
        ----------
        galaxy_id : int or str
            As the catalog has it.
        draws : int, optional
            By default those of ``map.draws``, which the table's percentiles are of.

        Raises
        ------
        CatalogError
            If no row has the identifier, or several have it.
        RunDirectoryError
            If the catalog or the posterior is not there any more, or is another one now.
        """
        from digs_survey.catalog import Catalog
        from digs_survey.estimator.posterior import FrozenPosterior
        from digs_survey.noise.observed_rows import prepare_for
        from digs_survey.quality import NO_POSTERIOR

        identity = self.identity
        catalog = Catalog.open(location(self.manifest.data["inputs"]["catalog"]["path"]), identity.filters)
        found = catalog.find(str(galaxy_id)).tolist()
        if len(found) != 1:
            where = f"expected one row of {catalog.path} to have it, found {len(found)}"
            raise CatalogError(f"galaxy_id {galaxy_id}: {where}")
        block = catalog.rows(found[0], found[0] + 1)
        row = prepare_for(identity.noise, identity.grid, identity.zred, self.config.map, block, catalog.grid)
        theta = FrozenPosterior.of(identity).sample(row.flux, draws or self.config.map.draws)[0]
        quality: Any = zarr.open_group(str(self._there("posterior.zarr", "map")), mode="r")["quality"]
        bits = int(quality[found[0]])
        if bits & NO_POSTERIOR:
            theta[:] = np.nan
        return GalaxyDraws(
            galaxy_id=block.galaxy_id[0],
            row=found[0],
            parameters=identity.prior.names,
            units=tuple(parameter.unit for parameter in identity.prior.parameters),
            theta=theta,
            quality=bits,
        )

    @cached_property
    def audit(self) -> dict[str, Any]:
        """What the audit found: calibration, agreement with exact posteriors, cost; the contents of ``audit.json``."""
        return read_json(self._there(stage_named("audit").outputs[0], "audit"))

    def status(self) -> list[StageStatus]:
        """Return how far each stage is, from the run's files alone."""
        from digs_survey.run.status import run_status

        return run_status(self.run_dir)

    def replay(self, galaxy_id: int | str) -> list[Replay]:
        """Compute the row of a galaxy once more, and compare it bit for bit; several where rows share an identifier."""
        from digs_survey.run.replay import replay

        return replay(self.run_dir, self.config, str(galaxy_id))

    def report(self, out: Path | str | None = None, *, figures: bool = False) -> Path:
        """Return the page of an audited run: its own, or one that is written elsewhere.

        Parameters
        ----------
        out : path-like, optional
            Folder for ``report.html``. Without it the run's own page is returned, which must be there and current.
        figures : bool
            Write each figure to ``out/figures`` too.

        Raises
        ------
        RunDirectoryError
            If nothing is audited, or without ``out`` the run has no page that is current.
        """
        self._there(stage_named("audit").outputs[0], "audit")
        if out is not None:
            from digs_survey.report.html import write_report

            folder = location(out)
            check_target("report", folder, folder=True)
            return write_report(self.run_dir, figures=figures, out=folder)
        done = self.manifest.stages.get("report", {}).get("status") == "done"
        if figures or not done:
            wanted = "its figures" if done else "a finished report"
            raise RunDirectoryError(
                f"{self.run_dir}: expected {wanted} to be there; write it elsewhere with --out FOLDER"
            )
        return self._there("report.html", "report")

    def export(self, out: Path | str, table_format: str | None = None, *, overwrite: bool = False) -> Path:
        """Write the table of results as FITS, ECSV, VOTable, CSV or Parquet.

        Parameters
        ----------
        out : path-like
            The file to write.
        table_format : {"fits", "ecsv", "votable", "csv", "parquet"}, optional
            By default that of the file's ending.
        overwrite : bool
            Whether a file that is there may be replaced.
        """
        from digs_survey.results.export import chosen_format, export_table

        target = location(out)
        return export_table(
            self.table_path, target, chosen_format(target, table_format), overwrite=overwrite, rows=self.rows
        )

    def reprior(
        self,
        prior: Path | str,
        out: Path | str,
        table_format: str | None = None,
        *,
        min_ess: float = 50.0,
        overwrite: bool = False,
    ) -> Counts:
        """Write the table of results under another prior, from the draws that the map kept (``map.samples``).

        Parameters
        ----------
        prior : path-like
            TOML file with the new priors of some parameters, in ``[model.parameters]``.
        out : path-like
            The file to write, not in the run directory.
        table_format : {"fits", "ecsv", "votable", "csv", "parquet"}, optional
            By default that of the file's ending.
        min_ess : float
            Effective sample size below which a row has NaN percentiles.
        overwrite : bool
            Whether a file that is there may be replaced.

        Returns
        -------
        Counts
            How many rows have percentiles.

        Raises
        ------
        ConfigError
            If the file cannot be used, asks for more than the draws can tell, or leaves all rows below ``min_ess``.
        RunDirectoryError
            If the map kept no draws.
        """
        from digs_survey.infer.map_catalog import derived_quantities
        from digs_survey.refine.new_prior import NewPrior
        from digs_survey.refine.reprior import Reweighing, kept_draws, write_reprior
        from digs_survey.results.export import check_free, chosen_format

        target, table = location(out), self.table_path
        chosen = chosen_format(target, table_format)
        check_free(target, overwrite)
        self._check_outside(target)
        samples = kept_draws(self._there("posterior.zarr", "map"), self.run_dir)
        new = NewPrior.load(location(prior), self.identity.prior)
        settings = self.config.map
        derive = derived_quantities(self.identity, settings.derived)
        weighing = Reweighing(new, settings.quantiles, min_ess, derive, self.identity.noise.config.by_row)
        return write_reprior(table, samples, weighing, target, chosen, overwrite=overwrite, rows=self.rows)

    def population(self, parameter: str, out: Path | str, *, bins: str = "10", overwrite: bool = False) -> Population:
        """Find the survey's distribution of a parameter from the draws that the map kept; write its table and figure.

        Parameters
        ----------
        parameter : str
        out : path-like
            CSV, JSON or Parquet by its ending, not in the run directory; the figure beside it is a PNG.
        bins : str
            Their number, or their edges with commas between.
        overwrite : bool
            Whether files that are there may be replaced.

        Raises
        ------
        ConfigError
            If the run has no draws of the parameter, or these bins cannot be.
        RunDirectoryError
            If the map kept no draws.
        """
        from digs_survey.refine.population import bin_edges, infer_population, write_population
        from digs_survey.refine.reprior import kept_draws
        from digs_survey.report.figures.population_plots import population_png
        from digs_survey.results.export import check_free
        from digs_survey.store.storage import write_bytes

        target, endings = location(out), (".csv", ".json", ".parquet")
        if target.suffix not in endings:
            raise DigsError(f"{target.name}: expected an ending of {', '.join(endings)}")
        figure = target.with_suffix(".png")
        for place in (target, figure):
            self._check_outside(place)
            check_free(place, overwrite)
        quality = self.table(["quality"])["quality"].to_numpy()
        samples = kept_draws(self._there("posterior.zarr", "map"), self.run_dir)
        prior = self.identity.prior
        if parameter not in prior.names:
            raise ConfigError(f"{parameter}: the run has no draws of it; expected one of {', '.join(prior.names)}")
        known = prior.parameters[column := prior.index(parameter)]
        edges = bin_edges(bins, known.distribution)
        found = infer_population(samples, column, quality, known.distribution, edges, seed=self.identity.seed)
        inputs = self.manifest.data["inputs"]
        about = {"model_hash": self.identity.posterior_hash, "catalog_fingerprint": inputs["catalog"]["fingerprint"]}
        write_population(found, known, about, target)
        write_bytes(figure, population_png(parameter, found.columns()))
        return found

    def _check_outside(self, target: Path) -> None:
        if str(target.absolute()).startswith(f"{self.run_dir.absolute()}/"):
            raise DigsError(f"{target}: expected a place outside the run, which is not changed; name another file")

    def _there(self, name: str, stage: str) -> Path:
        path = self.run_dir / name
        if not exists(path):
            raise RunDirectoryError(f"{self.run_dir} has no {name}; run 'digs-survey {stage}' first")
        return path


def open_run(run_dir: Path | str) -> Run:
    """Open a run directory for reading; nothing is written to it.

    Parameters
    ----------
    run_dir : path-like
        May be a URL of an object store.

    Raises
    ------
    RunDirectoryError
        If it is none, or one of another format.

    Examples
    --------
    >>> run = open_run("runs/survey")  # doctest: +SKIP
    >>> run.table(["galaxy_id", "logmass_p50", "agreement"]).to_pandas()  # doctest: +SKIP
    >>> run.posterior("J0001").theta.shape  # doctest: +SKIP
    (1000, 5)
    """
    path = location(run_dir)
    return Run(path, RunManifest.of_run(path))
