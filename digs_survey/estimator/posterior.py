"""The frozen posterior: theta draws and log densities for spectra, the same bytes wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from digs_survey.config import NoiseConfig, SurveyConfig
from digs_survey.errors import CatalogError
from digs_survey.estimator.artefact import FORMAT, load_artefact, save_artefact
from digs_survey.estimator.features import Features
from digs_survey.estimator.network import Embedding, Estimator
from digs_survey.estimator.sampler import MaskedFlow
from digs_survey.parameters import Prior
from digs_survey.simulate.noise import NoiseModel
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.spectra import WavelengthGrid

__all__ = ["FrozenPosterior", "base_points", "row_points"]

_NETWORK = ("hidden_features", "transforms", "blocks", "embedding_features", "embedding_layers")


_TAIL = 1e-9
"""Least probability on either side of a base point."""

Base = Literal["sobol", "random"]


@lru_cache(maxsize=8)
def base_points(draws: int, ndim: int, seed: int) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws): scrambled Sobol through the inverse CDF, shared by all galaxies."""
    bits = int(np.ceil(np.log2(draws)))
    cube = qmc.Sobol(ndim, scramble=True, rng=np.random.default_rng(seed)).random_base2(bits)[:draws]
    points = np.ascontiguousarray(_standard_normal(cube.T))
    points.flags.writeable = False
    return points


