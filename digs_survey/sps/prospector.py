"""Galaxy spectra through Prospector's own model class, brought onto a catalog's wavelength grid."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.config import ModelConfig
from digs_survey.config.dust_laws import DUST_CONSTANTS
from digs_survey.config.gas import GAS
from digs_survey.errors import MissingDependencyError
from digs_survey.parameters import BINNED
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bins import agebins, bin_edges
from digs_survey.sps.dust import BIRTH_INDEX, LOG_ESCAPE_AGE, dust_law
from digs_survey.sps.free_gas import GasRanges, check_gas_coverage, gas_ranges
from digs_survey.sps.fsps import FSPS_SETTINGS, require_fsps
from digs_survey.sps.grid import SSPGrid, check_coverage
from digs_survey.sps.hat_sampling import HatSampling
from digs_survey.sps.linespread import constant_sigma_kms
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.universe import at_zred, physical_prior

__all__ = ["ProspectorSimulator", "bc03_populations", "check_gas_of_source", "import_prospector"]


def _mass(logmass: NDArray[np.float64] | float = 0.0, **_: Any) -> NDArray[np.float64]:
    return 10.0 ** np.asarray(logmass)


def _tau(logtau: NDArray[np.float64] | float = 0.0, **_: Any) -> NDArray[np.float64]:
    return 10.0 ** np.asarray(logtau)


def _tburst(
    tage: NDArray[np.float64] | float = 1.0, fage_burst: NDArray[np.float64] | float = 1.0, **_: Any
) -> NDArray[np.float64]:
    return np.asarray(tage) * np.asarray(fage_burst)


def _rest(fburst: NDArray[np.float64] | float = 0.0, **_: Any) -> NDArray[np.float64]:
    # Of FSPS's shares of the mass, what is neither constant nor in the burst follows its tau model.
    return 1.0 - np.asarray(fburst)


def _gas_logz(logzsol: NDArray[np.float64] | float = 0.0, **_: Any) -> NDArray[np.float64]:
    # Unless it is a parameter, the gas has the stars' metallicity, as in the files of bc03; FSPS would leave it solar.
    return np.asarray(logzsol)


def _agebins(tage: NDArray[np.float64] | float, count: int) -> NDArray[np.float64]:
    return agebins(bin_edges(np.asarray(tage, dtype=float).reshape(()), count))


def _masses(
    logmass: NDArray[np.float64] | float = 0.0, tage: NDArray[np.float64] | float = 1.0, **others: Any
) -> NDArray[np.float64]:
    """Mass of each bin of age by Prospector's transforms, of its parameters one by one."""
    from prospect.models import transforms

    sfh = next(sfh for sfh, stem in BINNED.items() if f"{stem}_1" in others)
    count = sum(name.rpartition("_")[0] == BINNED[sfh] for name in others)
    values = np.array([float(np.squeeze(others[f"{BINNED[sfh]}_{k}"])) for k in range(1, count + 1)])
    bins = _agebins(tage, count + 1)
    if sfh == "continuity":
        masses = transforms.logsfr_ratios_to_masses(logmass=np.squeeze(logmass), logsfr_ratios=values, agebins=bins)
    else:
        masses = transforms.zfrac_to_masses(total_mass=10.0 ** np.squeeze(logmass), z_fraction=values, agebins=bins)
    return np.asarray(masses)


def _bins_of(tage: NDArray[np.float64] | float = 1.0, **others: Any) -> NDArray[np.float64]:
    return _agebins(tage, 1 + sum(name.rpartition("_")[0] in BINNED.values() for name in others))


