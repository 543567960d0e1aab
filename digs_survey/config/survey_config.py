"""The configuration of a survey: frozen models, with units in the names of the keys."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from digs_survey.config.audit_sections import AuditConfig, EscalateConfig, ImportanceConfig, MCMCConfig
from digs_survey.config.binned_prior import prior_of_bins, refuse_bins
from digs_survey.config.dust_laws import DUST_CONSTANTS, DustLawName, check_dust
from digs_survey.config.gas import check_gas
from digs_survey.config.noise_sections import MissingConfig, NoiseConfig
from digs_survey.config.types import Count, Fraction, Positive, Section, Share
from digs_survey.distributions import CONDITIONAL, AnyPrior, Uniform
from digs_survey.errors import ConfigError
from digs_survey.parameters import BINNED, BINS, Prior, percent, rate_at

__all__ = [
    "AuditConfig",
    "EscalateConfig",
    "GridConfig",
    "ImportanceConfig",
    "MCMCConfig",
    "MapConfig",
    "MissingConfig",
    "ModelConfig",
    "NoiseConfig",
    "SimulateConfig",
    "SurveyConfig",
    "TrainConfig",
]

ResolvingPower = Annotated[float, Field(ge=10.0, allow_inf_nan=False)]
DerivedName = Literal[
    "tage", "surviving_mass", "mass_weighted_age", "sfr_10", "sfr_100", "ssfr_10", "ssfr_100", "t50", "t90"
]


class ModelConfig(Section):
    """What makes the spectra."""

    added = frozenset({"age", "dust_law", "sfh_bins"})

    source: Literal["bc03", "fsps"] = "bc03"
    """Stellar populations: BC03-MILES (no data to download) or python-fsps (needs SPS_HOME)."""
    sfh: Literal["delayed_tau", "tau", "constant", "continuity", "dirichlet"] = "delayed_tau"
    """Star formation history: t exp(-t/tau), exp(-t/tau), or a constant rate (logtau, with any bounds
    given for it, is then left out). "continuity" and "dirichlet" have constant rates in bins of age back to the
    beginning of the universe, and neither an age nor logtau: docs/models.md."""
    sfh_bins: Annotated[int, Field(ge=BINS[0], le=BINS[1])] = 7
    """For "continuity" and "dirichlet": bins of age. The first two end at 30 and 100 Myr, the last begins at 0.85 times
    the age of the universe at the galaxy's redshift, and the others are equal steps in log age."""
    age: Literal["tage", "tage_tuniv"] = "tage"
    """The parameter of the age: in Gyr, with the same prior at every redshift, or as a share of the age of the universe
    at the galaxy's redshift (needs noise.kind = "row"); tables then have tage too, in Gyr. Not used where the history
    is in bins."""
    line_spread: Literal["velocity", "resolving_power", "table"] = "velocity"
    """Which of the following smooths spectra, on top of the populations' own resolution (MILES: 2.5 Angstrom FWHM)."""
    smoothing_kms: Annotated[float, Field(gt=0, le=12_000)] = 350.0
    """For "velocity": Gaussian sigma. 350 km/s is wavelength / sigma = 857, which is wavelength / FWHM = 364. Not used
    where prior.sigma_smooth makes it a parameter."""
    resolving_power: ResolvingPower = 100.0
    """For "resolving_power": wavelength / FWHM at all wavelengths. 100 is a sigma of 1273 km/s."""
    line_spread_angstrom: tuple[Positive, ...] = ()
    """For "table": increasing vacuum wavelengths that cover the grid, in the observed frame of ``zred``."""
    line_spread_resolving_power: tuple[ResolvingPower, ...] = ()
    """For "table": wavelength / FWHM at each of them."""
    resampling: Literal["mean", "point"] = "mean"
    """Onto the grid: the mean over each element (conserves flux), or its value at the centre."""
    dust_law: DustLawName = "calzetti"
    """Attenuation curve of the diffuse dust, as FSPS has it: Calzetti et al. (2000), a power law, Kriek & Conroy
    (2013), the Milky Way's (Cardelli et al. 1989, R_V = 3.1) or the SMC bar's (Gordon et al. 2003). Bounds in
    prior.dust_index free the slope of the second and third. Those in prior.dust1 add the dust of birth clouds, before
    stars and gas younger than 10 Myr, to any but the first."""
    nebular: bool = True
    """Nebular lines and continuum."""
    gas_logu: Annotated[float, Field(ge=-4.0, le=-1.0)] = -2.0
    """Ionisation parameter of the gas, log10. An entry prior.gas_logu makes it a parameter; one of prior.gas_logz gives
    the gas a metallicity of its own, where otherwise it has the stars'."""
    zred: Annotated[float, Field(gt=0)] = 1e-5
    """Redshift whose luminosity distance (WMAP9) sets the amplitude of simulated spectra."""

    @property
    def binned(self) -> bool:
        """Whether the history is in bins of age."""
        return self.sfh in BINNED

    def constant(self, name: str) -> float:
        """Return the value of a parameter of the dust that is not free."""
        return DUST_CONSTANTS[name]

    @model_validator(mode="after")
    def _table(self) -> ModelConfig:
        wavelength, power = self.line_spread_angstrom, self.line_spread_resolving_power
        if len(wavelength) != len(power):
            raise ValueError(
                "line_spread_angstrom and line_spread_resolving_power: expected equal lengths, "
                f"found {len(wavelength)} and {len(power)}"
            )
        if list(wavelength) != sorted(set(wavelength)):
            raise ValueError("line_spread_angstrom: expected increasing wavelengths")
        if self.line_spread == "table" and len(wavelength) < 2:
            raise ValueError(
                "line_spread = 'table': expected two wavelengths or more in line_spread_angstrom and "
                f"line_spread_resolving_power, found {len(wavelength)}"
            )
        return self


