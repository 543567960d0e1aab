"""Prospector parameter files: code that the user brings and asks to run, with Prospector's own conventions.

A file has ``build_model(**run_params)``, ``build_sps(**run_params)`` and, if it likes, a dictionary ``run_params``. Its
model is a ``SedModel`` or a ``SpecModel``. What else it has (``build_obs``, ``build_noise``) is not called.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from digs_survey.config import ModelConfig
from digs_survey.config.file_model import FileModel, ParamFileConfig
from digs_survey.distributions import Beta, Distribution, LogNormal, LogUniform, Normal, StudentT, Uniform
from digs_survey.errors import ConfigError
from digs_survey.parameters import DERIVED, PARAMETERS
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid, air_to_vacuum, flam_of_maggie
from digs_survey.sps.prospector import ProspectorSimulator, import_prospector
from digs_survey.sps.sampling import element_matrix, lagrange_matrix

__all__ = ["FileSimulator", "ParamFile", "needs_file", "simulator_of"]

_TAIL = 1e-3
"""Share of a Student's t beyond each end at which it is cut: its tails have no end, and a prior here has."""
_STEP_ANGSTROM, _STEPS = 0.45, 4
"""Spacing of the points at which a spectrum is predicted: at most so much at rest, and so many in each element."""
_BEYOND = 8
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ParamFile:
    """A parameter file that the user asked to run.

    Attributes
    ----------
    name : str
        Without its folder.
    text : str
        It travels to the workers, which need not see the file.
    """

    name: str
    text: str

    @classmethod
    def read(cls, path: Path) -> ParamFile:
        """Read a file; nothing of it is executed.

        Raises
        ------
        ConfigError
            If it cannot be read.
        """
        if path.suffix != ".py":
            raise ConfigError(f"--param-file {path}: expected a Python file, whose name ends in .py")
        try:
            return cls(path.name, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--param-file {path}: expected a Python file, found {error}") from error

    @property
    def sha256(self) -> str:
        """Hash of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def model(self) -> Any:
        """Execute the file, and return the model that it builds."""
        names = self._executed()
        with self._named():
            return self._function(names, "build_model")(**names.get("run_params", {}))

    def model_and_sps(self) -> tuple[Any, Any]:
        """Execute the file, and return its model and its stellar populations."""
        names = self._executed()
        with self._named():
            built = [
                self._function(names, name)(**names.get("run_params", {})) for name in ("build_model", "build_sps")
            ]
        return built[0], built[1]

    def describe(self) -> FileModel:
        """Execute the file, and return its parameters and their priors.

        Raises
        ------
        ConfigError
            If it fails, or has what cannot be a posterior's here; with its name and the line or the parameter.
        """
        import_prospector()
        model = self.model()
        zred = self._redshift(model)
        if not model.free_params:
            raise self._wrong("expected a free parameter, found none")
        priors: dict[str, Distribution] = {}
        units: list[str] = []
        # In the order of the columns of theta.
        for name in sorted(model.free_params, key=lambda name: model.theta_index[name].start):
            about = model.config_dict[name]
            for column, prior in self._priors(name, int(about["N"]), about.get("prior")):
                if column in DERIVED or not _NAME.fullmatch(column):
                    raise self._wrong(f"parameter {column!r}: expected another name, since tables have columns of it")
                priors[column] = prior
                units.append(PARAMETERS[column].unit if column in PARAMETERS else "")
        about = ParamFileConfig(name=self.name, sha256=self.sha256, parameters=tuple(priors), units=tuple(units))
        return FileModel(about, priors, zred)

    def _redshift(self, model: Any) -> float | None:
        if "zred" in model.free_params or model.config_dict.get("zred", {}).get("depends_on"):
            raise self._wrong("zred: expected a fixed redshift, found a free one; rows bring their own redshift")
        if "lumdist" in model.params:
            raise self._wrong("lumdist: expected it left out, since the distance follows model.zred")
        if not callable(getattr(model, "predict", None)):
            raise self._wrong(f"build_model: expected a SedModel or SpecModel, found {type(model).__name__}")
        found = float(np.squeeze(model.params.get("zred", 0.0)))
        return found if found > 0 else None

    def _priors(self, name: str, count: int, prior: Any) -> Iterator[tuple[str, Distribution]]:
        """Yield the columns of a parameter of ``count`` elements, and the prior of each."""
        kind = type(prior).__name__
        if type(prior).__module__ != "prospect.models.priors" or kind not in _KINDS:
            found = "none" if prior is None else kind
            raise self._wrong(f"parameter {name!r}: expected a prior of {', '.join(_KINDS)}, found {found}")
        for i in range(count):
            numbers = {key: self._element(name, np.atleast_1d(value), i, count) for key, value in prior.params.items()}
            try:
                one = _KINDS[kind](**numbers)
            except (ValidationError, TypeError) as error:
                why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise self._wrong(f"parameter {name!r}, prior {kind} {numbers}: {why}") from error
            yield (name if count == 1 else f"{name}_{i + 1}"), one

    def _element(self, name: str, values: NDArray[Any], i: int, count: int) -> float:
        if values.size not in (1, count):
            raise self._wrong(f"parameter {name!r}: expected a prior of {count} numbers, found {values.size}")
        return float(values[i if values.size > 1 else 0])

    def _executed(self) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "digs_survey_param_file", "__file__": self.name}
        with self._named():
            exec(compile(self.text, self.name, "exec"), names)
        if not isinstance(names.get("run_params", {}), dict):
            raise self._wrong(f"run_params: expected a dictionary, found {type(names['run_params']).__name__}")
        return names

    def _function(self, names: dict[str, Any], name: str) -> Callable[..., Any]:
        if not callable(names.get(name)):
            raise self._wrong(f"expected a function {name}(**run_params), found none")
        found: Callable[..., Any] = names[name]
        return found

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"--param-file {self.name}: {what}")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Report an error with the file's name and line."""
        try:
            yield
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.name]
            line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
            where = "" if line is None else f", line {line}"
            raise ConfigError(f"--param-file {self.name}{where}: {type(error).__name__}: {error}") from error


