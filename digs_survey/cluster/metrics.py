"""What Ray's workers count for Prometheus; Ray's own exporter on each node serves it, as ``ray_NAME``.

A counter belongs to the process that counts: sum over the label ``WorkerId``. Of a histogram Ray keeps the buckets
alone, so that its ``_sum`` is one of their middles. Without the packages of ray[default] nothing is exported, and
counting costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.quality import QualityFlag

__all__ = ["METRICS", "Metric", "Phases", "galaxy_failed", "galaxy_fitted", "shard_done", "shard_failed"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds of the histograms' buckets."""


@dataclass(frozen=True)
class Metric:
    """One metric as Prometheus knows it, without the prefix ``ray_``.

    Attributes
    ----------
    name : str
    kind : str
        "counter" or "histogram" (of seconds).
    description : str
    labels : tuple of str
        Besides Ray's own.
    """

    name: str
    kind: str
    description: str
    labels: tuple[str, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("digs_survey_map_rows_total", "counter", "rows of the catalog that were mapped"),
        Metric(
            "digs_survey_map_quality_rows_total",
            "counter",
            "mapped rows with a quality bit (a row with several counts in each), or with none",
            ("bit",),
        ),
        Metric("digs_survey_map_shards_total", "counter", "shards of the map that were written and read back"),
        Metric("digs_survey_map_shard_seconds", "histogram", "wall time of a shard, by phase", ("phase",)),
        Metric(
            "digs_survey_map_failures_total",
            "counter",
            "attempts at a shard that failed, by the kind of error; of a dead worker's, the shard is tried again",
            ("error",),
        ),
        Metric(
            "digs_survey_audit_galaxies_total",
            "counter",
            "galaxies whose MCMC fit ended, by whether the chain converged",
            ("converged",),
        ),
        Metric("digs_survey_audit_fit_seconds", "histogram", "CPU time of a galaxy's chain"),
        Metric("digs_survey_audit_failures_total", "counter", "galaxies that have no MCMC fit", ("error",)),
    )
}


class Phases:
    """Wall time of a piece of work, phase after phase.

    Attributes
    ----------
    seconds : dict
        Of each phase that :meth:`end` was called for.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, phase: str) -> None:
        """Book the time since the last call under this phase."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._since
        self._since = now


def shard_done(seconds: Mapping[str, float], quality: NDArray[np.integer]) -> None:
    """Count a finished shard of the map.

    Parameters
    ----------
    seconds : mapping
        Wall time by phase: "read", "infer", "write".
    quality : ndarray, shape (row,)
        The rows' quality bits.
    """
    _metric("digs_survey_map_shards_total").inc()
    _metric("digs_survey_map_rows_total").inc(quality.size)
    rows = {str(flag.name): int(((quality & flag.value) != 0).sum()) for flag in QualityFlag}
    for bit, count in (rows | {"none": int((quality == 0).sum())}).items():
        if count:
            _metric("digs_survey_map_quality_rows_total").inc(count, {"bit": bit})
    for phase, value in seconds.items():
        _metric("digs_survey_map_shard_seconds").observe(value, {"phase": phase})


def shard_failed(error: BaseException) -> None:
    """Count an attempt at a shard of the map that came to nothing."""
    _metric("digs_survey_map_failures_total").inc(1, {"error": _kind(error)})


def galaxy_fitted(core_s: float, converged: bool) -> None:
    """Count a galaxy whose chain ended."""
    _metric("digs_survey_audit_galaxies_total").inc(1, {"converged": str(bool(converged)).lower()})
    _metric("digs_survey_audit_fit_seconds").observe(core_s)


def galaxy_failed(error: BaseException) -> None:
    """Count a galaxy that was tried and tried again and has no fit."""
    _metric("digs_survey_audit_failures_total").inc(1, {"error": _kind(error)})


def _kind(error: BaseException) -> str:
    """Return the name of an error, or of the worker's own if Ray passed that on."""
    return type(getattr(error, "cause", None) or error).__name__


@cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Histogram

    metric = METRICS[name]
    if metric.kind == "counter":
        return Counter(metric.name, metric.description, metric.labels)
    return Histogram(metric.name, metric.description, list(_SECONDS), metric.labels)
