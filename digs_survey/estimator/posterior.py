"""The frozen posterior: theta draws and log densities for spectra, the same bytes wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc
from torch import nn

from digs_survey.config import NoiseConfig, SurveyConfig, TrainConfig
from digs_survey.errors import CatalogError
from digs_survey.estimator.artefact import FORMAT, load_artefact, save_artefact
from digs_survey.estimator.embedding import build_embedding
from digs_survey.estimator.features import Features
from digs_survey.estimator.network import Estimator
from digs_survey.estimator.sampler import MaskedFlow
from digs_survey.parameters import Prior
from digs_survey.simulate.noise import NoiseModel
from digs_survey.spectra import WavelengthGrid

__all__ = ["FrozenPosterior", "base_points"]

_NETWORK = (
    "flow",
    "hidden_features",
    "transforms",
    "blocks",
    "embedding",
    "embedding_features",
    "embedding_layers",
    "features",
    "whitening",
    "components",
    "amplitude",
    "ensemble",
)
"""Settings of the network that rebuild it, by their names in the card's architecture."""
_BUDGET = 16
"""Most proposals for each draw, where some of them fall beyond the prior."""
_INSIDE_POINTS = 4096
"""Proposals that P(inside | x) of a density is measured with."""
_PROBE_POINTS = 256
"""Proposals that tell first whether an edge is near at all: nearer to them than the width that they span."""
_LEAST_INSIDE = 1 / 256
"""P(inside | x) below which a spectrum is outside the simulations: a 2.7 sigma event at the very edge."""


