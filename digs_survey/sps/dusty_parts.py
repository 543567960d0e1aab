"""Populations on a catalog's grid for an :class:`~digs_survey.sps.element_dust.ElementDust`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from digs_survey.config import ModelConfig
from digs_survey.prior import Prior
from digs_survey.sps.dust import clouded
from digs_survey.sps.element_dust import ElementDust
from digs_survey.sps.free_gas import FreeGas, gas_rows
from digs_survey.sps.gas_parts import GasPart
from digs_survey.sps.grid import SSPGrid
from digs_survey.sps.onto_grid import OntoGrid
from digs_survey.sps.parts import Part, SpreadPart
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.spread import TOLERANCE, spread_nodes

__all__ = ["DustyPart", "dusty_parts"]

_TOLERANCE = 0.1 * TOLERANCE
"""Of the attenuation within an element."""
_NOTHING = 1e-13
"""Share of an element's largest weight below which a weight is left out."""
_Cut = tuple[int, tuple[NDArray[np.float64], int], slice, int]


class DustyPart(NamedTuple):
    """Stars, gas or both, of some ages.

    Attributes
    ----------
    part : Part, SpreadPart or GasPart
    first_age : int
        Its first population.
    component : int
        0 before the diffuse dust alone, 1 in birth clouds too.
    """

    part: Part | SpreadPart | GasPart
    first_age: int
    component: int


def dusty_parts(
    populations: SSPGrid, sampling: GridSampling, model: ModelConfig, prior: Prior
) -> tuple[ElementDust, list[DustyPart], float]:
    """Bring populations onto the grid.

    Parameters
    ----------
    populations : SSPGrid
    sampling : GridSampling
    model : ModelConfig
    prior : Prior

    Returns
    -------
    dust : ElementDust
    parts : list of DustyPart
        Those of component 0 first.
    unit : float
        The flux, in Lsun/Angstrom/Msun, that is 1 in the parts: in single precision smaller ones would be lost.
    """
    wavelength, spread = populations.wavelength, prior.bounds("sigma_smooth")
    widest = _sparse(sampling.matrix(wavelength)) if spread is None else sampling.matrix_at(wavelength, spread[1])
    dust = ElementDust(model, prior, wavelength, widest, _TOLERANCE)
    if spread is None:
        onto_grid = _onto_grid(populations, dust, widest)
        light = _light(populations, onto_grid)
        unit = _unit(light[0], dust)
        made = [
            DustyPart(Part(*nodes, light[kind][:, ages] / unit, dust.powers), ages.start, component)
            for kind, nodes, ages, component in _cut(populations, dust.two)
        ]
        gas = _gas(populations, dust)
        _fill(gas, 0, populations.free_gas, [onto_grid], unit)
        return dust, _ordered(made, gas), unit
    panels, edges = spread_nodes(populations, sampling, *spread)
    cut, unit = _cut(populations, dust.two), 0.0
    parts = [SpreadPart(*nodes, panels, edges, dust.powers) for _, nodes, _, _ in cut]
    gas = _gas(populations, dust, (panels, edges))
    for i, panel in enumerate(panels):
        grids = [_onto_grid(populations, dust, sampling.matrix_at(wavelength, sigma)) for sigma in np.exp(panel)]
        smoothed = [_light(populations, onto_grid) for onto_grid in grids]
        unit = unit or _unit(smoothed[0][0], dust)
        for part, (kind, _, ages, _) in zip(parts, cut, strict=True):
            part.fill(i, np.stack([light[kind][:, ages] for light in smoothed]) / unit)
        _fill(gas, i, populations.free_gas, grids, unit)
    made = [DustyPart(part, ages.start, component) for part, (_, _, ages, component) in zip(parts, cut, strict=True)]
    return dust, _ordered(made, gas), unit


def _ordered(made: list[DustyPart], gas: list[tuple[GasPart, slice, int]]) -> list[DustyPart]:
    """All parts, those of component 0 first."""
    more = [DustyPart(part, ages.start, component) for part, ages, component in gas]
    return sorted([*made, *more], key=lambda part: part.component)


def _sparse(matrix: NDArray[np.float64]) -> csr_array:
    """Return a matrix (wavelength, element) without what is nothing but rounding."""
    matrix[np.abs(matrix) < _NOTHING * matrix.max(axis=0)] = 0
    return csr_array(matrix)


def _onto_grid(populations: SSPGrid, dust: ElementDust, matrix: csr_array) -> OntoGrid:
    """Return the ways to the grid, one for each term of the attenuation, of a matrix (wavelength, element)."""
    factor = populations.lnu_factor()[:, None]
    return OntoGrid([csr_array(way.multiply(factor)) for way in dust.ways(matrix)])


def _light(populations: SSPGrid, onto_grid: OntoGrid) -> list[NDArray[np.float32]]:
    """Stars and gas (node, age, term * piece), together or apart."""
    stars, gas = onto_grid(populations.spectra), onto_grid(populations.nebular)
    if not populations.gas_follows_stars:
        return [stars, gas]
    stars[:, : gas.shape[1]] += gas
    return [stars]


def _fill(
    parts: list[tuple[GasPart, slice, int]], spread: int, gas: FreeGas | None, grids: list[OntoGrid], unit: float
) -> None:
    """Fill one panel of line spreads of parts of free gas, by the ways to the grid of its nodes."""
    if gas is None:
        return
    glow = gas_rows(gas, grids) / unit
    for part, ages, _ in parts:
        part.fill(spread, glow[:, :, ages])


def _gas(populations: SSPGrid, dust: ElementDust, spread: Any = None) -> list[tuple[GasPart, slice, int]]:
    """Parts of free gas, with their ages and component; none without it."""
    if (free := populations.free_gas) is None:
        return []
    young = clouded(populations.log_age) if dust.two else 0
    ages = range(free.photons.shape[1])
    spans = [(0, slice(young, None)), (1, slice(0, young))]
    return [
        (GasPart(populations.log_z, free, span, dust.powers, spread), span, component)
        for component, span in spans
        if ages[span]
    ]


def _cut(populations: SSPGrid, two: bool) -> list[_Cut]:
    """Parts: where their light stands in that of :func:`_light`, nodes and degree, ages, component."""
    kinds = [(populations.log_z, 1, populations.log_age.size)]
    if not populations.gas_follows_stars:
        kinds.append((populations.gas_log_z, populations.gas_degree, populations.nebular.shape[1]))
    young = clouded(populations.log_age) if two else 0
    spans = [(0, slice(young, None)), (1, slice(0, young))]
    return [
        (kind, (log_z, degree), ages, component)
        for component, ages in spans
        for kind, (log_z, degree, count) in enumerate(kinds)
        if range(count)[ages]
    ]


def _unit(stars: NDArray[np.float32], dust: ElementDust) -> float:
    return float(np.median(stars[..., : dust.elements]))
