"""What the stages of a run work with: grids, noise, pairs, and settings that the data decide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr

from digs_survey.catalog import Catalog
from digs_survey.config import MapConfig, SurveyConfig
from digs_survey.errors import CatalogError, ConfigError, RunDirectoryError
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import clean_spectra
from digs_survey.noise.survey_noise import survey_noise
from digs_survey.run.run_directory import RunDirectory
from digs_survey.run.stages import followers, stage_named
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import exists, location
from digs_survey.store.sharded import simulations_hash
from digs_survey.store.storage import remove

__all__ = ["StageInputs"]

_NOISE_TRIAL_ROWS, _MUCH_NEGATIVE = 2_000, 0.01
"""Simulations on which the noise is tried, and the share of negative elements from which on that is told."""


class StageInputs(RunDirectory):
    """A run directory whose inputs can be asked for; the stages themselves are a subclass's."""

    _read_noise: tuple[tuple[str, ...], NoiseModel] | None = None

    def _recalibrate(self, identity: RunIdentity, catalog: Catalog) -> tuple[dict[str, list[float]], dict[str, Any]]:
        from digs_survey.audit.calibration.recalibration import recalibrate
        from digs_survey.estimator.posterior import FrozenPosterior

        like = " with the errors, gaps and redshifts of the catalog's rows" if identity.noise.config.by_row else ""
        self.progress.say(f"map: percentiles are recalibrated on {self.config.map.recalibrate:,} simulations{like}")
        return recalibrate(FrozenPosterior.of(identity), self.config, catalog)

    def _catalog_changed(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether the catalog that was mapped has other contents now, in the same place."""
        mapped = self._recorded_key("map").get("catalog", entry["fingerprint"])
        recorded = self.manifest.data["inputs"].get("catalog", {})
        return mapped != entry["fingerprint"] and recorded.get("path") == entry["path"]

    def _follow_catalog(self, key: Mapping[str, Any], fitted: Mapping[str, Any]) -> None:
        """Begin the map of a catalog that has changed, if nothing else has; drop what was made from the earlier rows.

        Fits and simulations of the audit stay: those that are asked for again are used again.

        Raises
        ------
        RunDirectoryError
            If settings have changed too.
        """
        of_catalog = {"catalog": self._recorded_key("map")["catalog"]}
        if fitted:
            recorded = self._recorded_key("map").get("map", {}).get("error_floor")
            of_catalog["map"] = {**key["map"], "error_floor": recorded}
        self.manifest.reusable("map", {**key, **of_catalog})
        self.progress.say("map: the catalog has changed since it was mapped; its new and changed rows are mapped")
        if fitted or self.config.map.recalibrate:
            what = "the error floor is fitted to" if fitted else "percentiles are recalibrated for"
            self.progress.say(f"map: {what} the catalog, so that all of its rows may be mapped again")
        kept = ("calibration.zarr", "audit-jobs")
        # The map comes last: while it is recorded, a call that was interrupted is made again.
        for stage in reversed(followers("map")):
            self.manifest.forget(stage.name)
            for output in stage.outputs if stage.name != "map" else ():
                if output not in kept:
                    remove(self.run_dir / output)
            if stage.name == "escalate":
                self._ledger("escalate").clear()

    def _fit_error_floor(self, identity: RunIdentity, catalog: Catalog, *, again: bool = False) -> dict[str, Any]:
        """Put a number in the place of an error floor that is to be fitted; return what the manifest keeps of it.

        With ``again``, one that was fitted before is not taken.
        """
        unused = sorted(MapConfig.of_rows & self._settings("map")["map"].keys())
        if unused and not identity.noise.config.by_row:
            raise ConfigError(
                f"map.{unused[0]} needs a posterior that is shown the errors of each row (noise.kind = 'row'), "
                f"and that in {identity.posterior} is not; leave it out"
            )
        if not again:
            self.take_mapped_floor()
        if self.config.map.error_floor != "fit":
            return {}
        from digs_survey.estimator.posterior import FrozenPosterior
        from digs_survey.infer.error_floor import fit_error_floor

        found = fit_error_floor(FrozenPosterior.of(identity), catalog, self.config.map)
        self.progress.say(f"map: {found}")
        self._set_error_floor(found.floor)
        return {"error_floor": found.to_dict()}

    def _ledger(self, stage: str) -> Ledger:
        return Ledger(self.run_dir / stage_named(stage).ledgers[0])

    def _catalog_path(self) -> Path:
        """Return the catalog that was mapped."""
        return location(self.manifest.data["inputs"]["catalog"]["path"])

    def _training_identity(self, simulations: Path) -> RunIdentity:
        wave: Any = zarr.open_group(str(simulations), mode="r")["wavelength"]
        grid = WavelengthGrid.from_array(wave)
        return RunIdentity.of_config(self.config, grid, self._noise(simulations))

    def _shipped(self, catalog: Path | str) -> Path | None:
        from digs_survey.estimator.shipped import find_shipped, why_none

        if self.config.model.param_file is not None:
            return None
        # Who asks for pairs asks for a posterior that is trained on them.
        if self.config.train.pairs == "disk":
            return None
        trained = self._recorded_key("train")
        if "simulate" in self.manifest.stages or (trained and "pretrained" not in trained):
            return None
        grid = self._grid_of(Catalog.open(catalog))
        found = find_shipped(self.config, grid)
        if found is None and not self._is_done("train"):
            self.progress.say(
                "no posterior that ships with this version was trained for this survey: "
                f"{why_none(self.config, grid)}. {self.config.simulate.simulations:,} spectra are simulated, and "
                "one is trained here"
            )
        return found

    def _take_lower_rates(self, settings: Mapping[str, Any]) -> None:
        """Let a training that diverged go on with other rates, though it was begun with those in the manifest."""
        record = self.manifest.stages.get("train")
        if not record or record["status"] == "done":
            return
        from digs_survey.estimator.training.loop import RATES, has_diverged

        if any(map(has_diverged, (self.run_dir / "checkpoint").glob("train*.pt"))):
            record["key"]["train"] |= {name: settings[name] for name in RATES}

    def _grid(self) -> WavelengthGrid | None:
        """Return the grid that simulations must have: the catalog's, or without one the configured one."""
        catalog = self.manifest.data["inputs"].get("simulated_for")
        if catalog is None:
            return WavelengthGrid.from_config(self.config.grid)
        path = location(catalog["path"])
        return self._grid_of(Catalog.open(path)) if exists(path) else None

    def _grid_of(self, catalog: Catalog) -> WavelengthGrid:
        """Return the grid to simulate on for a catalog: its own, or with row noise the configured one.

        A catalog on the configured grid whose wavelengths are rounded, such as to float32, has the configured one.
        """
        configured = WavelengthGrid.from_config(self.config.grid)
        return configured if self.config.noise.by_row or catalog.grid == configured else catalog.grid

    def _simulations_hash(self) -> str:
        return simulations_hash(self.run_dir / "simulations.zarr", self._ledger("simulate").records())

    def _augment_key(self, identity: RunIdentity) -> dict[str, Any]:
        key = {"formats": self._formats("augment"), **identity.key("seed", "noise"), **self._settings("augment")}
        return key | {"simulations": self._simulations_hash()}

    def _pairs(self, identity: RunIdentity) -> tuple[Path, str] | tuple[None, None]:
        """Return the pairs that training reads, and what identifies them; none where noise is fresh."""
        if self.config.train.pairs == "fresh":
            if self._is_done("augment") or self.config.augment != SurveyConfig().augment:
                self.progress.say(
                    "train: noise is drawn afresh for each batch; [augment] and its pairs are not used, as they are "
                    "with train.pairs = 'disk'"
                )
            return None, None
        pairs = self._needs("augment")
        self.manifest.reusable("augment", self._augment_key(identity))
        return pairs, simulations_hash(pairs, self._ledger("augment").records())

    def _noise(self, simulations: Path) -> NoiseModel:
        group: Any = zarr.open_group(str(simulations), mode="r")
        flux = clean_spectra(group)
        self.config.noise.check_elements(flux.shape[1])
        noise = NoiseModel.from_config(self.config.noise, flux_transform=self.config.train.flux_transform)
        if self.config.noise.needs_catalog:
            entry = self.manifest.data["inputs"].get("simulated_for")
            if entry is None:
                raise self._no_catalog()
            catalog = Catalog.open(location(entry["path"]))
            if not self.manifest.knows(catalog, "simulated_for") and catalog.fingerprint() != entry["fingerprint"]:
                raise self._other_noise(catalog)
            noise = self._noise_of(catalog)
        if noise.keeps_negative:
            return noise
        negative = noise.negative_share(flux[:_NOISE_TRIAL_ROWS])
        if negative > _MUCH_NEGATIVE:
            self.progress.say(
                f"noise: it makes {negative:.0%} of the simulations' elements negative, where log10 flux tells the "
                "network nothing; set train.flux_transform = 'asinh', which knows negative flux, or bring the prior "
                "nearer to the survey's brightness"
            )
        return noise

    def _noise_of(self, catalog: Catalog) -> NoiseModel:
        """Return the configured noise with what it takes of a catalog, which is read once for all stages."""
        about = self.config.hash(), str(catalog.path), catalog.state()
        if self._read_noise is None or self._read_noise[0] != about:
            self._read_noise = about, survey_noise(self.config, catalog)
        return self._read_noise[1]

    def _other_noise(self, catalog: Catalog) -> RunDirectoryError:
        return RunDirectoryError(
            f"{catalog.path} has changed since {self.run_dir} was simulated for it, and the posterior is trained with "
            "the redshifts and errors of the catalog; put it back, apply the posterior as it is ('digs-survey map', "
            "then 'audit', 'escalate' and 'report'), or train again (--redo simulate)"
        )

    def _no_catalog(self) -> CatalogError:
        kind = self.config.noise.kind
        hint = " (or noise.sigma_flam)" if kind == "constant" else ""
        what = "noise.observing.donors = 'catalog'" if self.config.noise.has_donors else f"noise.kind = {kind!r}"
        return CatalogError(f"{what} needs a catalog{hint}: digs-survey simulate CATALOG.zarr ...")
