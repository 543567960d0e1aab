"""Galaxies of bagpipes itself (Carnall et al. 2018, MNRAS 480, 4379) on the grids that it shares with ``bc03``.

Only tests and the figures of docs/fidelity.md import it (GPL-3.0); the package reads its data and no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from references import METALLICITIES, as_tabulated, sphere

from digs_survey.config import ModelConfig
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.prospector import ProspectorSimulator

AIR = WavelengthGrid(np.arange(3060.0, 9911.0, 50.0), medium="air")
"""The paper's elements, in air as bagpipes has all wavelengths."""
PRIOR = Prior({"logzsol": (-2.0, 0.6), "dust2": (0.0, 2.0), "tage": (0.01, 13.8)})
"""With dust, metallicities and ages beyond those of the presets."""
_FULL_GAS = 10**-1.55 * (1 - 1e-9)
"""bagpipes' t_bc in Gyr with which gas shines around all populations of the Cloudy grids: the end of their last bin."""


def galaxies(count: int = 200, *, at_nodes: bool = True) -> np.ndarray:
    """Theta (n, 5) all over the prior, ages from 0.01 to 13 Gyr evenly in log; metallicities up to 2.5 Zsun."""
    rng = np.random.default_rng(7)
    theta = PRIOR.from_unit_cube(rng.random((count, PRIOR.ndim)))
    theta[:, PRIOR.index("tage")] = 10 ** rng.uniform(-2, np.log10(13), count)
    nodes = METALLICITIES[1:6]
    metallicity = rng.choice(nodes, count) if at_nodes else nodes[0] * (nodes[-1] / nodes[0]) ** rng.random(count)
    theta[:, PRIOR.index("logzsol")] = np.log10(metallicity)
    return theta


class Galaxies(NamedTuple):
    """What bagpipes says of n galaxies."""

    flux: np.ndarray
    """Spectra (n, element) in erg/s/Angstrom."""
    weights: np.ndarray
    """Solar masses (n, age) in each of the file's simple populations for one solar mass formed."""
    living: np.ndarray
    """Share (n,) of the formed mass in living stars."""
    lines: np.ndarray
    """Fluxes (n, line) of the emission lines in erg/s after dust."""


@contextmanager
def bagpipes_settings(**values: Any) -> Iterator[None]:
    """Set variables of bagpipes' configuration, which are global, and put them back."""
    from bagpipes import config

    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def fine_ages(step: float = 0.02, shift: float = 1e-5) -> dict[str, np.ndarray]:
    """bagpipes' age bins at steps of ``step`` dex instead of 0.1.

    ``shift``, in dex, moves the edges off the points at which bagpipes samples the history (every 0.0025 dex). Those
    of its own bins fall on them, so that half a sample counts in the next bin.
    """
    from bagpipes import utils

    last = utils.cosmo.age(0).value * 1e9
    ages = np.arange(6.0, np.log10(last), step)
    edges = np.append(10 ** (ages - step / 2 + shift), last)
    edges[0] = 0.0
    return {"age_sampling": 10**ages, "age_bins": edges, "age_widths": np.diff(edges)}


def bagpipes_galaxies(theta: np.ndarray, grid: WavelengthGrid, *, nebular: bool = True, **settings: Any) -> Galaxies:
    """Galaxies of theta (n, 5) as bagpipes predicts them: redshift 0, sigma 350 km/s, gas_logu -2, grid in air.

    bagpipes samples spectra at single points; at its usual R = 1000 it would miss what lies between them.
    """
    assert grid.medium == "air"
    import bagpipes

    step = float(np.diff(grid.wavelength)[0])
    extra = int(np.ceil(500 / step))
    first = grid.wavelength[0] - extra * step
    wide = first + step * np.arange(len(grid) + 2 * extra)
    found: list[tuple[np.ndarray, ...]] = []
    with bagpipes_settings(R_spec=5000.0, max_redshift=0.01, **settings):
        components = [_components(row, nebular) for row in theta]
        galaxy = bagpipes.model_galaxy(components[0], spec_wavs=wide)
        to_ages = _bins_to_ages(galaxy.stellar)
        for row in components:
            galaxy.update(row)
            formed = 10 ** row["delayed"]["massformed"]
            found.append(
                (
                    galaxy.spectrum[extra:-extra, 1].copy(),
                    to_ages @ galaxy.sfh.ceh.grid.sum(axis=0) / formed,
                    10**galaxy.sfh.stellar_mass / formed,
                    np.array(list(galaxy.line_fluxes.values())),
                )
            )
    return Galaxies(*(np.array(part) for part in zip(*found, strict=True)))


def _components(row: np.ndarray, nebular: bool) -> dict[str, Any]:
    logmass, logzsol, dust2, tage, logtau = row
    components: dict[str, Any] = {
        "redshift": 0.0,
        "t_bc": _FULL_GAS,
        "veldisp": 350.0,
        "delayed": {"age": tage, "tau": 10**logtau, "massformed": logmass, "metallicity": 10**logzsol},
        "dust": {"type": "Calzetti", "Av": 2.5 * np.log10(np.e) * dust2, "eta": 1.0},
    }
    if nebular:
        components["nebular"] = {"logU": -2.0}
    return components


def _bins_to_ages(stellar: Any) -> np.ndarray:
    """Matrix (age, bin) of bagpipes' average of the populations over its age bins."""
    from bagpipes import config

    count = config.raw_stellar_ages.size

    class Identity:
        wavelengths = np.arange(count)

    each = np.broadcast_to(np.eye(count)[:, None], (count, METALLICITIES.size, count))
    return type(stellar)._resample_in_age(Identity, each)[:, 0]


class ReplayedWeights:
    """Stands where :class:`~digs_survey.sps.history.AgeQuadrature` does, and hands out the given weights row by row.

    Parameters
    ----------
    weights : array, shape (n, age)
        Of all populations in the file; ``ages`` of them, the one of age 0 left out, are those of the basis.
    """

    def __init__(self, weights: np.ndarray, ages: int) -> None:
        rows = weights[:, 1:].copy()
        rows[:, 0] += weights[:, 0]
        assert np.abs(rows[:, ages:]).max(initial=0) < 1e-12, "the basis lacks ages that have stars"
        self._rows = iter(rows[:, :ages])

    def __call__(self, rate: Any, tage: float) -> np.ndarray:
        return next(self._rows)


@contextmanager
def replayed(simulator: ProspectorSimulator, weights: np.ndarray) -> Iterator[None]:
    """Have a simulator compose its next galaxies, in order, with bagpipes' weights of the ages."""
    basis = simulator.sps
    ages, basis._ages = basis._ages, ReplayedWeights(weights, basis.grid.log_age.size)
    try:
        yield
    finally:
        basis._ages = ages


def luminosities(simulator: ProspectorSimulator, theta: np.ndarray) -> np.ndarray:
    """Our spectra (n, element) in bagpipes' unit, erg/s/Angstrom."""
    return simulator.spectra(theta) * sphere(simulator.config.zred)


def simulator(**model: Any) -> ProspectorSimulator:
    """The source bc03 behind Prospector on bagpipes' elements, with the gas as it is in the files."""
    return as_tabulated(ProspectorSimulator(ModelConfig(**model), PRIOR, AIR))


def percent(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Residual in percent of theirs."""
    return 100 * (ours / theirs - 1)
