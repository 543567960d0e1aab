"""Gas whose metallicity and ionisation parameter are parameters of their own.

What gas shines with is proportional to the stars' rate of ionising photons. A table has its emission for each of these
photons, at nodes of the gas's metallicity, of log U and of the stars' age. Between the nodes ``bc03`` is linear and
FSPS exponential: there the logarithm of the continuum at each wavelength, and of each line, is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from digs_survey.config import ModelConfig
from digs_survey.config.gas import GAS, check_gas
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.sps.onto_grid import OntoGrid

__all__ = ["FreeGas", "GasAxis", "GasRanges", "check_gas_coverage", "gas_ranges", "gas_rows", "nodes_around"]

_LN_10 = float(np.log(10))
_DEGREE = 5
"""Of the polynomials that stand for exponentials between two nodes."""
_BEYOND = 0.03
"""How far in dex a prior may reach beyond the tables, where the gas is that of their ends: FSPS's begin at -1.98."""
_TOGETHER = 16
"""Nodes of the gas that are brought onto the grid together."""


class GasRanges(NamedTuple):
    """Least and largest log10 Z/Zsun and log10 U of gas that is not the model's own."""

    gas_logz: tuple[float, float]
    gas_logu: tuple[float, float]


def gas_ranges(model: ModelConfig, prior: Prior) -> GasRanges | None:
    """Return the ranges of a prior's gas; None where it has the stars' metallicity and the model's log U.

    Raises
    ------
    ConfigError
        If the model cannot have the prior's parameters.
    """
    check_gas(model, prior.names)
    given = [prior.bounds(name) for name in GAS]
    if given == [None, None]:
        return None
    return GasRanges(given[0] or prior.bounds("logzsol") or (0.0, 0.0), given[1] or (model.gas_logu,) * 2)


def check_gas_coverage(prior: Prior, covered: GasRanges, source: str) -> None:
    """Refuse a prior that reaches beyond the tables of the gas.

    Raises
    ------
    ConfigError
        Naming the parameter, what the source covers and what was found.
    """
    for name, (low, high) in zip(GAS, covered, strict=True):
        found = prior.bounds(name)
        if found and not low - _BEYOND <= found[0] <= found[1] <= high + _BEYOND:
            raise ConfigError(
                f"prior.{name}: the gas of source {source!r} covers {low:.4g} to {high:.4g}, "
                f"found {found[0]:g} to {found[1]:g}"
            )


class GasAxis(NamedTuple):
    """Nodes of the gas in one parameter: panels between ``edges`` (panel + 1,), and so many equal steps in each."""

    edges: NDArray[np.float64]
    degree: int

    @property
    def nodes(self) -> NDArray[np.float64]:
        """All nodes (node,)."""
        panels = [np.linspace(low, high, self.degree + 1) for low, high in pairwise(self.edges)]
        return np.concatenate([panels[0][:1], *(panel[1:] for panel in panels)])


@dataclass(frozen=True, eq=False)
class FreeGas:
    """Emission of gas for each ionising photon of the stars.

    Attributes
    ----------
    log_z : ndarray, shape (gas metallicity,)
        Nodes of log10 Z/Zsun, increasing.
    log_u : ndarray, shape (ionisation,)
        Nodes of log10 U, increasing.
    photons : ndarray, shape (metallicity, young age)
        Ionising photons of each solar mass of stars, at their own metallicities, in any unit. Between two
        metallicities they are linear in log10 Z, as the stars are.
    emission : ndarray, shape (gas metallicity, ionisation, young age, wavelength)
        Continuum and lines in Lsun/Angstrom for each unit of photons; with ``profiles``, log10 of the continuum alone.
    lines : ndarray, shape (gas metallicity, ionisation, young age, line)
        Luminosities of the lines in Lsun for each unit of photons; with ``profiles``, log10 of them.
    profiles : csr_array, shape (wavelength, line), optional
        Of the lines in 1/Angstrom.
    """

    log_z: NDArray[np.float64]
    log_u: NDArray[np.float64]
    photons: NDArray[np.float64]
    emission: NDArray[np.floating]
    lines: NDArray[np.floating]
    profiles: csr_array | None = None

    def axes(self) -> tuple[GasAxis, GasAxis]:
        """Return nodes of metallicity and log U through which polynomials meet the table to better than 0.1 %."""
        degree = 1 if self.profiles is None else _DEGREE
        return GasAxis(self.log_z, degree), GasAxis(self.log_u, degree)

    def within(self, ranges: GasRanges) -> FreeGas:
        """Return the part of the table that is needed in some ranges."""
        z, u = (nodes_around(nodes, *ends) for nodes, ends in zip((self.log_z, self.log_u), ranges, strict=True))
        return replace(
            self, log_z=self.log_z[z], log_u=self.log_u[u], emission=self.emission[z, u], lines=self.lines[z, u]
        )

    def spectra(self, gas_logz: float, gas_logu: float) -> NDArray[np.floating]:
        """Spectra (young age, wavelength) in Lsun/Angstrom for each unit of photons."""
        emission = self._between(self.emission, gas_logz, gas_logu)
        if self.profiles is None:
            return emission
        return emission + np.asarray((self.profiles @ self.luminosities(gas_logz, gas_logu).T).T)

    def luminosities(self, gas_logz: float, gas_logu: float) -> NDArray[np.floating]:
        """Luminosities (young age, line) in Lsun for each unit of photons."""
        return self._between(self.lines, gas_logz, gas_logu)

    def _between(self, table: NDArray[np.floating], gas_logz: float, gas_logu: float) -> NDArray[np.floating]:
        (z, of_z), (u, of_u) = _share(self.log_z, gas_logz), _share(self.log_u, gas_logu)
        poor, rich = ((1 - of_u) * one[u] + of_u * one[u + 1] for one in (table[z], table[z + 1]))
        mean = (1 - of_z) * poor + of_z * rich
        return mean if self.profiles is None else np.exp(_LN_10 * mean)


def gas_rows(gas: FreeGas, grids: Sequence[OntoGrid]) -> NDArray[np.float32]:
    """Emission of a unit of photons on grids (grid, node, young age, column), the nodes of log U innermost.

    Parameters
    ----------
    gas : FreeGas
    grids : sequence of OntoGrid
        One for each line spread.
    """
    of_z, of_u = (axis.nodes for axis in gas.axes())
    points = [(z, u) for z in of_z for u in of_u]
    found: list[list[NDArray[np.float32]]] = [[] for _ in grids]
    for start in range(0, len(points), _TOGETHER):
        spectra = np.stack([gas.spectra(*point) for point in points[start : start + _TOGETHER]])
        for rows, onto_grid in zip(found, grids, strict=True):
            rows.append(onto_grid(spectra))
    return np.stack([np.concatenate(rows) for rows in found])


def nodes_around(nodes: NDArray[np.float64], low: float, high: float) -> slice:
    """Nodes that values between two ends are interpolated in: two or more."""
    first = min(max(int(np.searchsorted(nodes, low, side="right")) - 1, 0), nodes.size - 2)
    return slice(first, max(int(np.searchsorted(nodes, high, side="left")) + 1, first + 2))


def _share(nodes: NDArray[np.float64], value: Any) -> tuple[int, float]:
    """Return the lower node of a value and the share of the upper one."""
    lower = min(max(int(np.searchsorted(nodes, value, side="right")) - 1, 0), nodes.size - 2)
    return lower, float(np.clip((value - nodes[lower]) / (nodes[lower + 1] - nodes[lower]), 0, 1))