class FileSimulator:
    """Noiseless spectra of a parameter file's model, by Prospector.

    Parameters
    ----------
    file : ParamFile
    model : ModelConfig
        Its ``zred`` and ``resampling`` are used. The line spread is the file's.
    grid : WavelengthGrid
        The elements that spectra are brought to; rest frame.

    Raises
    ------
    ConfigError
        If the file is not the one that the model was described from, or fails, or the grid is in the observed frame.
    """

    def __init__(self, file: ParamFile, model: ModelConfig, grid: WavelengthGrid) -> None:
        import_prospector()
        from prospect.sources.constants import cosmo

        about = model.param_file
        if about is None or about.sha256 != file.sha256:
            raise ConfigError(f"--param-file {file.name}: expected the file that the run was begun with, found another")
        if grid.frame != "rest":
            raise ConfigError(f"grid: the simulator needs a rest-frame grid, found {grid}")
        self.file, self.grid, self.zred = file, grid, model.zred
        self.model, self.sps = file.model_and_sps()
        self.model.params["zred"] = np.atleast_1d(model.zred)
        # Without it Prospector takes 10 pc for small redshifts.
        self.model.params["lumdist"] = np.atleast_1d(cosmo.luminosity_distance(model.zred).to_value("Mpc"))
        to_vacuum = air_to_vacuum if grid.medium == "air" else np.asarray
        edges, centres = to_vacuum(grid.edges), to_vacuum(grid.wavelength)
        step = float((np.minimum(_STEP_ANGSTROM, np.diff(edges) / _STEPS) / edges[1:]).min())
        count = int(np.ceil(np.log(edges[-1] / edges[0]) / step)) + 2 * _BEYOND
        points = edges[0] * np.exp(step * (np.arange(count) - _BEYOND))
        to_grid = element_matrix(points, edges) if model.resampling == "mean" else lagrange_matrix(points, centres)
        observed = points * (1 + model.zred)
        # Rest-frame f_lambda, so that lambda f_lambda is conserved.
        self._to_grid = to_grid * (1 + model.zred)
        self._from_maggies = flam_of_maggie(observed)
        ones = np.ones(count)
        # SpecModel adds lines only to what looks like an observation.
        self.obs: dict[str, Any] = {
            "wavelength": observed,
            "spectrum": ones,
            "unc": ones,
            "mask": ones > 0,
            "filters": None,
            "maggies": None,
            "maggies_unc": None,
        }

    def spectra(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Predict spectra (n, wavelength) in erg/s/cm2/Angstrom for theta (n, ndim)."""
        rows = np.asarray(theta, dtype=float)
        flux = np.empty((len(rows), len(self.grid)))
        for i, row in enumerate(rows):
            with self.file._named():
                found = np.asarray(self.model.predict(row, obs=self.obs, sps=self.sps)[0], dtype=float)
            per_angstrom = bool(np.all(self.model.params.get("peraa", False))) and hasattr(self.model, "sed")
            flux[i] = self._to_grid @ (found if per_angstrom else found * self._from_maggies)
        return flux


def simulator_of(
    model: ModelConfig, prior: Prior, grid: WavelengthGrid, file: ParamFile | None = None
) -> ProspectorSimulator | FileSimulator:
    """Return what predicts a model's spectra one by one: that of its parameter file, if it has one.

    Raises
    ------
    ConfigError
        If the model is that of a parameter file which is not given: nothing is executed that the user did not ask for.
    """
    if model.param_file is None:
        return ProspectorSimulator(model, prior, grid)
    if file is None:
        raise ConfigError(needs_file(model.param_file))
    return FileSimulator(file, model, grid)


def needs_file(about: ParamFileConfig) -> str:
    """Return what to say where the option is left out."""
    return (
        f"the model is that of the parameter file {about.name}, whose code makes the spectra; name it with "
        f"--param-file (the run directory has a copy as {about.name})"
    )


def _student_t(mean: float, scale: float, df: float) -> Distribution:
    from scipy.stats import t

    reach = float(t.isf(_TAIL, df)) * scale
    return StudentT(prior="student_t", mean=mean, scale=scale, df=df, low=mean - reach, high=mean + reach)


def _log_normal(mode: float, sigma: float) -> Distribution:
    # Prospector gives the natural log of the mode.
    return LogNormal.model_validate({"prior": "log_normal", "median": np.exp(mode + sigma**2), "sigma": sigma})


_KINDS: dict[str, Callable[..., Distribution]] = {
    "TopHat": lambda mini, maxi: Uniform(low=mini, high=maxi),
    "Uniform": lambda mini, maxi: Uniform(low=mini, high=maxi),
    "LogUniform": lambda mini, maxi: LogUniform(prior="log_uniform", low=mini, high=maxi),
    "Normal": lambda mean, sigma: Normal.model_validate({"prior": "normal", "mean": mean, "sigma": sigma}),
    "ClippedNormal": lambda mean, sigma, mini, maxi: Normal(
        prior="clipped_normal", mean=mean, sigma=sigma, low=mini, high=maxi
    ),
    "StudentT": _student_t,
    "LogNormal": _log_normal,
    "Beta": lambda alpha, beta, mini=0.0, maxi=1.0: Beta(prior="beta", alpha=alpha, beta=beta, low=mini, high=maxi),
}
"""Prospector's priors, with the names of their numbers."""
