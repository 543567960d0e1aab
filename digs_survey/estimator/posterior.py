"""The frozen posterior: theta draws and log densities for spectra, the same bytes wherever it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from digs_survey.spectra import WavelengthGrid

__all__ = ["FrozenPosterior", "base_points"]

_NETWORK = ("hidden_features", "transforms", "blocks", "embedding_features", "embedding_layers")


def base_points(draws: int, ndim: int, seed: int) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws): scrambled Sobol through the inverse CDF, shared by all galaxies."""
    bits = int(np.ceil(np.log2(draws)))
    cube = qmc.Sobol(ndim, scramble=True, rng=np.random.default_rng(seed)).random_base2(bits)[:draws]
    return ndtri(np.clip(cube, 1e-9, 1 - 1e-9)).T.astype(np.float32)


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
        self._flow = MaskedFlow.from_tensors(tensors)

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
            **{k: v.numpy() for k, v in MaskedFlow.from_sbi(estimator.flow).tensors().items()},
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

    @torch.no_grad()
    def sample(self, flux: NDArray[np.floating], draws: int, seed: int = 0) -> NDArray[np.float64]:
        """Posterior draws of theta.

        Every spectrum is computed by itself with the same base points, so that its draws depend on
        nothing but its flux, ``draws`` and ``seed``.

        Parameters
        ----------
        flux : array_like, shape (n, wavelength)
            f_lambda in erg/s/cm^2/Angstrom on the posterior's grid, at its reference distance.
        draws : int
            Draws for each spectrum.

        Returns
        -------
        ndarray of float64, shape (n, draws, ndim)
            Always inside the prior's bounds.
        """
        base = torch.as_tensor(base_points(draws, self.prior.ndim, seed))
        theta = np.empty((len(flux), draws, self.prior.ndim))
        for row, spectrum in enumerate(np.asarray(flux, dtype=np.float32)):
            context, centre, scale = self._context(spectrum)
            u = self._flow.inverse(base, context) * scale[:, None] + centre[:, None]
            theta[row] = self.prior.from_unconstrained(u.numpy().T)
        return theta

    @torch.no_grad()
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
        theta = np.asarray(theta, dtype=float)
        out = np.empty(theta.shape[:2])
        for row, spectrum in enumerate(np.asarray(flux, dtype=np.float32)):
            context, centre, scale = self._context(spectrum)
            u = self.prior.to_unconstrained(theta[row])
            v = (torch.as_tensor(u.T, dtype=torch.float32) - centre[:, None]) / scale[:, None]
            density = self._flow.log_prob(v, context).numpy().astype(float) - float(scale.log().sum())
            out[row] = density - self.prior.log_abs_det_jacobian(u)
        return np.where(np.isfinite(self.prior.log_prob(theta)), out, -np.inf)

    @torch.no_grad()
    def outside_training(self, flux: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which spectra (n, wavelength) have features beyond those of the training simulations."""
        rows = [self._features(torch.as_tensor(row)[None])[0] for row in np.asarray(flux, dtype=np.float32)]
        return self._features.outside(torch.stack(rows)).numpy() if rows else np.zeros(0, dtype=bool)

    def _context(self, spectrum: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self._features(torch.as_tensor(spectrum)[None])
        centre, scale = self._features.centring(features)
        return self._embedding(features)[0], centre[0], scale[0]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
