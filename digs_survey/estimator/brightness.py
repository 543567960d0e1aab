r"""The amplitude of a spectrum, and its shape: what of it does not change with the amplitude.

Both are in dex. With :math:`f` the flux of an element in a unit near the training spectra's:

- log10: :math:`y = \log_{10} f`, amplitude :math:`a = \langle y \rangle` over the elements;
- asinh: :math:`y = \ell(f, b)` with
  :math:`\ell(f, b) = \mathrm{asinh}(f / b) / \ln 10 + \log_{10}(b / 2)`, which is :math:`\log_{10} f` for
  :math:`f \gg b`, linear for :math:`|f| \ll b`, and defined for negative flux (the magnitudes of
  Lupton, Gunn & Szalay 1999, AJ 118, 1406). The softening is the noise that a spectrum of amplitude
  :math:`A` has in the element, :math:`b^2 = b_0^2 + (s A)^2`, and :math:`A = 10^a`,
  :math:`a = \ell(F, B)`, comes from the mean flux :math:`F`, weighted for the least noise,
  which :math:`B` is for faint spectra.

The shape is :math:`y - a`. A spectrum that is c times as bright has the same shape and an amplitude that is
larger by :math:`\log_{10} c`: always in log10, and in asinh if :math:`b_0` and :math:`B` are left out, as where noise
scales with the flux.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digs_survey.estimator.robust import GAUSSIAN_MEDIAN

__all__ = ["AsinhFlux", "LogFlux"]

_FAINTEST, _BRIGHTEST = 1e-20, 1e20
_SOFTEST = 1e-9
"""Least softening; with the bound on the flux it keeps asinh within single precision."""
_TAIL = 0.1
"""Share of the training spectra, by amplitude, that are faint or bright."""


class LogFlux(nn.Module):
    """log10 of the flux."""

    def fit(self, noisy: NDArray[np.float64], flux: NDArray[np.float64]) -> None:
        """Do nothing: the logarithm has no statistics."""

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) and shape (n, wavelength) of scaled spectra (n, wavelength)."""
        logf = flux.clamp(_FAINTEST, _BRIGHTEST).log10()
        amplitude = logf.mean(dim=-1, keepdim=True)
        return amplitude, logf - amplitude


class AsinhFlux(nn.Module):
    """Inverse hyperbolic sine of the flux in units of its noise.

    Parameters
    ----------
    elements : int
    scales : bool
        Whether noise is taken to scale with the flux, which leaves out b0 and B.
    """

    weight: Tensor
    floor: Tensor
    share: Tensor
    amplitude_floor: Tensor

    def __init__(self, elements: int, scales: bool) -> None:
        super().__init__()
        self.scales = scales
        self.register_buffer("weight", torch.zeros(elements))
        self.register_buffer("floor", torch.zeros(elements))
        self.register_buffer("share", torch.zeros(elements))
        self.register_buffer("amplitude_floor", torch.zeros(()))

    def fit(self, noisy: NDArray[np.float64], flux: NDArray[np.float64]) -> None:
        """Learn the noise of faint and bright spectra from scaled spectra (n, wavelength) with noise and without."""
        logf = np.log10(np.clip(flux, _FAINTEST, _BRIGHTEST))
        amplitude = logf.mean(axis=1)
        typical = 10 ** np.median(logf - amplitude[:, None], axis=0)
        order = np.argsort(amplitude, kind="stable")
        tail = max(1, int(_TAIL * len(order)))
        faint, bright = order[:tail], order[-tail:]
        noise = noisy - flux
        share = _width(noise[bright] / 10 ** amplitude[bright, None])
        floor = np.zeros_like(share) if self.scales else _width(noise[faint])
        sigma = np.maximum(share if self.scales else floor, 1e-6 * typical)
        weight = typical / sigma**2 / (typical**2 / sigma**2).sum()
        for name, value in {
            "weight": weight,
            "floor": floor,
            "share": share,
            "amplitude_floor": 0.0 if self.scales else _width(noise[faint] @ weight),
        }.items():
            getattr(self, name).copy_(torch.as_tensor(value))

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) and shape (n, wavelength) of scaled spectra (n, wavelength)."""
        flux = flux.clamp(-1 / _SOFTEST, 1 / _SOFTEST)
        mean = (flux * self.weight).sum(dim=-1, keepdim=True)
        amplitude = _soft_log10(mean, self.amplitude_floor)
        softening = torch.hypot(self.floor, 10**amplitude * self.share)
        return amplitude, _soft_log10(flux, softening) - amplitude


def _soft_log10(x: Tensor, softening: Tensor) -> Tensor:
    softening = softening.clamp_min(_SOFTEST)
    return torch.asinh(x / softening) / math.log(10) + torch.log10(softening / 2)


def _width(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the rows, whatever a minority of them holds."""
    return np.median(np.abs(noise), axis=0) / GAUSSIAN_MEDIAN