@lru_cache(maxsize=32)
def base_points(draws: int, ndim: int, seed: int, member: int = 0) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws): scrambled Sobol through the inverse CDF, shared by all galaxies.

    The first points of a longer set are the shorter one. Each member of an ensemble has a scramble of its own.
    """
    bits = int(np.ceil(np.log2(draws)))
    cube = qmc.Sobol(ndim, scramble=True, rng=np.random.default_rng([seed, member])).random_base2(bits)[:draws]
    points = np.ascontiguousarray(ndtri(np.clip(cube, 1e-9, 1 - 1e-9)).T, dtype=np.float32)
    points.setflags(write=False)
    return points


@dataclass(frozen=True)
class _Member:
    """One flow and the embedding before it."""

    embedding: nn.Module
    flow: MaskedFlow


@dataclass(frozen=True)
class _Seen:
    """What one spectrum gives: a context (size,) for each member, and the coordinates' centre and scale (ndim,)."""

    contexts: list[torch.Tensor]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]


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
        network = TrainConfig.model_validate({name: card["architecture"][name] for name in _NETWORK})
        tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
        self._features = Features(len(self.grid), network, self.prior)
        self._features.load_state_dict(_under(tensors, "features."))
        self._members = []
        for k in range(network.ensemble):
            embedding = build_embedding(network, self._features)
            embedding.load_state_dict(_under(tensors, f"member.{k}.embedding."))
            self._members.append(_Member(embedding, MaskedFlow.from_tensors(_under(tensors, f"member.{k}."))))

    @property
    def hash(self) -> str:
        """SHA-256 of what decides results."""
        return str(self.card["hash"])

    @classmethod
    def freeze(
        cls,
        folder: Path,
        estimators: Sequence[Estimator],
        config: SurveyConfig,
        grid: WavelengthGrid,
        noise: NoiseModel,
        training: dict[str, Any],
    ) -> FrozenPosterior:
        """Write trained estimators to ``folder`` and return their equal mixture, frozen.

        Parameters
        ----------
        folder : Path
            Gets model.safetensors and card.json.
        estimators : sequence of Estimator
            ``config.train.ensemble`` of them, over the same features.
        config : SurveyConfig
            Whose model, prior, noise and network the estimators were built for.
        grid : WavelengthGrid
        noise : NoiseModel
        training : dict
            What the card tells about how the weights came about.

        Raises
        ------
        ValueError
            If the estimators are not as many as configured, or their features differ.
        """
        if len(estimators) != config.train.ensemble:
            raise ValueError(f"expected train.ensemble = {config.train.ensemble} estimators, found {len(estimators)}")
        features = estimators[0].features.state_dict()
        arrays = {f"features.{name}": value.numpy() for name, value in features.items()}
        for k, estimator in enumerate(estimators):
            found = estimator.features.state_dict()
            if any(not torch.equal(found[name], value) for name, value in features.items()):
                raise ValueError(f"estimator {k}: expected the features of estimator 0, found others")
            embedding = estimator.flow.embedding_net.state_dict()
            arrays |= {f"member.{k}.embedding.{name}": value.numpy() for name, value in embedding.items()}
            flow = MaskedFlow.from_sbi(estimator.flow).tensors()
            arrays |= {f"member.{k}.{name}": np.asarray(value) for name, value in flow.items()}
        if noise.table is not None:
            arrays["noise.table"] = np.asarray(noise.table, dtype=np.float32)
        card = {
            "format": FORMAT,
            "architecture": {
                **config.train.model_dump(mode="json", include=set(_NETWORK)),
                "coordinates": _COORDINATES[config.train.amplitude],
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
        theta = np.empty((len(flux), draws, self.prior.ndim))
        for row, spectrum in enumerate(np.asarray(flux, dtype=np.float32)):
            theta[row] = self._draw_inside(self._see(spectrum), draws, seed)
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
            seen = self._see(spectrum)
            out[row] = self._log_mixture(theta[row], seen) - np.log(self._inside(seen))
        return np.where(np.isfinite(self.prior.log_prob(theta)), out, -np.inf)

    @torch.no_grad()
    def outside_training(self, flux: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which spectra (n, wavelength) have features beyond those of the training simulations, or next to no
        posterior inside the prior.
        """
        rows = [self._features(torch.as_tensor(row)[None])[0] for row in np.asarray(flux, dtype=np.float32)]
        if not rows:
            return np.zeros(0, dtype=bool)
        outside = self._features.outside(torch.stack(rows)).numpy()
        for row in np.flatnonzero(~outside) if self._truncated else ():
            outside[row] = self._inside(self._see(np.asarray(flux[row], dtype=np.float32))) < _LEAST_INSIDE
        return outside

    # -- one spectrum ------------------------------------------------------------------------------------------

    def _see(self, spectrum: NDArray[np.float32]) -> _Seen:
        features = self._features(torch.as_tensor(spectrum)[None])
        centre, scale = self._features.centring(features)
        context = self._features.context(features)
        return _Seen(
            [member.embedding(context)[0] for member in self._members],
            centre[0].numpy().astype(float),
            scale[0].numpy().astype(float),
        )

    # -- coordinates: v (ndim, n) of the flows, theta (n, ndim) ------------------------------------------------

    def _to_theta(self, v: torch.Tensor, seen: _Seen) -> NDArray[np.float64]:
        """Theta of v; its unbounded column, if there is one, may be outside the prior."""
        return self._features.coordinates.to_theta(v.numpy().T * seen.scale + seen.centre)

    def _to_v(self, theta: NDArray[np.float64], seen: _Seen) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """V of theta, and log |dv / dtheta| (n,)."""
        coordinates = self._features.coordinates
        y = coordinates.from_theta(theta)
        v = torch.as_tensor(((y - seen.centre) / seen.scale).T, dtype=torch.float32)
        return v, -coordinates.log_abs_det_jacobian(y) - np.log(seen.scale).sum()

    # -- the mixture of the ensemble's members -----------------------------------------------------------------

    def _propose(self, seen: _Seen, start: int, stop: int, seed: int) -> NDArray[np.float64]:
        """Draws number start to stop of the mixture, not cut: draw j is point j // K of member j % K."""
        count = len(self._members)
        theta = np.empty((stop - start, self.prior.ndim))
        for k, member in enumerate(self._members):
            mine = slice((k - start) % count, None, count)
            first = (start - k + count - 1) // count
            base = base_points(_points(stop, count), self.prior.ndim, seed, k)
            points = torch.as_tensor(base[:, first : first + len(theta[mine])].copy())
            theta[mine] = self._to_theta(member.flow.inverse(points, seen.contexts[k]), seen)
        return theta

    def _log_mixture(self, theta: NDArray[np.float64], seen: _Seen) -> NDArray[np.float64]:
        """Log density (n,) of the mixture, not cut, at theta (n, ndim) inside the prior."""
        v, log_det = self._to_v(theta, seen)
        densities = [
            member.flow.log_prob(v, context).numpy().astype(float)
            for member, context in zip(self._members, seen.contexts, strict=True)
        ]
        return logsumexp(densities, axis=0) - np.log(len(densities)) + log_det

    # -- the cut at the prior's edges --------------------------------------------------------------------------

    @property
    def _truncated(self) -> bool:
        return self._features.coordinates.unbounded is not None

    def _draw_inside(self, seen: _Seen, draws: int, seed: int) -> NDArray[np.float64]:
        """Draws (draws, ndim) of the mixture cut at the prior's edges: the first proposals that are inside.

        Where the budget of proposals does not yield enough, those that are inside are used again in turn; where
        none is, the mass is moved to the edge. Such rows are far outside the simulations.
        """
        theta = self._propose(seen, 0, draws, seed)
        if not self._truncated:
            return theta
        coordinates, proposed = self._features.coordinates, draws
        inside = coordinates.inside(theta)
        while inside.sum() < draws and proposed < _BUDGET * draws:
            theta = np.concatenate([theta, self._propose(seen, proposed, 2 * proposed, seed)])
            inside, proposed = coordinates.inside(theta), 2 * proposed
        if not inside.any():
            return np.clip(theta[:draws], self.prior.low, self.prior.high)
        return np.resize(theta[inside], (draws, self.prior.ndim))

    def _inside(self, seen: _Seen) -> float:
        """P(inside | x), not less than half a proposal's share; 1 where nothing is cut."""
        coordinates = self._features.coordinates
        if coordinates.unbounded is None:
            return 1.0
        mass = self._propose(seen, 0, _PROBE_POINTS, 0)[:, coordinates.unbounded]
        low, high = (float(edge[coordinates.unbounded]) for edge in (self.prior.low, self.prior.high))
        if min(mass.min() - low, high - mass.max()) > np.ptp(mass):
            return 1.0
        inside = coordinates.inside(self._propose(seen, 0, _INSIDE_POINTS, 0))
        return max(float(inside.mean()), 0.5 / _INSIDE_POINTS)


_COORDINATES = {
    "feature": "logit of the prior's CDF",
    "centred": "logit of the prior's CDF, that of logmass centred and scaled on the mass that the amplitude suggests",
    "equivariant": "logit of the prior's CDF; logmass less the mass that the amplitude suggests, cut at its bounds",
}


def _points(stop: int, members: int) -> int:
    """Base points of each member up to draw number ``stop``, rounded up so that few sets are made."""
    return 2 ** int(np.ceil(np.log2(-(-stop // members))))


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