class GridConfig(Section):
    """Wavelength grid, used where no catalog gives one; element centres, both ends included."""

    start_angstrom: Positive = 3060.0
    stop_angstrom: Positive = 9910.0
    step_angstrom: Positive = 50.0
    frame: Literal["rest", "observed"] = "rest"
    medium: Literal["vacuum", "air"] = "vacuum"

    @model_validator(mode="after")
    def _ordered(self) -> GridConfig:
        if self.stop_angstrom < self.start_angstrom + self.step_angstrom:
            raise ValueError("expected stop_angstrom >= start_angstrom + step_angstrom")
        return self


class SimulateConfig(Section):
    """How many noiseless spectra to compute."""

    simulations: Count = 60_000
    rows_per_shard: Count = 2_000
    engine: Literal["auto", "prospector", "batched"] = "auto"
    """Prospector itself, one spectrum after the other; or the same spectra in batches, as matrix products.
    "auto" takes batches and lets Prospector compute one in a hundred (at least 200) beside them as a check."""
    sampling: Literal["random", "sobol"] = "random"
    """How the prior is sampled: independent draws, or a scrambled Sobol sequence, which covers it more evenly. The
    simulations that calibration is tested on are always independent draws."""

    @model_validator(mode="after")
    def _sobol_ends(self) -> SimulateConfig:
        if self.sampling == "sobol" and self.simulations > 2**30:
            raise ValueError(f"sampling = 'sobol' has at most {2**30} simulations, found {self.simulations}")
        return self


class AugmentConfig(Section):
    """The stage that writes noisy pairs to disk: for training with ``train.pairs = "disk"``, or for other programs."""

    draws_per_spectrum: Count = 4
    """Noisy copies of each simulation."""