def row_points(draws: int, ndim: int, seed: int, row: int) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws) that belong to one row: independent of those of other rows."""
    return _standard_normal(row_uniforms(seed, "posterior", row, row + 1, ndim * draws).reshape(ndim, draws))


def _standard_normal(cube: NDArray[np.float64]) -> NDArray[np.float32]:
    return ndtri(np.clip(cube, _TAIL, 1 - _TAIL)).astype(np.float32)


class FrozenPosterior:
    """A trained posterior, read-only.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Weights of features, embedding and flow.
    card : dict
        What the weights mean; see :meth:`freeze`.

    Attributes
    ----------
    prior : Prior
    grid : WavelengthGrid
    noise : NoiseModel
    card : dict
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], card: dict[str, Any]) -> None:
        self.card = card
        self.arrays = arrays
        self.prior = Prior.from_dict(card["parameters"])
        self.grid = WavelengthGrid.from_dict(card["grid"])
        self.noise = NoiseModel.from_config(NoiseConfig.model_validate(card["noise"]), arrays.get("noise.table"))
        architecture = card["architecture"]
        tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
        self._features = Features(len(self.grid), architecture["components"], self.prior)
        self._features.load_state_dict(_under(tensors, "features."))
        self._embedding: torch.nn.Module = torch.nn.Identity()
        if architecture["embedding_features"]:
            self._embedding = Embedding(
                self._features.size, architecture["embedding_features"], architecture["embedding_layers"]
            )
            self._embedding.load_state_dict(_under(tensors, "embedding."))
        self._flow = MaskedFlow.from_arrays(arrays)

    @property
    def hash(self) -> str:
        """SHA-256 of what decides results."""
        return str(self.card["hash"])

    @classmethod
    def freeze(
        cls,
        folder: Path,
        estimator: Estimator,
        config: SurveyConfig,
        grid: WavelengthGrid,
        noise: NoiseModel,
        training: dict[str, Any],
    ) -> FrozenPosterior:
        """Write an estimator to ``folder`` and return it frozen.

        Parameters
        ----------
        folder : Path
            Gets model.safetensors and card.json.
        estimator : Estimator
        config : SurveyConfig
            Whose model, prior, noise and network the estimator was built for.
        grid : WavelengthGrid
        noise : NoiseModel
        training : dict
            What the card tells about how the weights came about.
        """
        network = config.train.model_dump(mode="json", include=set(_NETWORK))
        arrays = {
            **{f"features.{k}": v.numpy() for k, v in estimator.features.state_dict().items()},
            **{f"embedding.{k}": v.numpy() for k, v in estimator.flow.net._embedding_net.state_dict().items()},
            **MaskedFlow.from_sbi(estimator.flow).arrays(),
        }
        if noise.table is not None:
            arrays["noise.table"] = np.asarray(noise.table, dtype=np.float32)
        card = {
            "format": FORMAT,
            "architecture": {
                "flow": "maf",
                **network,
                "components": estimator.features.components,
                "coordinates": "logit of the prior's CDF, centred on the amplitude",
                "features": "mean log10 flux and principal components of log10 flux less its mean",
            },
            "parameters": config.make_prior().to_dict(),
            "grid": grid.to_dict(),
            "noise": config.noise.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "training": training,
        }
        save_artefact(folder, arrays, card)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> FrozenPosterior:
        """Read a frozen posterior; a damaged one is refused."""
        return cls(*load_artefact(Path(folder)))

    def check_grid(self, grid: WavelengthGrid) -> None:
        """Refuse a catalog on another grid than the one that the posterior was trained for."""
        if grid != self.grid:
            raise CatalogError(
                "the catalog's wavelength grid is not the one that the posterior was trained for:\n"
                f"  catalog:   {grid}\n  posterior: {self.grid}\n"
                "Train for this grid (digs-survey run with a new --run-dir), or resample the catalog."
            )

    def sample(
        self,
        flux: NDArray[np.floating],
        draws: int,
        seed: int = 0,
        *,
        base: Base = "sobol",
        rows: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> NDArray[np.float64]:
        """Posterior draws of theta.

        A spectrum's draws depend on its flux, ``draws``, ``seed`` and, with random base points, its row; they are
        the same bytes whatever other spectrum comes with it, in any order and on any number of threads.

        Parameters
        ----------
        flux : array_like, shape (n, wavelength)
            f_lambda in erg/s/cm^2/Angstrom on the posterior's grid, at its reference distance.
        draws : int
            Draws for each spectrum.
        seed : int
            Seed of the base points.
        base : {"sobol", "random"}
            Base points: one scrambled Sobol sequence for all spectra, which makes smooth percentiles of few draws, or
            random points that belong to each spectrum's row.
        rows : sequence of int, shape (n,), optional
            Rows whose random points these spectra get; 0, 1, ... if left out.

        Returns
        -------
        ndarray of float64, shape (n, draws, ndim)
            Always inside the prior's bounds; NaN where the network gives no finite number.
        """
        u = self.sample_unconstrained(flux, draws, seed, base=base, rows=rows)
        theta = np.empty((len(u), draws, self.prior.ndim))

        def transform(row: int) -> None:
            theta[row] = self.prior.from_unconstrained(u[row].T)

        _each(transform, len(u))
        return theta

    def sample_unconstrained(
        self,
        flux: NDArray[np.floating],
        draws: int,
        seed: int = 0,
        *,
        base: Base = "sobol",
        rows: Sequence[int] | NDArray[np.integer] | None = None,
        ordered: bool = False,
    ) -> NDArray[np.float32]:
        """Posterior draws in the unconstrained coordinates of the prior, as :meth:`sample` otherwise.

        Parameters
        ----------
        flux, draws, seed, base, rows
            As of :meth:`sample`.
        ordered : bool
            Sort the draws of every parameter by itself, as quantiles need them.

        Returns
        -------
        ndarray of float32, shape (n, ndim, draws)
            u, of which ``prior.from_unconstrained`` makes theta, each parameter increasing with its own u.
        """
        ndim = self.prior.ndim
        if rows is not None and len(rows) != len(flux):
            raise ValueError(f"rows: expected one for each of the {len(flux)} spectra, found {len(rows)}")
        shared = base_points(draws, ndim, seed) if base == "sobol" else None
        numbers = range(len(flux)) if rows is None else rows
        flux = np.asarray(flux)
        u = np.empty((len(flux), ndim, draws), dtype=np.float32)

        def draw(row: int) -> None:
            points = row_points(draws, ndim, seed, int(numbers[row])) if shared is None else shared
            context, centre, scale = self._context(flux[row])
            u[row] = self._flow.inverse(points, context) * scale + centre
            if ordered:
                u[row].sort(axis=-1)

        _each(draw, len(flux))
        return u

    def log_prob(self, theta: NDArray[np.floating], flux: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log density of theta given spectra, normalised over the prior's support.

        Parameters
        ----------
        theta : array_like, shape (n, samples, ndim)
        flux : array_like, shape (n, wavelength)

        Returns
        -------
        ndarray of float64, shape (n, samples)
            -inf outside the prior.
        """
        theta, flux = np.asarray(theta, dtype=float), np.asarray(flux)
        out = np.empty(theta.shape[:2])

        def evaluate(row: int) -> None:
            u = self.prior.to_unconstrained(theta[row])
            context, centre, scale = self._context(flux[row])
            v = (u.T.astype(np.float32) - centre) / scale
            density = self._flow.log_prob(v, context).astype(float) - np.log(scale).sum()
            out[row] = density - self.prior.log_abs_det_jacobian(u)

        _each(evaluate, len(theta))
        return np.where(np.isfinite(self.prior.log_prob(theta)), out, -np.inf)

    def outside_training(self, flux: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which spectra (n, wavelength) have features beyond those of the training simulations."""
        flux = np.asarray(flux)
        features = torch.empty(len(flux), self._features.size)

        @torch.no_grad()
        def look(row: int) -> None:
            features[row] = self._features(_tensor(flux[row]))[0]

        _each(look, len(flux))
        return self._features.outside(features).numpy()

    # Of one spectrum, since a row's last bits may depend on its place in a product of several (MKL's small ones).
    @torch.inference_mode()
    def _context(self, spectrum: NDArray[np.floating]) -> tuple[NDArray[np.float32], ...]:
        """Context (size,) of the flow, centre and scale (ndim, 1) of its coordinates, for a spectrum (wavelength,)."""
        features = self._features(_tensor(spectrum))
        centre, scale = self._features.centring(features)
        return self._embedding(features)[0].numpy(), centre.T.numpy(), scale.T.numpy()


def _each(function: Callable[[int], None], count: int) -> None:
    """Call a function with 0 to count - 1 on as many threads as torch may use, on each of them with one of torch's.

    The compiled loops release the lock. A product that torch shares out among its threads has other last bits, and
    its threads wait longer for each other than one spectrum takes.
    """
    allowed = torch.get_num_threads()
    threads = max(min(allowed, count), 1)

    def take(first: int) -> None:
        for row in range(first, count, threads):
            function(row)

    torch.set_num_threads(1)
    try:
        if threads == 1:
            take(0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(take, first) for first in range(threads)]:
                    done.result()
    finally:
        torch.set_num_threads(allowed)


def _tensor(spectrum: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(spectrum.astype(np.float32))[None]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
