"""The section of the galaxy model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from digs_survey.config.dust_laws import DustLawName
from digs_survey.config.file_model import ParamFileConfig
from digs_survey.config.types import Positive, Section
from digs_survey.parameters import BINNED, BINS

__all__ = ["ModelConfig"]

ResolvingPower = Annotated[float, Field(ge=10.0, allow_inf_nan=False)]


class ModelConfig(Section):
    """What makes the spectra."""

    added = frozenset({"age", "dust_law", "param_file", "sfh_bins"})

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
    """Ionisation parameter of the gas, log10. An entry gas_logu in [model.parameters] takes its place; one of gas_logz
    gives the gas a metallicity of its own, where otherwise it has the stars'."""
    zred: Annotated[float, Field(gt=0)] = 1e-5
    """Redshift whose luminosity distance (WMAP9) sets the amplitude of simulated spectra."""

    param_file: ParamFileConfig | None = None
    """A Prospector parameter file whose model takes the place of all but zred and resampling; --param-file sets it."""

    @property
    def binned(self) -> bool:
        """Whether the history is in bins of age."""
        return self.sfh in BINNED

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