class TrainConfig(Section):
    """The neural posterior estimator and its training."""

    flow: Literal["maf", "zuko_maf", "zuko_nsf"] = "maf"
    """sbi's builder: the masked autoregressive flow of nflows (the paper's) or of zuko, or zuko's neural splines."""
    hidden_features: Count = 64
    """Units in each hidden layer of each transform."""
    transforms: Count = 5
    blocks: Count = 2
    """Hidden layers in each transform after the first."""
    embedding: Literal["none", "mlp", "conv"] = "mlp"
    """Between features and flow, once for each spectrum: nothing, a residual perceptron, or residual convolutions
    along the elements, which need whitening = "element"."""
    embedding_features: Count = 64
    """What an embedding gives to the flow."""
    embedding_layers: Annotated[int, Field(ge=0)] = 2
    """Residual layers of an embedding."""
    flux_transform: Literal["log10", "asinh"] = "log10"
    """Of the flux: its log10, or the inverse hyperbolic sine of it in units of the noise, which is log10 where
    the flux is bright, linear where it is faint, and knows negative flux."""
    whitening: Literal["pca", "element", "least_squares"] = "pca"
    """Principal components of the features, or the features of each element, both of unit variance; or, with
    noise.kind = "row", coefficients of principal components fitted to the spectrum by least squares with the row's own
    errors, and the errors of the coefficients."""
    components: Count = 40
    """For "pca" and "least_squares": principal components (at most the grid's elements)."""
    amplitude: Literal["feature", "centred", "equivariant"] = "centred"
    """How a spectrum's amplitude gets to the mass: as one more feature; also as the centre of the mass coordinate; or
    by symmetry, where the network sees the shape alone and log mass is relative to the amplitude."""
    pairs: Literal["fresh", "disk"] = "fresh"
    """Noisy spectra to train on: fresh noise on the simulations in each pass, or the pairs of the augment stage, whose
    noise is the same in each pass."""
    ensemble: Count = 1
    """Flows trained apart over the same features, whose equal mixture is the posterior."""
    batch_size: Count = 4096
    epochs: Count = 40
    """Passes over the training split."""
    learning_rate: Positive = 1e-2
    gradient_clip: Positive = 2.0
    validation_fraction: Fraction = 0.05
    """Share of the simulations that no weight is trained on; with all their pairs where pairs are read from disk."""
    patience: Count = 20
    """Epochs without a better validation loss after which training stops."""
    workers: Count = 1
    """Data-parallel workers (Ray Train where more than one, or on a Ray cluster)."""
    threads_per_worker: Count = 2
    """Threads of each worker; part of what fixes the weights to the bit."""
    buffer_rows: Annotated[int, Field(ge=2)] = 1_000_000
    """Simulations, or pairs, in the memory of each worker at most (4 bytes for each element); more are streamed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the embedding network's matrix products; densities are float32 always. "auto" takes bfloat16 on a GPU."""

    @model_validator(mode="after")
    def _elements_for_convolutions(self) -> TrainConfig:
        if self.embedding == "conv" and self.whitening != "element":
            raise ValueError(
                "embedding = 'conv' convolves along the elements of the grid; expected whitening = 'element', "
                f"found {self.whitening!r}"
            )
        return self


MIN_RECALIBRATION = 1_000
"""Simulations below which corrected levels are no better than what they correct."""


