r"""Gas of a metallicity and an ionisation parameter of its own on a catalog's grid, summed with weights.

A galaxy's gas is a sum over ages of weights of the populations, times their ionising photons, times the emission for a
photon. The emission is a sum of few terms, each the product of

- a function of the ages,
- a function of the gas: metallicity, log U and, where it is free, the line spread,
- a spectrum on the grid.

So the cost for a galaxy does not grow with the nodes of the gas: a galaxy's functions of the gas are interpolated, and
the rest are products of small matrices, those of :class:`~digs_survey.sps.parts.SpreadPart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from digs_survey.sps.arrays import as_like, namespace
from digs_survey.sps.free_gas import FreeGas
from digs_survey.sps.parts import (
    SpreadPanel,
    SpreadPart,
    chebyshev_terms,
    directions,
    even_shares,
    importance,
    inside,
    place_in,
    products_of,
)

if TYPE_CHECKING:
    from digs_survey.sps.compiled_spectra import PackedPart

__all__ = ["GasPart"]

_RESIDUE = 5e-7
"""Share of the emission that sums of fewer functions may leave out."""
_SAMPLED = 40
"""Nodes of the gas that say which elements are faint."""


class GasPart(SpreadPart):
    """Emission of gas, whose weights are those of the stars times their ionising photons.

    Parameters
    ----------
    log_z : ndarray, shape (node,)
        Of the stars.
    gas : FreeGas
    ages : slice
        Which of the gas's ages the part has.
    powers : int
        Of the attenuation's offset.
    spread : (sequence of ndarray, ndarray), optional
        Nodes and edges of the panels of line spreads, as of :class:`~digs_survey.sps.parts.SpreadPart`.
    """

    def __init__(
        self,
        log_z: NDArray[np.float64],
        gas: FreeGas,
        ages: slice,
        powers: int,
        spread: tuple[Sequence[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    ) -> None:
        nodes, edges = spread or ([np.zeros(1)], np.array([-1.0, 1.0]))
        super().__init__(log_z, 1, nodes, edges, powers)
        self._photons, self._axes = gas.photons[:, ages], gas.axes()
        self._functions: list[NDArray[np.float64]] = [np.empty(0)] * len(self.spread_nodes)
        """Of each panel of line spreads (term, gas metallicity, ionisation, function)."""

    def fill(self, spread: int, rows: NDArray[np.floating]) -> None:
        """Take the emission (spread node, gas node, age, power * element) of one panel of line spreads."""
        self.ages = rows.shape[2]
        place = inside(self.spread_nodes[spread], *self.spread_edges[spread : spread + 2])
        to_terms = np.linalg.inv(chebvander(place, len(place) - 1))
        of_ages, functions, terms, factors = _products(rows, to_terms, self._powers)
        self._functions[spread] = functions.reshape(len(place), *(axis.nodes.size for axis in self._axes), -1)
        for panel in range(len(self.edges) - 1):
            histories = self._photons[panel : panel + 2, :, None] * of_ages
            self.panels[panel * len(self.spread_nodes) + spread] = SpreadPanel(
                histories.reshape(-1, of_ages.shape[1]).astype(np.float32), terms, factors
            )

    @property
    def share_count(self) -> int:
        """How many columns :meth:`shares` has."""
        return self.nodes + max(functions.shape[-1] for functions in self._functions)

    def place(self, logzsol: Any, *gas: Any) -> Any:
        """Return which panel each metallicity of the stars, and log sigma where there is one, (n,) lies in."""
        panel = place_in(self.edges, logzsol)[0] * len(self.spread_nodes)
        return panel + place_in(self.spread_edges, gas[2])[0] if len(gas) > 2 else panel

    def _of_rest(self, *gas: Any) -> Any:
        """Functions (n, function) of metallicity and log U of the gas, and of log sigma where it is free."""
        gas_logz, gas_logu, *log_sigma = gas
        xp = namespace(gas_logz)
        found = xp.zeros_like(gas_logz)[:, None] + as_like(np.zeros(self.share_count - self.nodes), gas_logz)
        panel = place_in(self.spread_edges, log_sigma[0])[0] if log_sigma else xp.zeros_like(gas_logz)
        for k, functions in enumerate(self._functions):
            (chosen,) = xp.where(panel == k)
            if len(chosen):
                of_sigma = [
                    chebyshev_terms(inside(one[chosen], *self.spread_edges[k : k + 2]), len(self.spread_nodes[k]))
                    for one in log_sigma
                ]
                values = self._evaluated(functions, gas_logz[chosen], gas_logu[chosen], *of_sigma)
                found[chosen, : functions.shape[-1]] = values
        return found

    def _evaluated(self, functions: NDArray[np.float64], gas_logz: Any, gas_logu: Any, of_sigma: Any = None) -> Any:
        table, total = as_like(functions, gas_logz), 0.0
        of_z, of_u = (
            (axis, place_in(axis.edges, values)[0], even_shares(axis.edges, axis.degree + 1, values))
            for axis, values in (
                # Beyond its nodes the table is that of the last.
                (axis, namespace(values).clip(values, axis.edges[0], axis.edges[-1]))
                for axis, values in zip(self._axes, (gas_logz, gas_logu), strict=True)
            )
        )
        for d, of_term in enumerate(table):
            for i in range(of_z[0].degree + 1):
                for j in range(of_u[0].degree + 1):
                    share = of_z[2][:, i] * of_u[2][:, j]
                    if of_sigma is not None:
                        share = share * of_sigma[:, d]
                    at = of_term[of_z[1] * of_z[0].degree + i, of_u[1] * of_u[0].degree + j]
                    total = total + share[:, None] * at
        return total

    def packed(self, first_share: int) -> list[PackedPart]:
        """As :meth:`Part.packed`; parts that differ in the stars alone share their matrices."""
        from digs_survey.sps.compiled_spectra import pack_part, padded

        made: dict[int, PackedPart] = {}
        found = []
        for k, panel in enumerate(self.panels):
            spread = k % len(self.spread_nodes)
            if spread not in made:
                made[spread] = pack_part(
                    first_share, self.nodes, self.ages, panel.factors, panel.histories, panel.terms
                )
            found.append(made[spread]._replace(histories=padded(panel.histories.T)))
        return found


def _products(
    rows: NDArray[np.floating], to_terms: NDArray[np.float64], powers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], Any]:
    """Functions of the ages (age, sum), of the gas (term * node, function), how many sums count, and factors.

    Of emission (spread node, gas node, age, power * element). ``to_terms`` (term, spread node) makes a polynomial's
    terms of its values at the nodes.
    """
    spreads, _, ages, width = rows.shape
    of_element = np.tile(importance(_samples(rows)[..., : width // powers]), powers)
    wide = rows * of_element
    squares = np.zeros((ages, ages))
    for one in wide.reshape(-1, ages, width):
        squares += one @ one.T
    allowed = _RESIDUE * float(np.sqrt(np.trace(squares)))
    of_ages = directions(squares, allowed)
    sums = np.tensordot(to_terms, of_ages.T @ wide, 1).reshape(-1, of_ages.shape[1], width)
    del wide
    flat = sums.reshape(len(sums), -1)
    functions = directions(flat @ flat.T, allowed)
    core = np.tensordot(functions.T, sums, 1)
    # Of each function the leading sums, so that all that are left out together are no more than is allowed.
    beyond = np.cumsum(np.square(core).sum(axis=2)[:, ::-1], axis=1)[:, ::-1]
    terms = (beyond > allowed**2 / len(core)).sum(axis=1)
    chosen = np.concatenate([of_function[:count] for of_function, count in zip(core, terms, strict=True)])
    return of_ages[:, : terms.max()], functions, terms, products_of(chosen, of_element, powers)


def _samples(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Emission (spread node, population, power * element) of some nodes, each over its mean."""
    some = rows[:, :: -(-rows.shape[1] // _SAMPLED)].reshape(rows.shape[0], -1, rows.shape[3]).astype(float)
    size = np.abs(some).mean(axis=2, keepdims=True)
    return np.asarray(some / np.where(size == 0, 1.0, size))
