"""A run directory opened for work: checked first, locked, logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.catalog.prepare import require_rest_frame
from digs_survey.cluster.dashboards import check_dashboards
from digs_survey.config import SurveyConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.artefact import check_grid, identify
from digs_survey.identity import RunIdentity
from digs_survey.logs.log import run_log
from digs_survey.logs.progress import ProgressReporter
from digs_survey.noise.model import NoiseModel
from digs_survey.run.lock import run_lock
from digs_survey.run.manifest import RunManifest
from digs_survey.run.survey import Survey
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.param_file import ParamFile, needs_file
from digs_survey.store.locations import check_reachable, is_file
from digs_survey.store.targets import check_target, writing

__all__ = ["open_survey"]

_CHECKED_ROWS = 200_000
"""Rows up to which a catalog is read before anything else is done, to tell what is wrong with them."""


@contextmanager
def open_survey(
    run_dir: Path,
    config_source: str | Path | SurveyConfig | None,
    overrides: Iterable[str],
    progress: ProgressReporter,
    *,
    dask_address: str | None = None,
    ray_address: str | None = None,
    dashboards: bool = False,
    redo: str | None = None,
    catalog: Path | None = None,
    model: Path | None = None,
    simulates: bool = False,
    param_file: Path | None = None,
) -> Iterator[Survey]:
    """Open a run directory for work: its lock, configuration and manifest.

    Without a configuration the one of an earlier call in the same directory is used, else the defaults.
    Configuration and catalog are checked before anything is written; so is the source of populations if
    the work ``simulates`` and the simulations are not there.

    A ``param_file`` is executed, and copied to the directory; without it no code of a file is.

    Raises
    ------
    ConfigError
        If the configuration cannot be used, or the source does not cover its prior or the grid.
    MissingDependencyError
        If the source does not work, ``dashboards`` are to start and are not installed, or the directory cannot be
        written.
    CatalogError
        If the catalog breaks the schema; rows that will carry a quality bit are only told (of a catalog that is
        not too large to be read for that).
    RunDirectoryError
        If another process works in the directory.
    """
    check_reachable(run_dir)
    with run_log(run_dir, progress.show) as log:
        stored = run_dir / "config.toml"
        file = None if param_file is None else ParamFile.read(param_file)
        if isinstance(config_source, SurveyConfig):
            if file is not None:
                raise ConfigError("--param-file: expected the name of a configuration beside it, found a SurveyConfig")
            config = config_source
        else:
            source = config_source or (stored if is_file(stored) else None)
            config = load_config(source, overrides, None if file is None else file.describe())
        grid = WavelengthGrid.from_config(config.grid)
        manifest = RunManifest(run_dir)
        if catalog is not None:
            opened = Catalog.open(catalog)
            # Of a posterior from elsewhere its own noise counts, of which the configuration may say nothing.
            asked = RunIdentity.of_config(config, grid) if model is None else identify(model, seed=config.seed)
            # Row noise brings every row to the posterior's grid.
            if asked.noise.config.by_row:
                grid = asked.grid
                check_grid(grid, opened.grid, asked.noise)
                opened = Catalog.open(catalog, asked.filters)
            else:
                grid = opened.grid
                require_rest_frame(grid.frame)
            if opened.n_rows > _CHECKED_ROWS:
                progress.say(
                    f"catalog: {opened.n_rows:,} rows, which are checked as they are mapped; "
                    "'digs-survey validate' checks them before"
                )
            elif not manifest.knows(opened):
                report = validate_catalog(catalog)
                report.raise_for_errors()
                for line in report.row_lines():
                    progress.say(f"catalog: {line}")
        check_target("run directory", run_dir, folder=True)
        simulated = manifest.stages.get("simulate", {}).get("status") == "done"
        if simulates and (redo == "simulate" or not simulated):
            from digs_survey.sps.coverage import check_source

            if config.model.param_file is None:
                bands = NoiseModel.from_config(config.noise).photometry_bands
                check_source(config.model, config.make_prior(), grid, bands)
            elif file is None:
                raise ConfigError(needs_file(config.model.param_file))
        if dashboards and None in (dask_address, ray_address):
            check_dashboards()
        with writing("run directory", run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        log.begin(config_hash=config.hash())
        with run_lock(run_dir, progress.say):
            clusters = dask_address, ray_address, dashboards
            survey = Survey(run_dir, config, RunManifest(run_dir), progress, *clusters, file)
            if redo is not None:
                survey.redo(redo)
            yield survey
