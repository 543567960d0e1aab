r"""Spectra of many galaxies at once, as matrix products, equal to what Prospector predicts one at a time.

A spectrum is linear in the populations: weights(history) times populations, times attenuation, smoothed and
averaged onto the grid by a fixed matrix. Only the attenuation stands between the two matrices. It varies
little over one element, so that

.. math:: e^{-\tau k(\lambda)} = e^{-\tau k_e} \sum_j \frac{(-\tau)^j}{j!} (k(\lambda) - k_e)^j

to as many terms as the prior's largest ``dust2`` needs (two to four), and the populations times each power
of :math:`k - k_e` are brought onto the grid once. What is left for a galaxy is its weights times a few
hundred short rows.

The same code runs on numpy arrays and on torch tensors, on whichever device they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from digs_survey.config import ModelConfig
from digs_survey.config.gas import GAS
from digs_survey.errors import NotBatchedError
from digs_survey.jit import loops
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import as_like, namespace, one_thread
from digs_survey.sps.bins import BinWeights
from digs_survey.sps.dust import LAWS, dust_law
from digs_survey.sps.dusty_parts import dusty_parts
from digs_survey.sps.element_dust import ElementDust
from digs_survey.sps.formed import histories
from digs_survey.sps.free_gas import gas_ranges, gas_rows
from digs_survey.sps.gas_parts import GasPart
from digs_survey.sps.grid import SSPGrid, calzetti_curve, check_coverage
from digs_survey.sps.onto_grid import OntoGrid
from digs_survey.sps.parts import Part, SpreadPart
from digs_survey.sps.population_weights import PopulationWeights
from digs_survey.sps.prospector import bc03_populations, check_gas_of_source, import_prospector
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.spread import TOLERANCE, spread_nodes
from digs_survey.sps.universe import at_zred, physical_prior

if TYPE_CHECKING:
    from digs_survey.sps.compiled_spectra import PackedPart

__all__ = ["BatchedModel", "model_populations"]

_COMPILED, _COMPILED_DUST = "digs_survey.sps.compiled_spectra", "digs_survey.sps.compiled_dust"
"""The loops for arrays of numpy's, and those for any law of the dust."""
_ROWS = 1_024
"""Galaxies computed together: many enough for the matrix products, few enough to stay in cache."""
_MOST_TERMS = 8
_NOTHING = 1e-13
"""Share of an element's largest weight that is nothing but rounding."""
_UNSEEN = 1e-6
"""Share of an element's largest weight below which the attenuation may be anything."""


def _luminosity_to_flux(zred: float) -> float:
    """Return f_lambda per rest-frame Angstrom (times 1 + z) in erg/s/cm2 for one Lsun, as the simulator has it."""
    from prospect.sources.constants import cosmo, lsun, pc

    distance = cosmo.luminosity_distance(zred).to_value("pc") * pc
    return float(lsun / (4 * np.pi * distance**2))


