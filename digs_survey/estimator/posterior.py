"""The frozen posterior: theta draws and log densities for spectra, the same bytes wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from digs_survey.config import ModelConfig, NoiseConfig, TrainConfig
from digs_survey.estimator.artefact import NETWORK, check_grid, check_hash, load_artefact
from digs_survey.estimator.embedding import build_embedding
from digs_survey.estimator.features import FeatureBuilder, build_features
from digs_survey.estimator.flows.points import base_points, row_points
from digs_survey.estimator.flows.sampler import MaskedFlow
from digs_survey.estimator.threads import for_each
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid

__all__ = ["FrozenPosterior"]

_BUDGET = 16
"""Most proposals for each draw, where some of them fall beyond the prior."""
_INSIDE_POINTS = 4096
"""Proposals that P(inside | x) of a density is measured with."""
_PROBE_POINTS = 256
"""Proposals that tell first whether an edge is near at all: nearer to them than the width that they span."""
_RECENT = 128
"""Spectra whose features are kept at most."""
_MIN_INSIDE = 1 / 256
"""P(inside | x) below which a spectrum is outside the simulations: a 2.7 sigma event at the very edge."""

Base = Literal["sobol", "random"]


@dataclass(frozen=True)
class _Member:
    """One flow and the embedding before it."""

    embedding: nn.Module
    flow: MaskedFlow


@dataclass(frozen=True)
class _Seen:
    """What one spectrum gives: its features (1, n), a context (size,) for each member, and the coordinates' centre and
    scale (ndim, 1).
    """

    features: torch.Tensor
    contexts: list[NDArray[np.float32]]
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]


Points = Callable[[int, int, int], NDArray[np.float32]]
"""Base points (ndim, stop - first), numbers first to stop, of a member."""


class FrozenPosterior:
    """A trained posterior, read-only.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Weights of features, embedding and flow.
    card : dict
        What the weights mean; see :func:`~digs_survey.estimator.freeze.freeze_posterior`.
    build : callable, optional
        Builds the features; by default those that the card names.

    Attributes
    ----------
    prior : Prior
    grid : WavelengthGrid
    model : ModelConfig
        Of the simulations that it was trained on; ``model.zred`` is its reference distance.
    noise : NoiseModel
    card : dict
    """

    def __init__(
        self, arrays: dict[str, NDArray[Any]], card: dict[str, Any], build: FeatureBuilder = build_features
    ) -> None:
        self.card = card
        self.arrays = arrays
        self.prior = Prior.from_dict(card["parameters"])
        self.grid = WavelengthGrid.from_dict(card["grid"])
        self.model = ModelConfig.model_validate(card["model"])
        network = TrainConfig.model_validate({name: card["architecture"][key] for name, key in NETWORK.items()})
        noise = NoiseConfig.model_validate(card["noise"])
        self.noise = NoiseModel.from_config(noise, arrays.get("noise.table"), network.flux_transform).on(self.grid)
        tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
        self._features = build(len(self.grid), network, self.prior, noise)
        self._features.load_state_dict(_under(tensors, "features."))
        self._recent: dict[bytes, _Seen] = {}
        self._members = []
        for k in range(network.ensemble):
            embedding = build_embedding(network, self._features)
            embedding.load_state_dict(_under(tensors, f"member.{k}.embedding."))
            self._members.append(_Member(embedding, MaskedFlow.from_arrays(arrays, f"member.{k}.flow.")))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to other processes: without the spectra that were seen here."""
        return self.__dict__ | {"_recent": {}}

    @property
    def hash(self) -> str:
        """SHA-256 of what decides results."""
        return str(self.card["hash"])

    @classmethod
    def load(cls, folder: Path, build: FeatureBuilder = build_features) -> FrozenPosterior:
        """Read a frozen posterior; a damaged one is refused."""
        return cls(*load_artefact(folder), build)

    @classmethod
    def of(cls, identity: RunIdentity) -> FrozenPosterior:
        """Read the posterior of a run.

        Raises
        ------
        RunDirectoryError
            If another posterior lies in its folder now.
        """
        if identity.posterior is None:
            raise ValueError("the identity has no posterior yet")
        posterior = cls.load(identity.posterior)
        check_hash(identity.posterior, posterior.hash, identity.posterior_hash)
        return posterior

    def check_grid(self, grid: WavelengthGrid) -> None:
        """Refuse a catalog on another grid than the one that the posterior was trained for."""
        check_grid(self.grid, grid, self.noise)

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

        for_each(transform, len(u))
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
        if rows is not None and len(rows) != len(flux):
            raise ValueError(f"rows: expected one for each of the {len(flux)} spectra, found {len(rows)}")
        numbers = range(len(flux)) if rows is None else rows
        flux = np.asarray(flux)
        u = np.empty((len(flux), self.prior.ndim, draws), dtype=np.float32)

        def draw(row: int) -> None:
            points = self._sobol(seed) if base == "sobol" else self._random(seed, int(numbers[row]))
            u[row] = self._draw_inside(self._see(flux[row]), draws, points)[0]
            if ordered:
                u[row].sort(axis=-1)

        for_each(draw, len(flux))
        return u

    def draw_and_judge(
        self, flux: NDArray[np.floating], draws: int, *, ordered: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Draws from the shared points, and which spectra are outside the simulations, at one cost for both.

        Returns
        -------
        u : ndarray of float32, shape (n, ndim, draws)
            As :meth:`sample_unconstrained` gives them.
        outside : ndarray of bool, shape (n,)
            True for a spectrum whose features are beyond those of the training simulations, or which has next to no
            posterior inside the prior.
        """
        flux = np.asarray(flux)
        u = np.empty((len(flux), self.prior.ndim, draws), dtype=np.float32)
        outside = np.zeros(len(flux), dtype=bool)

        def draw(row: int) -> None:
            seen = self._see(flux[row])
            u[row], inside = self._draw_inside(seen, draws, self._sobol(0))
            outside[row] = self._is_outside(seen, inside)
            if ordered:
                u[row].sort(axis=-1)

        for_each(draw, len(flux))
        return u, outside

    def log_prob(
        self, theta: NDArray[np.floating], flux: NDArray[np.floating], *, normalised: bool = True
    ) -> NDArray[np.float64]:
        """Log density of theta given spectra, normalised over the prior's support.

        Parameters
        ----------
        theta : array_like, shape (n, samples, ndim)
        flux : array_like, shape (n, wavelength)
        normalised : bool
            Without it a constant of each spectrum is left out, which takes thousands of proposals where its posterior
            reaches the edge of the prior.

        Returns
        -------
        ndarray of float64, shape (n, samples)
            -inf outside the prior.
        """
        theta, flux = np.asarray(theta, dtype=float), np.asarray(flux)
        out = np.empty(theta.shape[:2])

        def evaluate(row: int) -> None:
            seen = self._see(flux[row])
            out[row] = self._log_mixture(theta[row], seen)
            if normalised:
                out[row] -= np.log(self._inside(seen))

        for_each(evaluate, len(theta))
        return np.where(np.isfinite(self.prior.log_prob(theta)), out, -np.inf)

    def feature_distance(self, flux: NDArray[np.floating]) -> NDArray[np.float64]:
        """Root mean square (n,) of the features of spectra (n, wavelength) in units of the training simulations'.

        Some 1 for a spectrum like those. Features are whitened; where they are principal components this is the
        Mahalanobis distance over the root of their number.
        """
        flux = np.asarray(flux)
        distance = np.empty(len(flux))

        @torch.inference_mode()
        def measure(row: int) -> None:
            distance[row] = float(self._features.distance(self._see(flux[row]).features))

        for_each(measure, len(flux))
        return distance

    def features(self, flux: NDArray[np.floating]) -> NDArray[np.float32]:
        """Whitened features (n, features) of spectra (n, wavelength), of which :meth:`feature_distance` is the size."""
        flux = np.asarray(flux)
        every = torch.zeros(1, 1 + self._features.shape_features)
        features = np.empty((len(flux), self._features.asked(every).shape[-1]), dtype=np.float32)

        @torch.inference_mode()
        def look(row: int) -> None:
            features[row] = self._features.asked(self._features(_tensor(flux[row])))[0].numpy()

        for_each(look, len(flux))
        return features

    # -- one spectrum ------------------------------------------------------------------------------------------

    def _see(self, spectrum: NDArray[np.floating]) -> _Seen:
        """Return what a spectrum gives; draws, densities and distance of a row ask for it one after the other."""
        key = np.asarray(spectrum, dtype=np.float32).tobytes()
        seen = self._recent.get(key)
        if seen is None:
            seen = self._look(spectrum)
            if len(self._recent) >= _RECENT:
                self._recent = {}
            self._recent[key] = seen
        return seen

    # By itself, since a row's last bits may depend on its place in a product of several (MKL's small ones).
    @torch.inference_mode()
    def _look(self, spectrum: NDArray[np.floating]) -> _Seen:
        features = self._features(_tensor(spectrum))
        centre, scale = self._features.centring(features)
        context = self._features.context(features)
        contexts = [member.embedding(context)[0].numpy() for member in self._members]
        return _Seen(features, contexts, centre.T.numpy(), scale.T.numpy())

    @torch.inference_mode()
    def _is_outside(self, seen: _Seen, inside: int = 0) -> bool:
        """Tell whether a spectrum is outside the simulations, if ``inside`` of its first proposals are in the prior."""
        if self._features.outside(seen.features)[0]:
            return True
        enough = inside >= _MIN_INSIDE * _INSIDE_POINTS
        return self._unbounded is not None and not enough and self._inside(seen) < _MIN_INSIDE

    # -- base points -------------------------------------------------------------------------------------------

    def _sobol(self, seed: int) -> Points:
        def points(member: int, first: int, stop: int) -> NDArray[np.float32]:
            # Of few lengths, so that few sets are made.
            length = 2 ** int(np.ceil(np.log2(stop)))
            return base_points(length, self.prior.ndim, seed, member)[:, first:stop]

        return points

    def _random(self, seed: int, row: int) -> Points:
        def points(member: int, first: int, stop: int) -> NDArray[np.float32]:
            return row_points(stop - first, self.prior.ndim, seed, row, member, first)

        return points

    # -- the mixture of the ensemble's members: y (ndim, n), the coordinates that are the same for all spectra ----

    def _propose(self, seen: _Seen, start: int, stop: int, points: Points) -> NDArray[np.float32]:
        """Draws number start to stop of the mixture, not cut: draw j is point j // K of member j % K."""
        count = len(self._members)
        y = np.empty((self.prior.ndim, stop - start), dtype=np.float32)
        for k, member in enumerate(self._members):
            first, last = (-(-(end - k) // count) for end in (start, stop))
            if last > first:
                v = member.flow.inverse(points(k, first, last), seen.contexts[k])
                y[:, (k - start) % count :: count] = v * seen.scale + seen.centre
        return y

    def _log_mixture(self, theta: NDArray[np.float64], seen: _Seen) -> NDArray[np.float64]:
        """Log density (n,) of the mixture, not cut, at theta (n, ndim) inside the prior."""
        coordinates = self._features.coordinates
        y = coordinates.from_theta(theta)
        v = ((y.T - seen.centre) / seen.scale).astype(np.float32)
        densities = [
            member.flow.log_prob(v, context).astype(float)
            for member, context in zip(self._members, seen.contexts, strict=True)
        ]
        mixture = np.logaddexp.reduce(densities, axis=0) - np.log(len(densities))
        return mixture - coordinates.log_abs_det_jacobian(y) - np.log(seen.scale, dtype=float).sum()

    # -- the cut at the prior's edges --------------------------------------------------------------------------

    @property
    def _unbounded(self) -> int | None:
        return self._features.coordinates.unbounded

    def _draw_inside(self, seen: _Seen, draws: int, points: Points) -> tuple[NDArray[np.float32], int]:
        """Draws u (ndim, draws) of the mixture cut at the prior's edges: the first proposals that are inside.

        Where the budget of proposals does not yield enough, those that are inside are used again in turn; where
        none is, the mass is moved to the edge. Such rows are far outside the simulations. The second value is how many
        of those among the first :data:`_INSIDE_POINTS` proposals that were made are inside.
        """
        y = self._propose(seen, 0, draws, points)
        if self._unbounded is None:
            return y, draws
        inside, proposed = self._are_inside(y), draws
        while inside.sum() < draws and proposed < _BUDGET * draws:
            y = np.concatenate([y, self._propose(seen, proposed, 2 * proposed, points)], axis=1)
            inside, proposed = self._are_inside(y), 2 * proposed
        chosen = np.resize(np.flatnonzero(inside), draws) if inside.any() else np.arange(draws)
        y = y[:, chosen]
        y[self._unbounded] = self.prior.to_unconstrained(self._features.coordinates.to_theta(y.T))[:, self._unbounded]
        return y, int(inside[:_INSIDE_POINTS].sum())

    def _inside(self, seen: _Seen) -> float:
        """P(inside | x), not less than half a proposal's share; 1 where nothing is cut."""
        if self._unbounded is None:
            return 1.0
        points = self._sobol(0)
        mass = self._propose(seen, 0, _PROBE_POINTS, points)[self._unbounded]
        low, high = (float(edge[self._unbounded]) for edge in (self.prior.low, self.prior.high))
        if min(mass.min() - low, high - mass.max()) > np.ptp(mass):
            return 1.0
        inside = self._are_inside(self._propose(seen, 0, _INSIDE_POINTS, points))
        return max(float(inside.mean()), 0.5 / _INSIDE_POINTS)

    def _are_inside(self, y: NDArray[np.float32]) -> NDArray[np.bool_]:
        coordinates = self._features.coordinates
        return coordinates.inside(coordinates.to_theta(y.T))


def _tensor(spectrum: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(spectrum.astype(np.float32))[None]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
