"""The MCMC fits of the audit on Ray: one galaxy, one task, one core.

A fit inside one process is fastest without a pool, so the galaxies are what runs in parallel. A finished
fit is on disk, with its marker, before the next one is waited for: a killed audit loses only those that
were under way.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, GalaxyJob, fit_with
from digs_survey.cluster import metrics
from digs_survey.cluster.ray_session import ray_session
from digs_survey.errors import StageError
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import checksum

if TYPE_CHECKING:
    from digs_survey.audit.mcmc.target import Simulator
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.identity import RunIdentity

__all__ = ["end_after", "fit_file", "fit_galaxies"]

_LOG = logging.getLogger(__name__)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_MIN_IN_FLIGHT = 16
"""Enough waiting tasks that a cluster which grows with its queue does grow."""
_STALLED = 75
"""Exit status of a worker whose fit took too long."""
_simulators: dict[str, Any] = {}
_posteriors: dict[str, FrozenPosterior] = {}


def fit_galaxies(
    setup: FitSetup,
    jobs: Sequence[GalaxyJob],
    folder: Path,
    *,
    address: str | None = None,
    advance: Callable[[int], None] = lambda galaxies: None,
    fit: Callable[[FitSetup, GalaxyJob], GalaxyFit] | None = None,
    budget_s: float | None = None,
    in_order: bool = False,
) -> list[GalaxyFit | None]:
    """Fit galaxies in parallel, and go on where an earlier call stopped.

    A fit depends on nothing but ``setup`` and its job. One that fails, takes longer than ``timeout_s``, or whose worker
    dies is tried once more; if it fails again it is reported as failed, not marked as done, and the others go on.

    Parameters
    ----------
    setup : FitSetup
    jobs : sequence of GalaxyJob
    folder : Path
        Where finished fits lie, and their markers under ``ledger`` (with the cluster's ``cores``). A fit
        that was made from another setup or job is not used.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the number of galaxies that were done before, and with 1 for each that ends.
    fit : callable, optional
        What a worker does; by default :func:`~digs_survey.audit.mcmc.galaxy_fit.fit_with` with the configured engine.
    budget_s : float, optional
        Core-seconds, those of earlier calls included, from which on no fit is begun. Fits are then begun in random
        order, so that those that are made are a random part of all.
    in_order : bool
        Begin fits in the order of the jobs all the same.

    Returns
    -------
    list of GalaxyFit or None
        In the order of the jobs; None for one that the budget had no room for.

    Raises
    ------
    StageError
        If not one of several fits succeeded.
    """
    ledger = Ledger(folder / "ledger")
    records = ledger.records()
    digests = {job.row: _digest(setup, job) for job in jobs}
    kept = [row for row, digest in digests.items() if records.get(row, {}).get("job") == digest]
    fits = {row: GalaxyFit.load(fit_file(folder, row)) for row in kept}
    advance(len(fits))
    pending = [job for job in jobs if job.row not in fits]
    for job in pending:
        ledger.forget(job.row)
    spent = sum(fits[row].job_core_s for row in kept)
    if budget_s is not None:
        order = list(range(len(jobs)))
        if not in_order:
            np.random.default_rng([setup.identity.seed, *b"budget"]).shuffle(order)
        pending = [jobs[i] for i in order if jobs[i].row not in fits]
        pending = pending if spent < budget_s else []
    left = None if budget_s is None else budget_s - spent
    for row, outcome, cores in _run(setup, pending, fit or _fit_in_worker, address, left) if pending else ():
        fits[row] = outcome
        if outcome.error:
            _LOG.warning("audit: row %d has no MCMC fit: %s", row, outcome.error)
        else:
            outcome.save(fit_file(folder, row))
            ledger.mark(
                row,
                rows=1,
                checksum=outcome.checksum(),
                core_s=outcome.job_core_s,
                job=digests[row],
                cores=cores,
            )
        advance(1)
    if fits and all(outcome.error for outcome in fits.values()):
        raise StageError(
            f"audit: expected MCMC fits of {len(jobs)} galaxies, found none that succeeded; "
            f"the first failed with: {next(iter(fits.values())).error}"
        )
    return [fits.get(job.row) for job in jobs]


def fit_file(folder: Path, row: int) -> Path:
    """Return the file of the fit of a row."""
    return folder / f"{row:08d}.npz"


def _digest(setup: FitSetup, job: GalaxyJob) -> str:
    """Checksum of all that decides the outcome of a job."""
    settings = setup.digest(job.row, [field.name for field in fields(GalaxyFit)])
    errors = np.zeros(0) if job.errors is None else job.errors
    arrays = (job.flux, job.good, errors, job.start, job.predictive)
    return checksum(np.frombuffer(settings.encode(), dtype=np.uint8), *arrays)


def _run(
    setup: FitSetup,
    jobs: Sequence[GalaxyJob],
    fit: Callable[[FitSetup, GalaxyJob], GalaxyFit],
    address: str | None,
    budget_s: float | None,
) -> Iterator[tuple[int, GalaxyFit, int]]:
    """Keep a bounded number of tasks on the cluster; yield each row, its outcome and the cluster's cores."""
    import ray

    with ray_session(address) as cores:
        task = ray.remote(num_cpus=1, max_retries=1, retry_exceptions=True, runtime_env={"env_vars": _ONE_THREAD})(fit)
        shared = ray.put(setup)
        # What is in flight is beyond the budget's reach: it is taken to cost what the others did.
        limit = max(_MIN_IN_FLIGHT, 2 * cores) if budget_s is None else cores
        spent, ended = 0.0, 0
        queue = iter(jobs)
        rows: dict[Any, int] = {}
        while True:
            each = spent / max(ended, 1)
            while len(rows) < limit and (budget_s is None or spent + len(rows) * each < budget_s):
                if (job := next(queue, None)) is None:
                    break
                rows[task.remote(shared, job)] = job.row
            if not rows:
                return
            ready, _ = ray.wait(list(rows), num_returns=1)
            row = rows.pop(ready[0])
            try:
                outcome = ray.get(ready[0])
                spent += outcome.job_core_s
                ended += 1
            except ray.exceptions.RayError as error:
                metrics.galaxy_failed(error)
                outcome = GalaxyFit.failed(setup, _reason(error))
            yield row, outcome, cores


def _reason(error: Exception) -> str:
    cause: Any = getattr(error, "cause", None) or error
    message = str(cause).strip().partition("\n")[0]
    return f"{type(cause).__name__}: {message}"


def _fit_in_worker(setup: FitSetup, job: GalaxyJob) -> GalaxyFit:
    """Fit a galaxy with this process's simulators, which are built once and kept."""
    with end_after(setup.mcmc.timeout_s):
        other = "batched" if setup.mcmc.engine == "prospector" else "prospector"
        neural = _neural(setup.identity) if setup.mcmc.moves == "neural" else None
        # The model of a parameter file has one engine.
        compared = None if setup.identity.model.param_file is not None else _simulator(setup, other)
        outcome = fit_with(_simulator(setup, setup.mcmc.engine), setup, job, compared, neural)
    metrics.galaxy_fitted(outcome.core_s, outcome.converged)
    return outcome


@contextmanager
def end_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer: a library that hangs cannot be interrupted.

    Ray then starts the task again, in another worker.
    """
    watchdog = threading.Timer(seconds, os._exit, (_STALLED,))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _neural(identity: RunIdentity) -> FrozenPosterior:
    from digs_survey.estimator.posterior import FrozenPosterior

    if identity.posterior_hash not in _posteriors:
        _posteriors[identity.posterior_hash] = FrozenPosterior.of(identity)
    return _posteriors[identity.posterior_hash]


def _simulator(setup: FitSetup, engine: str) -> Simulator:
    from digs_survey.sps.paired import batched_model, prospector_model
    from digs_survey.sps.param_file import simulator_of

    identity = setup.identity
    # Filters are part of the noise.
    key = identity.digest("model", "prior", "noise", "grid", engine=engine)
    if key not in _simulators:
        what = identity.model, identity.prior, identity.grid
        if identity.model.param_file is not None:
            _simulators[key] = simulator_of(*what, setup.param_file)
        else:
            build = batched_model if engine == "batched" else prospector_model
            _simulators[key] = build(*what, identity.noise.photometry_bands)
    return _simulators[key]
