"""Wait for room on a Ray cluster whose workers have not joined, or are busy: say so, and give up after a limit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from digs_survey.cluster.dashboards import tell
from digs_survey.errors import ConfigError, MissingDependencyError

__all__ = ["no_room", "wait_for_room", "worker_wait_s"]

_WAIT = "DIGS_SURVEY_WORKER_WAIT_S"
_WAIT_S = 900.0
"""A cluster that grows has fetched an image and started a pod by then."""
_SOON_S = 3.0
"""What is there sooner is not worth a line."""


def worker_wait_s() -> float:
    """Return how long to wait for room, in seconds, which ``DIGS_SURVEY_WORKER_WAIT_S`` can set.

    Raises
    ------
    ConfigError
        If that is not a number of seconds.
    """
    text = os.environ.get(_WAIT) or str(_WAIT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ConfigError(f"{_WAIT}: expected a number of seconds, found {text!r}; correct it in the environment")
    return seconds


def wait_for_room(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Wait until the cluster of the open session has room for some workers; a cluster that can grow is asked to.

    Parameters
    ----------
    bundles : sequence of mapping
        What each worker needs, as Ray counts it: ``{"CPU": 1}``.
    what : str
        Who needs it, for messages.

    Raises
    ------
    MissingDependencyError
        If there is none within :func:`worker_wait_s`.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    limit_s = worker_wait_s()
    room = placement_group([dict(bundle) for bundle in bundles])
    try:
        if room.wait(min(_SOON_S, limit_s)):
            return
        left_s = max(0.0, limit_s - _SOON_S)
        until = datetime.now(UTC) + timedelta(seconds=left_s)
        tell(
            f"{what}: waiting until {until:%H:%M:%S} UTC ({left_s:.0f} s) for room on the Ray cluster for "
            f"{_wanted(bundles)}; it has {_capacity()}"
        )
        if not room.wait(left_s):
            raise no_room(what, bundles)
    finally:
        remove_placement_group(room)


def no_room(what: str, bundles: Sequence[Mapping[str, float]]) -> MissingDependencyError:
    """Return the error for workers that a cluster has had no room for."""
    return MissingDependencyError(
        f"{what}: expected room on the Ray cluster for {_wanted(bundles)} within {worker_wait_s():g} s, found "
        f"{_capacity()}; see why no worker joins (can it reach the head, has it the same image?), or let other jobs "
        f"end. The same command goes on from there; {_WAIT} in the environment sets the limit"
    )


def _wanted(bundles: Sequence[Mapping[str, float]]) -> str:
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    return f"{len(bundles)} worker{'s' * (len(bundles) > 1)} with {each}{' each' * (len(bundles) > 1)}"


def _capacity() -> str:
    import ray

    alive = sum(bool(node["Alive"]) for node in ray.nodes())
    free, there = ray.available_resources(), ray.cluster_resources()
    return f"{alive} node{'s' * (alive != 1)}, {there.get('CPU', 0):g} cores, {free.get('CPU', 0):g} of them free"
