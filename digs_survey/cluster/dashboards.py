"""What a stage and its cluster have to say to each other: where to watch it, what it waits for.

A stage says here whom to tell and whether clusters that start on this machine have dashboards, so that the functions
between it and its cluster need not pass it on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.util import find_spec

from digs_survey.errors import MissingDependencyError

__all__ = ["check_dashboards", "dashboards_wanted", "tell", "tell_dashboard", "with_dashboards"]

log = logging.getLogger(__name__)

_NEEDED = ("bokeh", "aiohttp_cors", "opencensus", "prometheus_client")
"""What bokeh (Dask) and ray[default] bring and digs-survey itself does not need."""


@dataclass
class _Stage:
    wanted: bool
    say: Callable[[str], None]
    told: set[str] = field(default_factory=set)


_stage: ContextVar[_Stage | None] = ContextVar("dashboards", default=None)


@contextmanager
def with_dashboards(wanted: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Decide for the clusters that are started or reached inside.

    Parameters
    ----------
    wanted : bool
        Clusters that start on this machine have dashboards, on its loopback interface.
    say : callable
        Told each address once, in one line.
    """
    token = _stage.set(_Stage(wanted, say))
    try:
        yield
    finally:
        _stage.reset(token)


def dashboards_wanted() -> bool:
    """Tell whether a cluster that is about to start on this machine is to have a dashboard."""
    stage = _stage.get()
    return stage is not None and stage.wanted


def tell_dashboard(what: str, address: str | None, hint: str = "") -> None:
    """Say where to watch a cluster, if there is such an address, and what one needs to know to do so."""
    stage = _stage.get()
    if stage and address and address not in stage.told:
        stage.told.add(address)
        stage.say(f"{what}: {address}{hint and f' ({hint})'}")


def tell(line: str) -> None:
    """Say one line about a cluster to the user of the stage that uses it, or in the log outside of any."""
    stage = _stage.get()
    if stage:
        stage.say(line)
    else:
        log.warning("%s", line)


def check_dashboards() -> None:
    """Check that dashboards can be started here.

    Raises
    ------
    MissingDependencyError
        If packages are missing; names the extra that has them.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"dashboards: expected the packages of Dask's and Ray's dashboards, found no {', '.join(missing)}; "
            "pip install 'digs-survey[dashboards]', or leave --dashboards away"
        )
