"""Where Prospector's smoothing samples a spectrum, and interpolation that adds no smoothing of its own.

Prospector smooths on a logarithmic grid whose number of points is a power of two, and interpolates
linearly from there. Asking for its own points avoids that interpolation; between them a smoothed
spectrum is band-limited, and Lagrange polynomials find it to about 1e-5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.sparse import csr_array

from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.spectra import C_KMS, WavelengthGrid, air_to_vacuum, rebin_matrix
from digs_survey.sps.linespread import REACH, TabulatedSpread, check_line_spread, constant_sigma_kms

__all__ = [
    "GridSampling",
    "element_matrix",
    "lagrange_matrix",
    "padded_range",
    "projection_matrix",
    "smoothing_grid",
    "smoothing_points",
]

_PAD_SIGMA = 20.0
_PAD_POINTS = 4
_ORDER = 6
_OVERSAMPLING = 16
_MAX_STEP_KMS = 100.0
"""However strong the smoothing, the grid stays near the resolution of the libraries."""
_POINTS_PER_SIGMA = 3.5
_PROBES = 4_096
_NOTHING = 1e-13
"""Share of an element's largest weight below which a weight is left out."""


class GridSampling:
    """How Prospector's spectra are brought onto a catalog's grid.

    A line-spread function that is constant in velocity is Prospector's to apply; with a tabulated one Prospector
    hands over what it has not smoothed.

    Parameters
    ----------
    model : ModelConfig
        Its line-spread function and resampling.
    grid : WavelengthGrid
        Rest frame.
    sigmas : (float, float), optional
        Least and largest sigma in km/s of a smoothing that differs from galaxy to galaxy; it replaces the model's.

    Attributes
    ----------
    wavelength : ndarray, shape (wavelength,)
        Where populations are best sampled, log-spaced: they are then smoothed without resampling.
    by_prospector : bool
        Whether Prospector smooths.
    tolerance : float
        Of the attenuation within an element, in batches.

    Raises
    ------
    ConfigError
        If the grid is in the observed frame, or the line-spread function does not cover it.
    """

    by_prospector = True
    tolerance = 1e-6

    def __init__(self, model: ModelConfig, grid: WavelengthGrid, sigmas: tuple[float, float] | None = None) -> None:
        if grid.frame != "rest":
            raise ConfigError(
                f"grid: the simulator needs a rest-frame grid, found {grid}; "
                "resample the catalog to the rest frame of each galaxy (digs-survey ingest --frame rest does)"
            )
        if sigmas is not None and model.line_spread != "velocity":
            raise ConfigError(f"prior.sigma_smooth needs model.line_spread = 'velocity', found {model.line_spread!r}")
        to_vacuum = air_to_vacuum if grid.medium == "air" else np.asarray
        check_line_spread(model, grid)
        self.grid, self._mean = grid, model.resampling == "mean"
        self._edges, self._centres = to_vacuum(grid.edges), to_vacuum(grid.wavelength)
        low, high = self._edges[0], self._edges[-1]
        self._table: TabulatedSpread | None = None
        if model.line_spread == "table":
            self._table, self.by_prospector = TabulatedSpread(model), False
            self.wavelength = spread_grid(self._table, low, high)
        else:
            narrowest, widest = sigmas or (constant_sigma_kms(model),) * 2
            self._sigma = narrowest
            self._own: csr_array | None = None
            self._range = padded_range(low, high, narrowest)
            self.wavelength = smoothing_grid(*padded_range(low, high, widest), narrowest, widest)

    def points(
        self, wavelength: NDArray[np.float64], sigma_kms: float | None = None
    ) -> tuple[NDArray[np.float64], csr_array]:
        """Return where Prospector is asked for a spectrum sampled at ``wavelength``, and the way to the grid.

        Parameters
        ----------
        wavelength : ndarray, shape (wavelength,)
        sigma_kms : float, optional
            Of a smoothing that differs from galaxy to galaxy. For populations sampled at :attr:`wavelength` the points
            are the same at any sigma.

        Returns
        -------
        ndarray, shape (point + 2,)
            See :func:`smoothing_points`; of a spectrum that Prospector does not smooth, its own samples. All but the
            first and the last are used.
        csr_array, shape (element, point)
            From what Prospector predicts at the points, in f_lambda, to the grid.
        """
        if self._table is not None:
            return self._spread(wavelength, self._table)
        if sigma_kms is None:
            points = smoothing_points(wavelength, *self._range, self._sigma)
        elif np.array_equal(wavelength, self.wavelength):
            # Asked for all of it, Prospector smooths all of it, which it needs not resample.
            if self._own is None:
                inner = wavelength[1:-1]
                self._own = element_matrix(inner, self._edges) if self._mean else lagrange_matrix(inner, self._centres)
            return wavelength, self._own.copy()
        else:
            low, high = padded_range(self._edges[0], self._edges[-1], sigma_kms)
            points = smoothing_points(wavelength, low, high, sigma_kms)
        inner = points[1:-1]
        return points, element_matrix(inner, self._edges) if self._mean else lagrange_matrix(inner, self._centres)

    def matrix(self, wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the whole way of a spectrum as one matrix: smoothing, f_nu to f_lambda, onto the grid.

        Parameters
        ----------
        wavelength : ndarray, shape (wavelength,)
            Rest-frame vacuum wavelengths in Angstrom at which spectra are given.

        Returns
        -------
        ndarray, shape (wavelength, element)
            From Lsun/Hz to Lsun/Angstrom.
        """
        from prospect.sources.constants import ckms, lightspeed
        from prospect.utils.smoothing import mask_wave, resample_wave, smooth_fft

        matrix = np.zeros((wavelength.size, len(self.grid)))
        if self._table is not None:
            points, to_grid = self._spread(wavelength, self._table)
            used = points[1:-1]
            matrix[np.isin(wavelength, used)] = (to_grid.toarray() * (lightspeed / used**2)).T
            return matrix
        low, high = self._range
        inside = mask_wave(wavelength, width=ckms / self._sigma, outwave=np.array([low, high]))
        part = wavelength[inside]
        nodes, _ = resample_wave(part, part)
        points, to_grid = self.points(wavelength)
        chosen = (nodes > low) & (nodes < high)
        at_nodes = np.zeros((len(self.grid), nodes.size))
        at_nodes[:, chosen] = to_grid.toarray() * (lightspeed / points[1:-1] ** 2)
        # The filter is symmetric: smoothing a spectrum before the sum or the summands' weights is the same.
        step = ckms * np.median(np.diff(np.log(nodes)))
        at_nodes = np.stack([smooth_fft(step, row, self._sigma) for row in at_nodes])
        matrix[inside] = _linear_matrix(part, nodes).T @ at_nodes.T
        return matrix

    def matrix_at(self, wavelength: NDArray[np.float64], sigma_kms: float) -> csr_array:
        """Return the matrix of :meth:`matrix` at one sigma in km/s of several, without the zeros beyond its reach."""
        from prospect.sources.constants import ckms, lightspeed
        from prospect.utils.smoothing import mask_wave, resample_wave

        points, to_grid = self.points(wavelength, sigma_kms)
        if points is wavelength:
            inside, nodes = slice(0, wavelength.size), wavelength
            resampling = None
        else:
            (near,) = np.nonzero(mask_wave(wavelength, width=ckms / sigma_kms, outwave=points[[0, -1]]))
            inside = slice(int(near[0]), int(near[-1]) + 1)
            nodes, _ = resample_wave(wavelength[inside], wavelength[inside])
            resampling = _linear_matrix(wavelength[inside], nodes)
        weights = csr_array(to_grid * (lightspeed / points[1:-1] ** 2))
        first = int(np.searchsorted(nodes, points[0], side="right"))
        weights = csr_array((weights.data, weights.indices + first, weights.indptr), shape=(len(self.grid), nodes.size))
        step = ckms * np.median(np.diff(np.log(nodes)))
        # The filter is symmetric: smoothing a spectrum before the sum or the summands' weights is the same.
        smoothed = _smoothed_rows(weights, sigma_kms / step)
        if resampling is not None:
            smoothed = csr_array(smoothed @ resampling)
        columns = smoothed.indices + inside.start
        shape = (len(self.grid), wavelength.size)
        return csr_array(csr_array((smoothed.data, columns, smoothed.indptr), shape=shape).T)

    def _spread(self, wavelength: NDArray[np.float64], table: TabulatedSpread) -> tuple[NDArray[np.float64], csr_array]:
        """Return the samples within reach of the grid, and the matrix (element, sample - 2) that smooths them."""
        nodes = self.wavelength
        to_grid = table.element_matrix(nodes, self._edges) if self._mean else table.point_matrix(nodes, self._centres)
        if np.array_equal(wavelength, nodes):
            return wavelength, to_grid[:, 1:-1]
        points = wavelength[(wavelength > nodes[0]) & (wavelength < nodes[-1])]
        return points, to_grid @ projection_matrix(nodes, points)[:, 1:-1]


def _smoothed_rows(rows: csr_array, sigma: float) -> csr_array:
    """Smooth each row of a matrix (row, node), nonzero over few nodes, by a Gaussian whose sigma is in nodes."""
    rows.sort_indices()
    reach = int(np.ceil(REACH * sigma)) + 1
    first = rows.indices[rows.indptr[:-1]] - reach
    count = next_fast_len(int((rows.indices[rows.indptr[1:] - 1] - first).max()) + reach + 1, real=True)
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    near = np.zeros((rows.shape[0], count))
    near[row, rows.indices - first[row]] = rows.data
    taper = np.exp(-2 * (np.pi * sigma * np.fft.rfftfreq(count)) ** 2)
    near = np.fft.irfft(np.fft.rfft(near, axis=1) * taper, count, axis=1)
    column = first[:, None] + np.arange(count)
    seen = (np.abs(near) > _NOTHING * near.max(axis=1, keepdims=True)) & (column >= 0) & (column < rows.shape[1])
    return csr_array((near[seen], (np.nonzero(seen)[0], column[seen])), shape=rows.shape)


def _linear_matrix(nodes: NDArray[np.float64], points: NDArray[np.float64]) -> csr_array:
    """Matrix (point, node) of linear interpolation; the points lie within the nodes."""
    upper = np.clip(np.searchsorted(nodes, points), 1, nodes.size - 1)
    share = np.clip((points - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1]), 0, 1)
    rows = np.arange(points.size)
    entries, columns = np.concatenate([1 - share, share]), np.concatenate([upper - 1, upper])
    return csr_array((entries, (np.concatenate([rows, rows]), columns)), shape=(points.size, nodes.size))


def padded_range(low: float, high: float, sigma_kms: float) -> tuple[float, float]:
    """Return what to ask Prospector for: from a few points below ``low`` to a few points above ``high``."""
    pad = _PAD_POINTS * min(sigma_kms / _POINTS_PER_SIGMA, _MAX_STEP_KMS) / 2.998e5
    return low * (1 - pad), high * (1 + pad)


def smoothing_grid(low: float, high: float, sigma_kms: float, widest_kms: float | None = None) -> NDArray[np.float64]:
    """Log-spaced wavelengths (2**k,) on which Prospector smooths without resampling.

    Parameters
    ----------
    low, high : float
        Ends of the wavelengths that Prospector is asked for.
    sigma_kms : float
        Standard deviation of the smoothing.
    widest_kms : float, optional
        The largest one, where ``sigma_kms`` is the least of several.
    """
    from prospect.sources.constants import ckms

    pad = _PAD_SIGMA * (widest_kms or sigma_kms) / ckms
    first, last = low * (1 - pad) * (1 + 1e-9), high * (1 + pad) * (1 - 1e-9)
    step = min(sigma_kms / _POINTS_PER_SIGMA, _MAX_STEP_KMS) / ckms
    count = 2 ** int(np.ceil(np.log2(np.log(last / first) / step + 1)))
    return np.geomspace(first, last, count)


def spread_grid(table: TabulatedSpread, low: float, high: float) -> NDArray[np.float64]:
    """Log-spaced wavelengths whose light reaches elements from ``low`` to ``high``, as close as the narrowest needs."""
    reach = np.exp(REACH * table.widest)
    first, last = low / reach, high * reach
    narrowest = table.sigma(np.geomspace(first, last, _PROBES)).min()
    step = min(narrowest / _POINTS_PER_SIGMA, _MAX_STEP_KMS / C_KMS)
    return np.geomspace(first, last, int(np.ceil(np.log(last / first) / step)) + 1)


def smoothing_points(wavelength: NDArray[np.float64], low: float, high: float, sigma_kms: float) -> NDArray[np.float64]:
    """Points at which Prospector holds a spectrum sampled at ``wavelength`` after smoothing it.

    Returns
    -------
    ndarray, shape (points + 2,)
        ``low``, then the points between, then ``high``: the ends decide which part of the spectrum is
        smoothed, and so where the points lie.
    """
    from prospect.sources.constants import ckms
    from prospect.utils.smoothing import mask_wave, resample_wave

    part = wavelength[mask_wave(wavelength, width=ckms / sigma_kms, outwave=np.array([low, high]))]
    points, _ = resample_wave(part, part)
    return np.concatenate([[low], points[(points > low) & (points < high)], [high]])


def lagrange_matrix(nodes: NDArray[np.float64], points: NDArray[np.float64]) -> csr_array:
    """Matrix (point, node) of Lagrange interpolation through the six log-spaced nodes around each point."""
    step = np.log(nodes[-1] / nodes[0]) / (nodes.size - 1)
    position = np.log(points / nodes[0]) / step
    first = np.clip(np.floor(position).astype(int) - _ORDER // 2 + 1, 0, nodes.size - _ORDER)
    offset = position - first
    weights = np.ones((points.size, _ORDER))
    for i in range(_ORDER):
        for j in range(_ORDER):
            if j != i:
                weights[:, i] *= (offset - j) / (i - j)
    columns = first[:, None] + np.arange(_ORDER)
    rows = np.repeat(np.arange(points.size), _ORDER)
    return csr_array((weights.ravel(), (rows, columns.ravel())), shape=(points.size, nodes.size))


def projection_matrix(nodes: NDArray[np.float64], wavelength: NDArray[np.float64]) -> csr_array:
    """Matrix (node, wavelength) that brings a spectrum to coarser log-spaced nodes without aliasing.

    Each piece of the spectrum (linear between its samples) is shared among the six nodes around it such
    that its first six moments stay; once smoothed by a few node spacings it cannot be told from the
    original. The samples must reach three nodes beyond the ends.
    """
    step = np.log(nodes[-1] / nodes[0]) / (nodes.size - 1)
    beyond = np.exp(step * np.arange(-_ORDER, nodes.size + _ORDER)) * nodes[0]
    fine = step / _OVERSAMPLING
    dense = np.exp(np.arange(np.log(wavelength[0]), np.log(wavelength[-1]), fine))
    dense = dense[(dense > beyond[_ORDER // 2]) & (dense < beyond[-1 - _ORDER // 2])]
    samples = _linear_matrix(wavelength, dense)
    spread = (lagrange_matrix(beyond, dense) / (step * beyond)).T
    return csr_array(spread @ (samples * (fine * dense)[:, None]))[_ORDER:-_ORDER]


def element_matrix(nodes: NDArray[np.float64], edges: NDArray[np.float64]) -> csr_array:
    """Matrix (element, node) from a smoothed spectrum at log-spaced nodes to its mean over each element."""
    count = int(np.ceil(np.log(edges[-1] / edges[0]) / np.log(nodes[1] / nodes[0]) * _OVERSAMPLING)) + 1
    dense = np.geomspace(edges[0], edges[-1], count)
    dense[[0, -1]] = edges[[0, -1]]
    return rebin_matrix(dense, edges) @ lagrange_matrix(nodes, dense)
