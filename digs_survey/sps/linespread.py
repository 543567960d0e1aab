r"""How wide the light of one wavelength is in a spectrum: the three kinds of line-spread function.

All are Gaussians in velocity, :math:`s(\lambda) = \sigma_v / c = 1 / (2.3548\,R(\lambda))` wide in
:math:`\ln\lambda`, where R is wavelength over full width at half maximum. (Prospector's ``smoothtype="R"`` means
wavelength over sigma: 350 km/s is 857 there, and R = 364 here; R = 100 is 1273 km/s.) They come on top of the
resolution that the populations already have, 2.5 Angstrom FWHM in the optical for MILES (Falcón-Barroso et al. 2011,
A&A 532, A95); the widths add in quadrature.

A constant width is smoothed by Prospector. A tabulated one is not: ``smooth_lsf_fft`` picks the spectrum at two
points per sigma, between which the lines of a young galaxy get lost (errors beyond 100 %), and even with 64 points it
gives a line up to 1 % too much or too little flux. The matrices here share out the light of each wavelength instead,
so that a line keeps its flux however fast R changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.sparse import csr_array, vstack
from scipy.special import ndtr

from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import C_KMS, WavelengthGrid, air_to_vacuum

__all__ = ["FWHM", "REACH", "TabulatedSpread", "check_line_spread", "constant_sigma_kms", "describe"]

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian of unit sigma, 2.3548."""
REACH = 8.0
"""Sigma beyond which a Gaussian has no light: 1e-15 of it."""
_NOTHING = 1e-14
"""Share of an element's largest weight below which a weight is left out."""


def constant_sigma_kms(model: ModelConfig) -> float:
    """Return the sigma in km/s of a line-spread function that is constant in velocity."""
    return C_KMS / (FWHM * model.resolving_power) if model.line_spread == "resolving_power" else model.smoothing_kms


def describe(model: ModelConfig, prior: Prior) -> str:
    """Say in a few words how a model smooths its spectra."""
    if bounds := prior.bounds("sigma_smooth"):
        return f"smoothed by σ = {bounds[0]:g} to {bounds[1]:g} km/s (sigma_smooth)"
    if model.line_spread == "velocity":
        return f"smoothed by σ = {model.smoothing_kms:g} km/s"
    if model.line_spread == "resolving_power":
        return f"smoothed to λ/FWHM = {model.resolving_power:g}"
    power = model.line_spread_resolving_power
    return f"smoothed by a tabulated line-spread function, λ/FWHM = {min(power):g} to {max(power):g}"


def check_line_spread(model: ModelConfig, grid: WavelengthGrid) -> None:
    """Refuse a tabulated line-spread function that does not cover a rest-frame grid.

    Raises
    ------
    ConfigError
        Naming the range of the table, and of the grid at ``model.zred``.
    """
    if model.line_spread != "table":
        return
    edges = air_to_vacuum(grid.edges) if grid.medium == "air" else grid.edges
    low, high = edges[[0, -1]] * (1 + model.zred)
    first, last = model.line_spread_angstrom[0], model.line_spread_angstrom[-1]
    if not first <= low < high <= last:
        raise ConfigError(
            f"model.line_spread_angstrom: expected to cover the grid, {low:.1f} to {high:.1f} Angstrom in the observed "
            f"frame of model.zred = {model.zred:g}, found {first:g} to {last:g}"
        )


class TabulatedSpread:
    """A Gaussian in velocity whose width follows a table of resolving powers.

    Parameters
    ----------
    model : ModelConfig
        Its table is in the observed frame of ``model.zred``, in vacuum; wavelengths here are in the rest frame.
        Between the entries R is a monotone cubic (a kink in R would show in the continuum), beyond them constant.

    Notes
    -----
    As in Prospector's smoothing in velocity it is f_nu that is convolved: per unit of ln(wavelength) the light of a
    line is centred s**2 to the blue. So a table of constant R is that ``resolving_power``, but for a factor
    exp(s**2 / 2), 1e-4 at R = 30, because here a line keeps its flux exactly. As light is conserved, a continuum
    changes where R does, by about half the second derivative of s**2: 0.2 % at most for NIRSpec's prism.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._wavelength = np.array(model.line_spread_angstrom) / (1 + model.zred)
        self._power = PchipInterpolator(self._wavelength, model.line_spread_resolving_power)
        self.widest = 1 / (FWHM * min(model.line_spread_resolving_power))

    def sigma(self, wavelength: ArrayLike) -> NDArray[np.float64]:
        """Width s of the light of each rest-frame wavelength (Angstrom), in ln(wavelength)."""
        return 1 / (FWHM * self._power(np.clip(wavelength, self._wavelength[0], self._wavelength[-1])))

    def element_matrix(self, nodes: NDArray[np.float64], edges: NDArray[np.float64]) -> csr_array:
        """Matrix (element, node) from f_lambda at log-spaced nodes to its smoothed mean over each element."""
        below = (ndtr(offset) for offset in self._offsets(nodes, edges))
        shares = (high - low for low, high in pairwise(below))
        return _matrix(nodes, (share / width for share, width in zip(shares, np.diff(edges), strict=True)))

    def point_matrix(self, nodes: NDArray[np.float64], points: NDArray[np.float64]) -> csr_array:
        """Matrix (point, node) from f_lambda at log-spaced nodes to its smoothed value at each point."""
        profiles = (np.exp(-0.5 * offset**2) for offset in self._offsets(nodes, points))
        area = math.sqrt(2 * math.pi) * self.sigma(nodes)
        return _matrix(nodes, (profile / (area * at) for profile, at in zip(profiles, points, strict=True)))

    def _offsets(self, nodes: NDArray[np.float64], wavelength: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
        """Yield the distance (node,) of each wavelength from the centre of each node's light, in its sigma."""
        sigma = self.sigma(nodes)
        return (np.log(at / nodes) / sigma + sigma for at in wavelength)


def _matrix(nodes: NDArray[np.float64], rows: Iterable[NDArray[np.float64]]) -> csr_array:
    light = nodes * (np.log(nodes[-1] / nodes[0]) / (nodes.size - 1))
    return vstack([csr_array(np.where(row > _NOTHING * row.max(), row * light, 0.0)[None]) for row in rows], "csr")