class MapConfig(Section):
    """Applying the frozen posterior to every row."""

    of_rows: ClassVar[frozenset[str]] = frozenset({"error_floor", "mask_lines"})
    """Keys that need noise.kind = "row"."""
    added = of_rows | {"history_lookback_gyr"}

    draws: Annotated[int, Field(ge=16)] = 1_000
    quantiles: tuple[Fraction, ...] = (0.025, 0.16, 0.5, 0.84, 0.975)
    rows_per_shard: Annotated[int, Field(ge=0)] = 0
    """Rows that are computed, written and marked as done together; 0 takes a power of two between 256 and 65,536 that
    makes some 256 shards. Results do not depend on it."""
    derived: tuple[DerivedName, ...] = ()
    """What percentiles are wanted of besides the parameters; surviving mass needs the model's populations."""
    history_lookback_gyr: tuple[Annotated[float, Field(ge=1e-4, le=14)], ...] = ()
    """Lookback times, in order, at which percentiles of the star formation rate are wanted."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Draws of each row, evenly thinned, that are kept in posterior.zarr."""
    samples_column: str = ""
    """Column of the catalog whose nonzero rows keep them; without one, every row does."""
    min_good_fraction: Fraction = 0.8
    """Rows with fewer good elements get a quality bit and no posterior."""
    error_floor: Share | Literal["fit"] = 0.02
    """With noise.kind = "row": share of a row's own smoothed flux that is added in quadrature to its errors, for what
    the model gets wrong and the catalog's errors leave out. "fit" learns it from the residuals of the survey's rows."""
    mask_lines: bool = True
    """With noise.kind = "row": leave out the elements of strong emission lines, which the model's gas, of one
    ionisation parameter, describes badly in many galaxies."""
    predictive_draws: Annotated[int, Field(ge=0)] = 0
    """Draws of each row whose spectra are held against it: chi-square, its p-value, those of an error of the redshift
    and of a step in the calibration, the distance of its features from those of the simulations, and the bits POOR_FIT
    and CALIBRATION_STEP; 0 leaves all of that out."""
    min_pvalue: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """P-value below which a row gets POOR_FIT (chi-square, redshift) or CALIBRATION_STEP (step)."""
    recalibrate: Annotated[int, Field(ge=0)] = 0
    """Simulations on which the levels of the parameters' percentiles are corrected, so that each holds the share of
    truths that it names; 0 gives the posterior's own. Draws, derived quantities and weighted percentiles stay."""
    edge_fraction: Fraction = 0.02
    """Width, as a fraction of the prior's range, of the strip at each edge that PRIOR_EDGE looks at."""
    edge_mass: Fraction = 0.25
    """Posterior mass in that strip from which on a row gets PRIOR_EDGE."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Ray actors; 0 takes one for each core of the cluster."""

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of all that is derived from draws."""
        return (*self.derived, *(rate_at(time).name for time in self.history_lookback_gyr))

    def shard_size(self, rows: int) -> int:
        """Return the rows of a shard of a catalog of so many rows."""
        if self.rows_per_shard:
            return self.rows_per_shard
        return min(max(2 ** math.ceil(math.log2(rows / 256)), 256), 65_536)

    @model_validator(mode="after")
    def _samples(self) -> MapConfig:
        if self.samples > self.draws:
            raise ValueError(f"samples: expected at most the {self.draws} draws, found {self.samples}")
        if 0 < self.recalibrate < MIN_RECALIBRATION:
            raise ValueError(
                f"recalibrate: expected 0 or at least {MIN_RECALIBRATION} simulations, found {self.recalibrate}"
            )
        if self.predictive_draws > self.draws:
            raise ValueError(
                f"predictive_draws: expected at most the {self.draws} draws, found {self.predictive_draws}"
            )
        if self.samples_column and not self.samples:
            raise ValueError("samples_column: expected samples = 1 or more with it, found 0")
        if len(set(self.derived)) < len(self.derived):
            raise ValueError("derived: expected each quantity once")
        if list(self.history_lookback_gyr) != sorted(set(self.history_lookback_gyr)):
            raise ValueError("history_lookback_gyr: expected increasing lookback times")
        return self

    @model_validator(mode="after")
    def _quantiles(self) -> MapConfig:
        if list(self.quantiles) != sorted(set(self.quantiles)) or 0.5 not in self.quantiles:
            raise ValueError("expected increasing quantiles that include 0.5")
        names = [percent(quantile) for quantile in self.quantiles]
        if same := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                "quantiles: expected values that differ in the first six digits of their percentage, which names their "
                f"columns, found two of {same[0]} %"
            )
        return self


class SurveyConfig(Section):
    """Everything that decides a run's results; see ``catalogs/*.toml`` for presets."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2022
    model: ModelConfig = ModelConfig()
    prior: dict[str, AnyPrior] = Field(default_factory=dict)
    """Each parameter's prior or value, as ``[model.parameters]`` of the file gives them."""
    grid: GridConfig = GridConfig()
    noise: NoiseConfig = NoiseConfig()
    simulate: SimulateConfig = SimulateConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    map: MapConfig = MapConfig()
    importance: ImportanceConfig = ImportanceConfig()
    audit: AuditConfig = AuditConfig()
    escalate: EscalateConfig = EscalateConfig()

    @model_validator(mode="before")
    @classmethod
    def _priors_are_independent(cls, data: Any) -> Any:
        # Validators that come before run from the last to the first: the section is in its place here.
        priors = data.get("prior") if isinstance(data, dict) else None
        for name, prior in priors.items() if isinstance(priors, dict) else ():
            if isinstance(prior, dict) and prior.get("prior") == CONDITIONAL:
                raise ValueError(
                    f"prior.{name}: a posterior is trained with a prior of each parameter by itself, and "
                    f"{CONDITIONAL!r} depends on the mass; train with a wide prior, keep draws (map.samples), and "
                    "give this one to 'digs-survey reprior'"
                )
        return data

    @model_validator(mode="before")
    @classmethod
    def _parameters_of_model(cls, data: Any) -> Any:
        """Take the section of the model's parameters, where a number alone fixes one."""
        data = with_parameters(data)
        if not isinstance(data, dict) or not isinstance(data.get("prior"), dict):
            return data
        given = {name: {"value": one} if isinstance(one, int | float) else one for name, one in data["prior"].items()}
        return data | {"prior": given}

    @model_validator(mode="after")
    def _prior_and_walkers(self) -> SurveyConfig:
        try:
            prior = self.make_prior()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.audit.mcmc.walkers // 2 <= prior.ndim:
            raise ValueError(
                f"audit.mcmc.walkers: expected {2 * (prior.ndim + 1)} or more for the {prior.ndim} parameters of this "
                f"prior, found {self.audit.mcmc.walkers}"
            )
        return self

    @model_validator(mode="after")
    def _row_noise(self) -> SurveyConfig:
        by_row = self.noise.by_row
        for key, value, needed in (
            ("train.whitening", self.train.whitening, "least_squares"),
            ("model.age", self.model.age, "tage_tuniv"),
        ):
            if value == needed and not by_row:
                raise ValueError(f"{key} = {needed!r} needs noise.kind = 'row', found {self.noise.kind!r}")
        if by_row and self.train.whitening != "least_squares":
            raise ValueError(
                "noise.kind = 'row' gives the network the errors of each row; expected "
                f"train.whitening = 'least_squares', found {self.train.whitening!r}"
            )
        if by_row and self.train.pairs == "disk":
            raise ValueError("noise.kind = 'row' draws noise afresh; expected train.pairs = 'fresh', found 'disk'")
        if "tage" in self.map.derived and self.model.binned:
            raise ValueError(f"map.derived: model.sfh = {self.model.sfh!r} has no tage; expected t50 or t90")
        if "tage" in self.map.derived and self.model.age != "tage_tuniv":
            raise ValueError("map.derived: tage is a parameter of this model already; it is derived from tage_tuniv")
        return self

    @model_validator(mode="after")
    def _equivariance(self) -> SurveyConfig:
        if self.train.amplitude == "equivariant" and not self.noise.scales_with_flux:
            found = "kind = 'constant'" if self.noise.kind == "constant" else "poisson_share"
            raise ValueError(
                "train.amplitude = 'equivariant' needs noise that is the same share of the flux at any mass, and "
                f"noise.{found} is not; expected noise.kind = 'fractional', or 'catalog' without poisson_share, "
                "or train.amplitude = 'centred'"
            )
        return self

    @model_validator(mode="after")
    def _mass_is_a_scale(self) -> SurveyConfig:
        mass = self.prior.get("logmass", Uniform(low=0, high=1))
        if self.train.amplitude != "feature" and not isinstance(mass, Uniform):
            raise ValueError(
                f"train.amplitude = {self.train.amplitude!r} takes the mass from the amplitude, which needs a free, "
                "uniform prior.logmass; expected that, or train.amplitude = 'feature'"
            )
        return self

    def make_prior(self) -> Prior:
        """Return the prior of this configuration's parameters.

        Raises
        ------
        ConfigError
            If a prior is given for a parameter that the model does not have.
        """
        if "sigma_smooth" in self.prior:
            self._check_free_spread()
        check_dust(self.model.dust_law, self.prior)
        check_gas(self.model, self.prior)
        if self.model.binned:
            return prior_of_bins(self.model, self.prior)
        left_out = ("logtau",) if self.model.sfh == "constant" else ()
        other = "tage" if self.model.age == "tage_tuniv" else "tage_tuniv"
        if other in self.prior:
            raise ConfigError(
                f"prior.{other}: model.age = {self.model.age!r} needs prior.{self.model.age} in its place"
            )
        refuse_bins(self.model.sfh, self.prior)
        priors = {name: prior for name, prior in self.prior.items() if name not in left_out}
        return Prior(priors, left_out, self.model.age)

    def _check_free_spread(self) -> None:
        """Refuse a fixed line spread beside a free one."""
        default = type(self.model).model_fields["smoothing_kms"].get_default()
        if self.model.smoothing_kms != default:
            raise ConfigError(
                "prior.sigma_smooth makes the line spread a parameter, and model.smoothing_kms fixes it; leave out one "
                f"of the two, found model.smoothing_kms = {self.model.smoothing_kms:g}"
            )
        if self.model.line_spread != "velocity":
            raise ConfigError(
                f"prior.sigma_smooth needs model.line_spread = 'velocity', found {self.model.line_spread!r}"
            )

    def hash(self, *sections: str) -> str:
        """SHA-256 of the named sections (all of them if none is named), independent of key order."""
        data = self.model_dump(mode="json", include=set(sections) or None)
        if not sections or "prior" in sections:
            data["prior"] = self.make_prior().to_dict()
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def grid_centres(grid: GridConfig) -> np.ndarray:
    """Element centres (wavelength,) in Angstrom of a configured grid."""
    count = int(np.floor((grid.stop_angstrom - grid.start_angstrom) / grid.step_angstrom + 1e-9)) + 1
    return grid.start_angstrom + grid.step_angstrom * np.arange(count)


def with_parameters(data: Any) -> Any:
    """Return the values of a configuration with ``model.parameters`` as ``prior``, where they are kept.

    Raises
    ------
    ValueError
        If a parameter is in both.
    """
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or "parameters" not in model:
        return data
    given, prior = model["parameters"], data.get("prior", {})
    if not isinstance(given, dict) or not isinstance(prior, dict):
        raise ValueError("model.parameters: expected a section with an entry for each parameter")
    if twice := sorted(given.keys() & prior.keys()):
        raise ValueError(f"model.parameters.{twice[0]} and prior.{twice[0]} are both given; leave out the latter")
    others = {name: value for name, value in model.items() if name != "parameters"}
    return data | {"model": others, "prior": prior | given}