class ProspectorSimulator:
    """Noiseless spectra predicted by Prospector's ``SedModel``.

    Parameters
    ----------
    model : ModelConfig
        Source of the populations, smoothing, gas, redshift.
    prior : Prior
        Names and order of the parameters, and Prospector's priors.
    grid : WavelengthGrid
        The elements that spectra are brought to; rest frame.
    sampling : GridSampling, optional
        How they are; that of the model's line spread if None.

    Attributes
    ----------
    model : prospect.models.SedModel
    sps : BC03Basis, prospect.sources.CSPSpecBasis or FastStepBasis
    obs : dict
        The observation whose wavelengths Prospector predicts at: observed frame, vacuum, finer than the grid.

    Raises
    ------
    ConfigError
        If the grid is in the observed frame, or the prior reaches beyond the populations.
    MissingDependencyError
        If the source's data are missing or do not work.

    Notes
    -----
    Spectra are f_lambda in erg/s/cm2/Angstrom at the WMAP9 luminosity distance of ``model.zred``, times
    1 + zred: per rest-frame Angstrom, so that lambda f_lambda is conserved.
    """

    def __init__(
        self, model: ModelConfig, prior: Prior, grid: WavelengthGrid, sampling: GridSampling | None = None
    ) -> None:
        if model.source == "fsps":
            require_fsps()
        import_prospector()
        from prospect.models import SedModel

        priors, prior = prior.prospector_priors(), physical_prior(prior)
        self.config, self.prior, self.grid = model, prior, grid
        sampling = sampling or GridSampling(model, grid, prior.bounds("sigma_smooth"))
        self._sampling = sampling
        self.sps = _source(model, prior, sampling.wavelength)
        _check_prior(prior, self.sps, model.source)
        self.obs: dict[str, Any] = {"filters": None}
        self._sigma = prior.index("sigma_smooth") if "sigma_smooth" in prior.names else None
        self._ask(None if self._sigma is None else float(prior.low[self._sigma]))
        self.model = SedModel(_parameters(model, prior, priors, smoothed=sampling.by_prospector))

    @classmethod
    def of_light(cls, model: ModelConfig, prior: Prior, coarse: WavelengthGrid) -> ProspectorSimulator:
        """Predict what photometry sees; see :func:`~digs_survey.sps.paired.light_model`."""
        return cls(model, prior, coarse, HatSampling(coarse))

    def _ask(self, sigma_kms: float | None) -> None:
        """Choose where Prospector predicts spectra smoothed by a sigma, the model's if None."""
        points, self._to_grid = self._sampling.points(self.sps.wavelengths, sigma_kms)
        self._to_grid *= 1 + self.config.zred
        self.obs["wavelength"] = points * (1 + self.config.zred)

    def spectrum(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Predict one spectrum (wavelength,) in erg/s/cm2/Angstrom for theta (ndim,)."""
        values = at_zred(self.prior.names, np.asarray(theta, dtype=float), self.config.zred)
        if self._sigma is not None and self.config.source == "fsps":
            # Where Prospector holds a smoothed spectrum depends on sigma, for populations on wavelengths of their own.
            self._ask(float(values[self._sigma]))
        if not self._sampling.by_prospector:
            # predict() would lift what is slightly negative, as beside a line that nothing has smoothed yet.
            self.model.set_parameters(values)
            flux, _, _ = self.sps.get_spectrum(outwave=self.obs["wavelength"], filters=None, **self.model.params)
        else:
            flux, _, _ = self.model.predict(values, obs=self.obs, sps=self.sps)
        return self._to_grid @ flux[1:-1]

    def spectra(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Predict spectra (n, wavelength) in erg/s/cm2/Angstrom for theta (n, ndim)."""
        rows = np.asarray(theta, dtype=float)
        flux = np.empty((len(rows), len(self.grid)))
        for i, row in enumerate(rows):
            flux[i] = self.spectrum(row)
        return flux


def import_prospector() -> None:
    """Import Prospector, which itself imports python-fsps wherever SPS_HOME is set, whatever the source.

    Raises
    ------
    MissingDependencyError
        If SPS_HOME holds no usable data.
    """
    try:
        import prospect.sources  # noqa: F401
    except OSError as error:
        raise MissingDependencyError(
            "Prospector cannot be imported: python-fsps finds no usable data in "
            f"SPS_HOME={os.environ.get('SPS_HOME')} ({error}); "
            "unset SPS_HOME, or set it to the FSPS data of release v3.3"
        ) from error


def _source(model: ModelConfig, prior: Prior, wavelength: NDArray[np.float64]) -> Any:
    """Return the object that hands Prospector the spectra of unsmoothed galaxies."""
    if model.source == "fsps":
        from prospect.sources import CSPSpecBasis, FastStepBasis, galaxy_basis

        if not hasattr(galaxy_basis, "fsps"):
            raise MissingDependencyError(
                "source 'fsps': Prospector was imported before SPS_HOME was set; set it before Python starts"
            )
        return FastStepBasis(zcontinuous=1) if model.binned else CSPSpecBasis(zcontinuous=1)
    from digs_survey.sps.bc03 import BC03Basis

    return BC03Basis(bc03_populations(model, prior, wavelength))


def bc03_populations(model: ModelConfig, prior: Prior, wavelength: NDArray[np.float64]) -> SSPGrid:
    """Read the populations of ``bc03`` that a model and its prior need, at wavelengths (wavelength,) in Angstrom."""
    from digs_survey.sps.bc03 import read_bc03

    return read_bc03(
        wavelength,
        gas_logu=model.gas_logu,
        nebular=model.nebular,
        max_age_gyr=prior.high[prior.index("tage")],
        free_gas=gas_ranges(model, prior),
    )


def _check_prior(prior: Prior, sps: Any, source: str) -> None:
    """Refuse a prior that reaches beyond the populations, which FSPS would clip without a word."""
    if source == "fsps":
        log_z, log_age = np.log10(sps.ssp.zlegend / sps.ssp.solar_metallicity), sps.ssp.ssp_ages
    else:
        log_z, log_age = sps.grid.log_z, sps.grid.log_age
    check_coverage(prior, log_z, log_age, source)
    check_gas_of_source(prior, source)


def check_gas_of_source(prior: Prior, source: str) -> None:
    """Refuse a prior that reaches beyond the tables of the gas of a source.

    Raises
    ------
    ConfigError
        Naming the parameter, what the source covers and what was found.
    """
    if any(name in prior.names for name in GAS):
        check_gas_coverage(prior, _gas_coverage(source), source)


def _gas_coverage(source: str) -> GasRanges:
    if source == "fsps":
        from digs_survey.sps.fsps_grid import fsps_gas_coverage

        return fsps_gas_coverage()
    from digs_survey.sps.bc03 import BC03_GAS

    return BC03_GAS


def _dust(model: ModelConfig, prior: Prior) -> dict[str, Any]:
    """Return what is fixed of the dust, under FSPS's names."""
    fixed: dict[str, Any] = {"dust_type": dust_law(model, prior).number}
    fixed |= {name: value for name, value in DUST_CONSTANTS.items() if name not in prior.names}
    if "dust1" in prior.names:
        fixed |= {"dust1_index": BIRTH_INDEX, "dust_tesc": LOG_ESCAPE_AGE}
    return fixed


def _parameters(
    model: ModelConfig, prior: Prior, given: dict[str, Any], *, smoothed: bool = True
) -> list[dict[str, Any]]:
    """Return the configuration of Prospector's model, whose free parameters are the columns of theta.

    Prospector's prior is the one ``given`` by name; of what follows from others, or is fixed, it is the range.
    """
    from prospect.models import priors
    from prospect.sources.constants import cosmo

    free = [
        {
            "name": p.name,
            "N": 1,
            "isfree": True,
            "init": 0.5 * (p.low + p.high),
            "units": p.unit,
            "prior": given.get(p.name) or priors.TopHat(mini=p.low, maxi=p.high),
        }
        for p in prior.parameters
    ]
    fixed: dict[str, Any] = {
        "zred": model.zred,
        # Without it Prospector integrates the same distance anew for each spectrum.
        "lumdist": cosmo.luminosity_distance(model.zred).to_value("Mpc"),
        "peraa": True,
    }
    if smoothed:
        fixed |= {"smoothtype": "vel", "fftsmooth": True, "sigma_smooth": constant_sigma_kms(model)}
    if "sigma_smooth" in prior.names:
        del fixed["sigma_smooth"]
    derived: dict[str, Any] = {"mass": _mass}
    # A constant rate is FSPS's tau model with all of the mass in its constant.
    fixed |= {"sfh": 4 if model.sfh == "delayed_tau" else 1, "const": float(model.sfh == "constant"), "tau": 1.0}
    if model.binned:
        # Rates in bins are FSPS's tabulated history.
        fixed["sfh"], derived = 3, {"mass": _masses, "agebins": _bins_of}
    if "fburst" in prior.names:
        derived["tburst"] = _tburst
        if model.sfh == "constant":
            del fixed["const"]
            derived["const"] = _rest
    if "logtau" in prior.names:
        del fixed["tau"]
        derived["tau"] = _tau
    fixed |= _dust(model, prior)
    if model.source == "fsps":
        gas = {"add_neb_emission": model.nebular, "add_neb_continuum": model.nebular}
        fixed = {**FSPS_SETTINGS, **fixed, **gas}
    if model.source == "fsps" or gas_ranges(model, prior):
        if "gas_logu" not in prior.names:
            fixed["gas_logu"] = model.gas_logu
        if "gas_logz" not in prior.names:
            derived["gas_logz"] = _gas_logz
    return [
        *free,
        *({"name": name, "N": 1, "isfree": False, "init": value} for name, value in fixed.items()),
        *(
            {"name": name, "N": 1, "isfree": False, "init": 1.0, "depends_on": depends}
            for name, depends in derived.items()
        ),
    ]
