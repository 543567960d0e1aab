"""The stages in order: what each needs, what it makes, and when it may be used again.

prior -> simulate (-> augment) -> train -> frozen posterior -> map -> tables -> audit -> report
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from digs_survey.catalog import Catalog
from digs_survey.config import SurveyConfig
from digs_survey.errors import ConfigError
from digs_survey.estimator.artefact import check_grid, identify, load_artefact, update_card
from digs_survey.identity import RunIdentity
from digs_survey.logs.progress import ProgressReporter
from digs_survey.quality import without_posterior
from digs_survey.run.stage_inputs import StageInputs
from digs_survey.run.stages import STAGES, stage_named
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import location
from digs_survey.store.storage import write_bytes

__all__ = ["Survey"]


class Survey(StageInputs):
    """The stages of a run directory, in their order.

    What a stage works with is imported when there is something to do, so that a finished run answers at once.
    """

    @classmethod
    @contextmanager
    def open(
        cls,
        run_dir: Path | str,
        config: SurveyConfig | Path | str | None = None,
        overrides: Iterable[str] = (),
        *,
        quiet: bool = False,
        dask_address: str | None = None,
        ray_address: str | None = None,
        dashboards: bool = False,
        redo: str | None = None,
        catalog: Path | str | None = None,
        model: Path | str | None = None,
        simulates: bool = False,
        param_file: Path | str | None = None,
    ) -> Iterator[Survey]:
        """Open a run directory for work, and keep other processes out of it meanwhile.

        Parameters
        ----------
        run_dir : path-like
            Made if it is not there. May be a URL of an object store.
        config : SurveyConfig or path-like, optional
            A configuration, a TOML file or the name of a preset; by default the run directory's own.
        overrides : iterable of str
            ``section.key=value`` each; not with a ``SurveyConfig``.
        quiet : bool
            No progress on stderr.
        dask_address, ray_address : str, optional
            Running clusters; without them this machine's cores are used.
        dashboards : bool
            Clusters that start on this machine have dashboards.
        redo : str, optional
            A stage whose results, and all that follow from them, are deleted first.
        catalog : path-like, optional
            A catalog that the work is for: it is checked before anything is written.
        model : path-like, optional
            Folder of a frozen posterior that is to be applied to it, if not that of the run.
        simulates : bool
            The work needs stellar populations: whether they are there is checked before anything is written.
        param_file : path-like, optional
            A Prospector parameter file, whose code is executed: its model takes the place of the configuration's.

        Raises
        ------
        ConfigError, CatalogError, MissingDependencyError, RunDirectoryError
            As :func:`~digs_survey.run.opening.open_survey` says.

        Examples
        --------
        >>> with Survey.open("runs/survey", "quick") as survey:  # doctest: +SKIP
        ...     survey.run("catalog.zarr")
        """
        from digs_survey.run.opening import open_survey

        with open_survey(
            location(run_dir),
            config,
            overrides,
            ProgressReporter(quiet=quiet),
            dask_address=dask_address,
            ray_address=ray_address,
            dashboards=dashboards,
            redo=redo,
            catalog=None if catalog is None else location(catalog),
            model=None if model is None else location(model),
            simulates=simulates,
            param_file=None if param_file is None else location(param_file),
        ) as survey:
            yield survey

    # -- the whole way ---------------------------------------------------------------------------------

    def run(self, catalog: Path | str, retrain: bool = False) -> bool:
        """Walk all stages for a catalog; return whether there was anything to do.

        Without ``retrain``, a posterior that ships with the package takes the place of simulation and training
        where one was trained for just this model, prior, noise and grid, and training has not begun here.
        """
        if retrain and "pretrained" in self._recorded_key("train"):
            self.redo("train")
        shipped = None if retrain else self._shipped(catalog)
        did = [
            *(self._make_posterior(catalog) if shipped is None else [self.adopt(shipped)]),
            self.map(catalog),
            self.audit(),
            self.escalate(),
            self.report(),
        ]
        return any(did)

    def _make_posterior(self, catalog: Path | str) -> list[bool]:
        pairs = self.config.train.pairs == "disk"
        return [self.simulate(catalog), *([self.augment()] if pairs else []), self.train()]

    # -- stages ----------------------------------------------------------------------------------------

    def simulate(self, catalog: Path | str | None = None) -> bool:
        """Compute the noiseless simulations on the catalog's grid, or on the configured one."""
        grid, entry, noise = WavelengthGrid.from_config(self.config.grid), None, None
        if catalog is not None:
            opened = Catalog.open(catalog)
            entry = self._catalog_entry(opened, "simulated_for")
            before = self.manifest.data["inputs"].get("simulated_for", entry)
            changed = before["path"] == entry["path"] and before["fingerprint"] != entry["fingerprint"]
            if self.config.noise.needs_catalog and self._is_done("simulate") and changed:
                raise self._other_noise(opened)
            grid = self._grid_of(opened)
            noise = self._noise_of(opened) if self.config.noise.has_donors else None
        elif self.config.noise.needs_catalog:
            raise self._no_catalog()
        self.config.noise.check_elements(len(grid))
        settings, identity = self.config.simulate, RunIdentity.of_config(self.config, grid, noise)
        key = {"formats": self._formats("simulate"), **identity.key("seed", "model", "prior", "grid")}
        key |= self._settings("simulate") | identity.noise.redshift_key
        ledger = self._ledger("simulate")
        with self._stage("simulate", key, settings.simulations) as stage:
            recorded = self.manifest.data["inputs"].get("simulated_for")
            # The same catalog in another place is recorded too; another catalog is not what was simulated for.
            if entry and (stage or recorded is None or recorded["fingerprint"] == entry["fingerprint"]):
                self._record(simulated_for=entry)
            if stage:
                from digs_survey.simulate.simulation_set import engine_check, simulate

                simulate(
                    self.config,
                    grid,
                    self.run_dir / "simulations.zarr",
                    count=settings.simulations,
                    stream="simulate",
                    ledger=ledger,
                    noise=identity.noise,
                    address=self.dask_address,
                    advance=stage.advance,
                    say=self.progress.say,
                    param_file=self.param_file,
                )
                stage.record.rows, stage.record.core_s = ledger.totals()
                stage.record.extra |= engine_check(ledger)
        return bool(stage)

    def augment(self) -> bool:
        """Write noisy pairs to disk, for training with ``train.pairs = "disk"`` or for other programs."""
        if self.config.noise.by_row:
            raise ConfigError("augment: noise.kind = 'row' draws noise afresh in training, and has no pairs on disk")
        simulations = self._needs("simulate")
        draws = self.config.augment.draws_per_spectrum
        total = self.config.simulate.simulations * draws
        identity = self._training_identity(simulations)
        key = self._augment_key(identity)
        ledger = self._ledger("augment")
        with self._stage("augment", key, total) as stage:
            if stage:
                from digs_survey.simulate.augment import augment

                augment(
                    simulations,
                    self.run_dir / "pairs.zarr",
                    identity.noise,
                    draws_per_spectrum=draws,
                    seed=self.config.seed,
                    ledger=ledger,
                    rows_per_shard=self.config.simulate.rows_per_shard,
                    address=self.dask_address,
                    advance=stage.advance,
                )
                stage.record.rows, stage.record.core_s = ledger.totals()
        return bool(stage)

    def train(self) -> bool:
        """Train the estimator on the simulations, or on their pairs, and freeze the posterior."""
        simulations = self._needs("simulate")
        identity, data_hash = self._training_identity(simulations), self._simulations_hash()
        key = {
            "formats": self._formats("train"),
            **identity.key("seed", "model", "prior", "noise"),
            **self._settings("train"),
        }
        key["simulations"] = data_hash
        pairs, pairs_hash = self._pairs(identity)
        if pairs is not None:
            key["pairs"] = pairs_hash
        self._take_lower_rates(key["train"])
        with self._stage("train", key, self.config.train.epochs * self.config.train.ensemble) as stage:
            if stage:
                from digs_survey.estimator.training.train import train

                _, stage.record.core_s = train(
                    self.config,
                    simulations,
                    self.run_dir / "model",
                    noise=identity.noise,
                    data_hash=data_hash,
                    pairs=pairs,
                    pairs_hash=pairs_hash,
                    grid=self._grid(),
                    ray_address=self.ray_address,
                    advance=stage.advance,
                )
                stage.record.rows = self.config.simulate.simulations
                update_card(
                    self.run_dir / "model",
                    cost={
                        "simulate_core_s": self.manifest.stages["simulate"].get("core_s"),
                        **({} if pairs is None else {"augment_core_s": self.manifest.stages["augment"].get("core_s")}),
                        "train_core_s": stage.record.core_s,
                    },
                )
        return bool(stage)

    def adopt(self, folder: Path) -> bool:
        """Take a frozen posterior from a folder in the place of training one."""
        _, card = load_artefact(folder)
        key = {"formats": self._formats("train"), "pretrained": folder.name, "posterior": card["hash"]}
        with self._stage("train", key, 1) as stage:
            if stage:
                for name in ("model.safetensors", "history.csv", "card.json"):
                    write_bytes(self.run_dir / "model" / name, (folder / name).read_bytes())
                self.progress.say(
                    f"train: the posterior {folder.name!r} that ships with this version was trained for this model, "
                    "prior, noise and grid, and is used as it is; --retrain trains one here"
                )
                stage.advance(1)
        return bool(stage)

    def map(self, catalog: Path | str, model: Path | str | None = None) -> bool:
        """Apply a frozen posterior to every row of a catalog and write the tables.

        Parameters
        ----------
        catalog : path-like
        model : path-like, optional
            Folder of the posterior; by default that of the run itself.

        Raises
        ------
        ConfigError
            If the configuration sets another model, prior or noise than the posterior's.
        """
        folder = self._needs("train") if model is None else location(model)
        opened = Catalog.open(catalog)
        entry = self._catalog_entry(opened, "catalog")
        identity = identify(folder, seed=self.config.seed, catalog=entry["fingerprint"])
        check_grid(identity.grid, opened.grid, identity.noise)
        self.config = identity.adopt(self.config)
        opened = self._with_photometry(opened, identity)
        changed = self._catalog_changed(entry)
        fitted = self._fit_error_floor(identity, opened, again=changed)
        key = {"formats": self._formats("map"), **identity.key("seed", "catalog", "posterior"), **self._settings("map")}
        del key["map"]["workers"]
        if self.config.importance.rows == "all":
            key["importance"] = {"rows": "all", "draws": self.config.importance.draws}
        if changed:
            self._follow_catalog(key, fitted)
        ledger = self._ledger("map")
        with self._stage("map", key, opened.n_rows) as stage:
            # In a run directory that is moved its own posterior moves too.
            own = folder.absolute() == (self.run_dir / "model").absolute()
            path = "model" if own else str(folder.absolute())
            self._record(catalog=entry, posterior={"path": path, "hash": identity.posterior_hash}, **fitted)
            if stage:
                from digs_survey.infer.map_catalog import map_catalog

                levels = None
                if self.config.map.recalibrate:
                    levels, stage.record.extra["recalibration"] = self._recalibrate(identity, opened)
                map_catalog(
                    identity,
                    opened.path,
                    self.run_dir / "posterior.zarr",
                    self.config,
                    ledger=ledger,
                    address=self.ray_address,
                    advance=stage.advance,
                    levels=levels,
                )
                stage.record.rows, stage.record.core_s = ledger.totals()
                kept = sum(record["rows"] for record in ledger.records().values() if record.get("kept"))
                if kept:
                    self.progress.say(
                        f"map: {kept:,} of {opened.n_rows:,} rows keep their results; the others are new, have "
                        "changed, or share a shard with one that has"
                    )
        if stage:
            quality: Any = zarr.open_group(str(self.run_dir / "posterior.zarr"), mode="r")["quality"]
            self.progress.say(f"map: {without_posterior(quality[:], self.config.map.min_good_fraction)}")
        return bool(stage)

    def _with_photometry(self, catalog: Catalog, identity: RunIdentity) -> Catalog:
        """Return the catalog, opened for the posterior's filters, and say which of them it has no columns of."""
        if not identity.filters:
            return catalog
        opened = Catalog.open(catalog.path, identity.filters)
        if opened.missing_filters:
            self.progress.say(
                f"map: {catalog.path} has no photometry of {', '.join(opened.missing_filters)} (columns phot_<filter> "
                "and phot_<filter>_ivar); every row is inferred without"
            )
        return opened

    def audit(self) -> bool:
        """Check the posterior on independent simulations and against emcee, and count the cost."""
        identity = self.mapped_identity()
        key = {
            "formats": self._formats("audit"),
            **identity.key("seed", "catalog", "posterior"),
            **self._settings("audit"),
        }
        key["map"] = self._recorded_key("map")
        if self.config.importance.rows != "none":
            key |= self._settings("importance")
        settings, ledger = self.config.audit, Ledger(self.run_dir / "ledger" / "calibration")
        with self._stage("audit", key, settings.galaxies) as stage:
            if stage:
                from digs_survey.audit.run_audit import run_audit
                from digs_survey.simulate.simulation_set import simulate
                from digs_survey.sps.coverage import check_source

                if identity.model.param_file is None:
                    check_source(identity.model, identity.prior, identity.grid, identity.noise.photometry_bands)
                count = settings.calibration_simulations
                with self.progress.task("calibration", count, "independent simulations") as advance:
                    simulate(
                        self.config,
                        identity.grid,
                        self.run_dir / "calibration.zarr",
                        count=count,
                        stream="calibration",
                        ledger=ledger,
                        noise=identity.noise,
                        address=self.dask_address,
                        advance=advance,
                        say=self.progress.say,
                        param_file=self.param_file,
                    )
                done = {name: record for name, record in self.manifest.stages.items() if record["status"] == "done"}
                own = self.manifest.data["inputs"]["posterior"]["path"] == "model"
                # What was simulated and trained here is no cost of a posterior from elsewhere.
                counted = STAGES if own else STAGES[STAGES.index(stage_named("map")) :]
                summary = run_audit(
                    self.run_dir,
                    identity,
                    self.config,
                    self._catalog_path(),
                    stages=[{"stage": s.name, **done[s.name]} for s in counted if s.name in done],
                    param_file=self.param_file,
                    ray_address=self.ray_address,
                    advance=stage.advance,
                )
                if own:
                    found = {name: summary[name] for name in ("calibration", "importance") if name in summary}
                    update_card(self.run_dir / "model", **found)
                stage.record.rows = summary["galaxies"]
                stage.record.core_s = ledger.totals()[1] + summary["core_s"]
        return bool(stage)

    def escalate(self) -> bool:
        """Write the table with every row's agreement, and with better posteriors of rows where it is low."""
        identity = self.mapped_identity()
        self._needs("audit")
        mcmc = self.config.audit.mcmc.model_dump(mode="json", exclude={"timeout_s"})
        key = {"formats": self._formats("escalate"), **identity.key("seed"), **self._settings("escalate")}
        key |= self._after("audit") | {"mcmc": mcmc}
        ledger = self._ledger("escalate")
        with self._stage("escalate", key, self.manifest.data["inputs"]["catalog"]["rows"]) as stage:
            if stage:
                from digs_survey.refine.escalate import escalate, in_words

                began = time.process_time()
                told = escalate(
                    self.run_dir,
                    identity,
                    self.config,
                    self._catalog_path(),
                    ledger=ledger,
                    task=self.progress.task,
                    ray_address=self.ray_address,
                    advance=stage.advance,
                )
                stage.record.rows = ledger.totals()[0]
                stage.record.core_s = time.process_time() - began + sum(told["core_s"].values())
                self.progress.say(f"escalate: {in_words(told)}")
        return bool(stage)

    def report(self, *, figures: bool = False) -> bool:
        """Write report.html, and with ``figures`` each of its figures as files, though the page be there."""
        self._needs("audit")
        key = {**self._after("escalate" if self._is_done("escalate") else "audit")}
        with self._stage("report", key, 1) as stage:
            if stage or figures:
                from digs_survey.report.html import write_report

                write_report(self.run_dir, figures=figures)
            if stage:
                stage.advance(1)
                stage.record.rows = 1
        return bool(stage)
