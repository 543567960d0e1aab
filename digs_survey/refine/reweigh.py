"""Weighted posteriors of the rows whose neural one probably does not agree, a block of rows a Ray task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.audit.sample import prepare_rows
from digs_survey.catalog import Catalog
from digs_survey.cluster.actors import run_on_actors
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.identity import RunIdentity
from digs_survey.importance.psis import smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import log_ratios, weigh, weighted_quantiles
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import checksum, read_arrays, write_arrays

__all__ = ["ReweighSetup", "WeightedRows", "reweigh_rows", "weights_file"]

_BLOCK_ROWS = 16


@dataclass(frozen=True)
class ReweighSetup:
    """What all rows share; small enough to be sent to workers."""

    catalog: Path
    identity: RunIdentity
    config: SurveyConfig
    derive: DerivedQuantities | None

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Hash of all that decides the weights of a block of rows."""
        return self.identity.digest(
            "catalog",
            "posterior",
            format=formats.AUDIT,
            draws=self.config.escalate.draws,
            map=self.config.map.model_dump(
                mode="json", include={"quantiles", "derived", "min_good_fraction", "error_floor", "mask_lines"}
            ),
            rows=rows.tolist(),
        )


@dataclass(frozen=True)
class WeightedRows:
    """What importance weights make of rows; NaN for one whose draws cannot be weighed.

    Attributes
    ----------
    rows : ndarray of int64, shape (row,)
    ess, pareto_k : ndarray of float32, shape (row,)
    percentiles : ndarray of float32, shape (row, parameter, quantile)
    derived : ndarray of float32, shape (row, quantity, quantile)
    core_s : float
    """

    rows: NDArray[np.int64]
    ess: NDArray[np.float32]
    pareto_k: NDArray[np.float32]
    percentiles: NDArray[np.float32]
    derived: NDArray[np.float32]
    core_s: float

    def save(self, path: Path) -> None:
        """Write a file that is there in full or not at all."""
        write_arrays(path, vars(self))

    def checksum(self) -> str:
        """SHA-256 of what was found."""
        return checksum(self.rows, self.ess, self.pareto_k, self.percentiles, self.derived)

    @classmethod
    def load(cls, path: Path) -> WeightedRows:
        """Read what :meth:`save` wrote."""
        values: dict[str, Any] = read_arrays(path)
        return cls(**values | {"core_s": float(values["core_s"])})


@dataclass(frozen=True)
class _Task:
    """What the workers have in common."""

    setup: ReweighSetup
    blocks: Sequence[NDArray[np.int64]]


class _Worker:
    """A Ray actor that weighs blocks of rows, with everything that this takes held in memory."""

    def __init__(self, task: _Task) -> None:
        import torch

        from digs_survey.estimator.posterior import FrozenPosterior

        torch.set_num_threads(1)
        self.task, self.catalog = task, Catalog.open(task.setup.catalog, task.setup.identity.filters)
        self.posterior = FrozenPosterior.of(task.setup.identity)
        self.likelihood = SpectrumLikelihood.of_posterior(self.posterior)

    def ready(self) -> None:
        """Answer once the actor has started."""

    def work(self, number: int) -> WeightedRows:
        """Weigh the draws of the rows of a block."""
        began, setup = time.process_time(), self.task.setup
        config, derive = setup.config, setup.derive
        posterior, quantiles, rows = self.posterior, config.map.quantiles, self.task.blocks[number]
        seen = prepare_rows(self.catalog, rows.tolist(), setup.identity, config)
        theta = posterior.sample(seen.flux, config.escalate.draws)
        known = np.isfinite(theta).all(axis=(1, 2))
        log_weights = np.full(theta.shape[:2], np.nan)
        errors = posterior.noise.errors_of(seen.flux[known], seen.ivar[known], seen.good[known])
        log_weights[known] = log_ratios(
            posterior, self.likelihood, theta[known], seen.flux[known], seen.good[known], errors
        )
        found = weigh(theta, log_weights, quantiles)
        derived = np.full((rows.size, len(derive.names) if derive else 0, len(quantiles)), np.nan, dtype=np.float32)
        if derive is not None:
            for i in np.flatnonzero(np.isfinite(found.ess)):
                values = derive(theta[i], posterior.noise.redshift_of(seen.flux[i]))
                derived[i] = weighted_quantiles(values, smooth_tail(log_weights[i])[0], quantiles)
        spent = time.process_time() - began
        return WeightedRows(rows, found.ess, found.pareto_k, found.percentiles, derived, spent)


def reweigh_rows(
    setup: ReweighSetup,
    rows: NDArray[np.int64],
    folder: Path,
    budget_s: float,
    *,
    address: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[WeightedRows]:
    """Weigh the draws of rows, in their order, as many as the budget allows; go on where an earlier call stopped.

    Blocks that workers are at when the budget is used up are given up.

    Parameters
    ----------
    setup : ReweighSetup
    rows : ndarray of int64, shape (row,)
        The first ones first.
    folder : Path
        Where finished blocks lie, and their markers under ``ledger``.
    budget_s : float
        Core-seconds of what is finished, earlier calls included, from which on nothing more is done.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the rows of each block that is done.

    Raises
    ------
    StageError
        A block failed twice, or workers died on it again and again.
    """
    blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, rows.size, _BLOCK_ROWS)]
    ledger = Ledger(folder / "ledger")
    done = {
        number: WeightedRows.load(weights_file(folder, number))
        for number, record in ledger.records().items()
        if number < len(blocks) and record.get("job") == setup.digest(blocks[number])
    }
    for one in done.values():
        advance(one.rows.size)
    spent = sum(one.core_s for one in done.values())
    pending = [number for number in range(len(blocks)) if number not in done]
    if pending and spent < budget_s:
        with ray_session(address) as cores:
            workers = min(cores, len(pending))
            finished = run_on_actors(
                _Worker, _Task(setup, blocks), pending, workers, failed=_failed, stage="escalate", tries=2
            )
            with closing(finished) as pieces:
                for number, found in pieces:
                    found.save(weights_file(folder, number))
                    ledger.forget(number)
                    ledger.mark(
                        number,
                        rows=found.rows.size,
                        checksum=found.checksum(),
                        core_s=found.core_s,
                        job=setup.digest(blocks[number]),
                    )
                    done[number] = found
                    advance(found.rows.size)
                    spent += found.core_s
                    if spent >= budget_s:
                        break
    return [done[number] for number in sorted(done)]


def _failed(number: int | None, why: str) -> StageError:
    what = "a worker could not start" if number is None else f"block {number} of the rows to be weighed failed"
    return StageError(f"escalate: {what}: {why}; finished blocks are kept, and the same command goes on from them")


def weights_file(folder: Path, number: int) -> Path:
    """Return the file of a block of rows."""
    return folder / f"{number:08d}.npz"