class BatchedModel:
    """Noiseless spectra for batches of theta.

    Parameters
    ----------
    populations : SSPGrid
    sampling : GridSampling
        How a smoothed spectrum is brought onto the grid.
    model : ModelConfig
    prior : Prior
        Names and order of the parameters; nothing outside its ranges may be asked.

    Raises
    ------
    ConfigError
        If the prior reaches beyond the populations.

    Notes
    -----
    Spectra are in the unit of :class:`~digs_survey.sps.prospector.ProspectorSimulator`, from which they differ
    by less than 0.1 % in every element.
    """

    def __init__(self, populations: SSPGrid, sampling: GridSampling, model: ModelConfig, prior: Prior) -> None:
        check_coverage(prior, populations.log_z, populations.log_age, model.source)
        check_gas_of_source(prior, model.source)
        self.prior, self.grid, self._gas_logu = prior, sampling.grid, model.gas_logu
        self._sfh, self.zred = model.sfh, model.zred
        self._columns = {name: prior.index(name) for name in prior.names}
        self._weights = PopulationWeights(populations.log_age, model.sfh, prior)
        self._living_nodes, self._living_fraction = populations.log_z, populations.living_fraction
        self._living = Part(populations.log_z, 1, populations.living_fraction[..., None], 1)
        dust2 = prior.high[prior.index("dust2")]
        self._parts: list[Any]
        self._dust: ElementDust | None = None
        if dust_law(model, prior) is not LAWS["calzetti"]:
            self._dust, parts, self._unit = dusty_parts(populations, sampling, model, prior)
            self._parts = [part for part, _, _ in parts]
            self._places = np.array([place for _, *place in parts])
        elif "sigma_smooth" in prior.names:
            self._spread(populations, sampling, dust2)
        else:
            self._smoothed(populations, sampling, dust2)
        self._unit *= _luminosity_to_flux(model.zred)

    def _smoothed(self, populations: SSPGrid, sampling: GridSampling, dust2: float) -> None:
        """Prepare populations whose line spread is the model's."""
        matrix = sampling.matrix(populations.wavelength)
        curve = calzetti_curve(populations.wavelength)
        self._curve = (curve @ matrix) / matrix.sum(axis=0)
        offset = curve[:, None] - self._curve
        self._terms = _terms(offset[_seen(matrix)], dust2, sampling.tolerance)
        to_lnu = populations.lnu_factor()[:, None]
        ways = [(to_lnu * matrix * offset**j / math.factorial(j)).astype(np.float32) for j in range(self._terms)]
        stars = _onto_grid(populations.spectra, ways)
        gas = _onto_grid(populations.nebular, ways)
        # In single precision the flux of a solar mass far away would be lost; the unit is put back at the end.
        self._unit = float(np.median(stars[:, :, : len(self.grid)]))
        stars, gas = stars / self._unit, gas / self._unit
        if populations.gas_follows_stars:
            stars[:, : gas.shape[1]] += gas
            self._parts = [Part(populations.log_z, 1, stars, self._terms)]
        else:
            self._parts = [
                Part(populations.log_z, 1, stars, self._terms),
                Part(populations.gas_log_z, populations.gas_degree, gas, self._terms),
            ]
        if (free := populations.free_gas) is not None:
            part = GasPart(populations.log_z, free, slice(None), self._terms)
            sparse = [csr_array(np.where(_seen(matrix, _NOTHING), way, 0)) for way in ways]
            part.fill(0, gas_rows(free, [OntoGrid(sparse)]) / self._unit)
            self._parts.append(part)

    def _spread(self, populations: SSPGrid, sampling: GridSampling, dust2: float) -> None:
        """Prepare populations at several sigmas, for a line spread that is a parameter."""
        wavelength, curve = populations.wavelength, calzetti_curve(populations.wavelength)
        low, high = (float(end[self.prior.index("sigma_smooth")]) for end in (self.prior.low, self.prior.high))
        widest = sampling.matrix_at(wavelength, high)
        self._curve = (curve @ widest) / widest.sum(axis=0)
        to_lnu = populations.lnu_factor()

        def offsets(matrix: csr_array) -> tuple[coo_array, NDArray[np.float64]]:
            entries = coo_array(matrix)
            return entries, curve[entries.row] - self._curve[entries.col]

        entries, offset = offsets(widest)
        self._terms = _terms(
            offset[entries.data > _UNSEEN * widest.max(axis=0).toarray()[entries.col]], dust2, 0.1 * TOLERANCE
        )

        def ways(sigma: float) -> list[csr_array]:
            entries, offset = offsets(sampling.matrix_at(wavelength, sigma))
            light = to_lnu[entries.row] * entries.data
            powers = (light * offset**j / math.factorial(j) for j in range(self._terms))
            return [csr_array((power, (entries.row, entries.col)), shape=entries.shape) for power in powers]

        nodes, edges = spread_nodes(populations, sampling, low, high)
        follows = populations.gas_follows_stars
        stars = SpreadPart(populations.log_z, 1, nodes, edges, self._terms)
        gas = SpreadPart(populations.gas_log_z, populations.gas_degree, nodes, edges, self._terms)
        free = populations.free_gas
        apart = None if free is None else GasPart(populations.log_z, free, slice(None), self._terms, (nodes, edges))
        for i, panel in enumerate(nodes):
            of_panel = [OntoGrid(ways(sigma)) for sigma in np.exp(panel)]
            rows = np.stack([onto_grid(populations.spectra) for onto_grid in of_panel])
            if i == 0:
                self._unit = float(np.median(rows[..., : len(self.grid)]))
            shining = np.stack([onto_grid(populations.nebular) for onto_grid in of_panel])
            if follows:
                rows[:, :, : shining.shape[2]] += shining
            else:
                gas.fill(i, shining / self._unit)
            rows /= self._unit
            stars.fill(i, rows)
            if free is not None and apart is not None:
                apart.fill(i, gas_rows(free, of_panel) / self._unit)
        self._parts = [part for part in (stars, None if follows else gas, apart) if part is not None]

    @classmethod
    def from_config(cls, model: ModelConfig, prior: Prior, grid: WavelengthGrid) -> BatchedModel:
        """Read the populations of the configured source and build the model for a catalog's grid.

        Raises
        ------
        ConfigError
            If the source does not cover the prior.
        MissingDependencyError
            If the source's data are missing.
        """
        if model.param_file is not None:
            raise NotBatchedError(f"the model of the parameter file {model.param_file.name} has no spectra in batches")
        import_prospector()
        return cls.from_sampling(GridSampling(model, grid, prior.bounds("sigma_smooth")), model, prior)

    @classmethod
    def from_sampling(cls, sampling: GridSampling, model: ModelConfig, prior: Prior) -> BatchedModel:
        """Read the populations, and build the model for any way onto a grid; see :meth:`from_config`."""
        # So that processes with any number of threads build the same model to the bit.
        with one_thread():
            prior = physical_prior(prior)
            return cls(model_populations(model, prior, sampling.wavelength), sampling, model, prior)

    def spectra(self, theta: Any) -> Any:
        """Predict spectra (n, wavelength) in erg/s/cm2/Angstrom for theta (n, ndim), inside the prior.

        Parameters
        ----------
        theta : ndarray or torch.Tensor of float64, shape (n, ndim)

        Returns
        -------
        ndarray or torch.Tensor of float64, shape (n, wavelength)
            On theta's device.

        Raises
        ------
        ValueError
            If a theta lies outside the prior.
        """
        theta = self._inside(theta)
        xp = namespace(theta)
        compiled = self._loops()
        if compiled is not None and isinstance(theta, np.ndarray):
            return self._compiled_spectra(compiled, theta)
        blocks = [self._block(theta[start : start + _ROWS]) for start in range(0, len(theta), _ROWS)]
        return xp.concatenate(blocks) if blocks else theta[:, :1] * as_like(self.grid.wavelength, theta)

    def _where(self, logzsol: Any, columns: Mapping[str, Any]) -> dict[type, tuple[Any, ...]]:
        """What each kind of part is interpolated in: arrays (n,)."""
        xp = namespace(logzsol)
        spread = (xp.log(columns["sigma_smooth"]),) if "sigma_smooth" in columns else ()
        gas = columns.get("gas_logz", logzsol), columns.get("gas_logu", xp.full_like(logzsol, self._gas_logu))
        stars = (logzsol, *spread)
        return {Part: stars, SpreadPart: stars, GasPart: (logzsol, *gas, *spread)}

    def _loops(self) -> ModuleType | None:
        return loops(_COMPILED if self._dust is None else _COMPILED_DUST)

    @property
    def by_itself(self) -> bool:
        """Whether a row of :meth:`spectra` for numpy arrays is the same bytes in any batch."""
        return self._loops() is not None

    def composite(
        self,
        weights: Any,
        logmass: Any,
        logzsol: Any,
        dust2: Any,
        sigma_smooth: Any = None,
        dust_index: Any = None,
        dust1: Any = None,
        gas_logz: Any = None,
        gas_logu: Any = None,
    ) -> Any:
        """Spectra (n, wavelength) in erg/s/cm2/Angstrom of galaxies with any star formation history.

        Parameters
        ----------
        weights : ndarray or torch.Tensor of float32, shape (n, age)
            Solar masses in each population for one solar mass formed, as
            :class:`~digs_survey.sps.history.HistoryWeights` and :func:`~digs_survey.sps.history.bin_weights` give them.
        logmass, logzsol, dust2 : ndarray or torch.Tensor of float64, shape (n,)
            Inside the prior: nothing is checked here.
        sigma_smooth : ndarray or torch.Tensor of float64, shape (n,), optional
            In km/s, where the prior has it.
        dust_index, dust1, gas_logz, gas_logu : ndarray or torch.Tensor of float64, shape (n,), optional
            Where the prior has them.
        """
        xp = namespace(weights)
        columns = {"sigma_smooth": sigma_smooth, "gas_logz": gas_logz, "gas_logu": gas_logu}
        where = self._where(logzsol, {name: values for name, values in columns.items() if values is not None})
        if self._dust is not None:
            light: list[Any] = [None, None]
            for part, (age, component) in zip(self._parts, self._places, strict=True):
                terms, others = part(weights[:, age:], *where[type(part)]), light[component]
                light[component] = terms if others is None else [a + b for a, b in zip(others, terms, strict=True)]
            flux = self._dust([terms for terms in light if terms is not None], dust2, dust_index, dust1)
            return flux * (self._unit * 10**logmass)[:, None]
        first = self._parts[0]
        terms, dust = first(weights, *where[type(first)]), xp.asarray(dust2, dtype=weights.dtype)[:, None]
        for part in self._parts[1:]:
            terms = [one + other for one, other in zip(terms, part(weights, *where[type(part)]), strict=True)]
        flux = terms[-1]
        for term in terms[-2::-1]:
            flux = term - dust * flux
        flux = flux * xp.exp(-dust * as_like(self._curve, dust))
        return flux * (self._unit * 10**logmass)[:, None]

    def derived(self, theta: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return quantities that follow from theta (n, ndim), inside the prior.

        Returns
        -------
        dict of ndarray, each (n,)
            ``surviving_mass``: stars that are left, in Msun, with remnants if the source is FSPS.
            ``mass_weighted_age``: mean age of the mass formed, in Gyr. ``sfr_10``, ``sfr_100``: mean star formation
            rate over the last 10 and 100 Myr in Msun/yr (mass formed since over the whole time, also where the
            galaxy is younger). ``t50``, ``t90``: lookback times in Gyr at which half and 90 % of the mass had formed.

        Raises
        ------
        ValueError
            If a theta lies outside the prior.
        """
        theta = self._inside(theta)
        mass = 10 ** theta[:, self._columns["logmass"]]
        starts = range(0, len(theta), _ROWS)
        left = [self._surviving_fraction(theta[start : start + _ROWS]) for start in starts]
        formed = histories(self._sfh, {name: theta[:, k] for name, k in self._columns.items()})
        return {
            "surviving_mass": mass * np.concatenate([np.empty(0), *left]),
            "mass_weighted_age": formed.mass_weighted_age(),
            "sfr_10": mass * formed.formed_since(0.01) / 1e7,
            "sfr_100": mass * formed.formed_since(0.1) / 1e8,
            "t50": formed.lookback_of(0.5),
            "t90": formed.lookback_of(0.9),
        }

    def surviving_fraction(
        self, tage: NDArray[np.float64], tau: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of the mass formed that is left, at the metallicities between which it is linear.

        Parameters
        ----------
        tage, tau : ndarray, shape (n,)
            Ages and e-folding times in Gyr; the latter count for nothing where the history has none.

        Returns
        -------
        logzsol : ndarray, shape (node,)
        fraction : ndarray, shape (n, node)
        """
        weights = self._weights.smooth(tage, tau)
        nodes = self._living_nodes
        return nodes, np.stack([self._living(weights, np.full(len(tage), z))[0][:, 0] for z in nodes], axis=1)

    @property
    def log_age(self) -> NDArray[np.float64]:
        """log10 age/yr (age,) of the populations."""
        return self._weights.log_age

    @property
    def living(self) -> tuple[BinWeights, NDArray[np.float64], NDArray[np.float64]]:
        """Ages, metallicities (node,) and what is left of a solar mass (node, age) of the populations."""
        return self._weights.of_bins, self._living_nodes, self._living_fraction

    def _inside(self, theta: Any) -> Any:
        """Return theta with what it leaves to the model; refuse what lies outside the prior."""
        theta = at_zred(self.prior.names, theta, self.zred)
        low, high = as_like(self.prior.low, theta), as_like(self.prior.high, theta)
        outside = ((theta < low) | (theta > high)).any(-1)
        if outside.any():
            raise ValueError(f"theta: expected rows inside the prior, found {theta[outside][0]}")
        return theta

    def _surviving_fraction(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._living(self._weights(theta, np.float64), theta[:, self._columns["logzsol"]])[0][:, 0]

    def _compiled_spectra(self, compiled: ModuleType, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """As :meth:`spectra`, by :mod:`~digs_survey.sps.compiled_spectra`: each row by itself."""
        logmass, logzsol, dust, tage = (
            theta[:, self._columns[name]] for name in ("logmass", "logzsol", "dust2", "tage")
        )
        columns = {name: theta[:, column] for name, column in self._columns.items()}
        where = self._where(logzsol, columns)
        panels = [part.place(*where[type(part)]) for part in self._parts]
        shares = [part.shares(*where[type(part)]) for part in self._parts]
        single_shares = np.concatenate(shares, axis=1).astype(np.float32)
        single = [values.astype(np.float32) for values in (tage, 1 / self._weights.tau(theta), dust)]
        history, known, burst = self._weights.packed, self._weights.known(theta), self._weights.burst(columns)
        scale, out = self._unit * 10**logmass, np.empty((len(theta), len(self.grid)))
        behind: tuple[Any, ...] = self._packed_curve, *single
        if self._dust is not None:
            behind = self._places, self._dust.packed, *single[:2], self._dust.depths(columns)
        places, place = np.unique(np.stack(panels, axis=1), axis=0, return_inverse=True)
        for k, panel in enumerate(places):
            parts = tuple(self._packed_parts[p][where] for p, where in enumerate(panel))
            order = np.flatnonzero(place.ravel() == k)
            compiled.predict(history, parts, *behind, scale, single_shares, order, out, known, burst)
        return out

    @cached_property
    def _packed_curve(self) -> NDArray[np.float32]:
        return np.asarray(self._curve if self._dust is None else (), dtype=np.float32)

    @cached_property
    def _packed_parts(self) -> list[list[PackedPart]]:
        first, found = 0, []
        for part in self._parts:
            found.append(part.packed(first))
            first += part.share_count
        return found

    def _block(self, theta: Any) -> Any:
        # All that is large is computed in single precision.
        xp = namespace(theta)
        names = ("logmass", "logzsol", "dust2", "sigma_smooth", "dust_index", "dust1", *GAS)
        given = [name for name in names if name in self._columns]
        columns = xp.stack([theta[:, self._columns[name]] for name in given])
        return self.composite(self._weights(theta, xp.float32), **dict(zip(given, columns, strict=True)))


def model_populations(model: ModelConfig, prior: Prior, wavelength: NDArray[np.float64]) -> SSPGrid:
    """Read the populations of the configured source that a model and its ranges need."""
    if model.source == "fsps":
        from digs_survey.sps.fsps_grid import read_fsps

        return read_fsps(gas_logu=model.gas_logu, nebular=model.nebular, free_gas=gas_ranges(model, prior))
    return bc03_populations(model, prior, wavelength)


def _onto_grid(spectra: NDArray[np.floating], ways: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Bring spectra (node, age, wavelength) onto the grid, by each way: (node, age, way * element)."""
    return np.concatenate([spectra @ way for way in ways], axis=2)


def _seen(matrix: NDArray[np.float64], least: float = _UNSEEN) -> NDArray[np.bool_]:
    """Which entries (wavelength, element) are more than a share of the largest of their element."""
    return np.asarray(np.abs(matrix) > least * np.abs(matrix).max(axis=0))


def _terms(offset: NDArray[np.float64], dust2: float, tolerance: float) -> int:
    """Return how many powers of the attenuation's offset within an element the largest ``dust2`` needs."""
    largest = dust2 * float(np.abs(offset).max())
    for terms in range(1, _MOST_TERMS):
        if largest**terms / math.factorial(terms) < tolerance:
            return terms
    return _MOST_TERMS
