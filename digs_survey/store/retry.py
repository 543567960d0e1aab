"""Calls to a file system or store that is away for a moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_random_exponential

from digs_survey.store.targets import write_remedy

__all__ = ["retry_io"]

_ATTEMPTS, _LONGEST_WAIT_S = 7, 30.0
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def retry_io(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that may be called again, until it does not fail with what may pass (at most 7 times).

    What may pass is an OSError (time-outs and lost connections are among them), but for those that say that
    something is not there, not allowed, full or read-only. Waits grow from half a second to half a minute, at random.
    """
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
        stop=stop_after_attempt(_ATTEMPTS),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    return retrying(function, *args, **kwargs)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, _LASTING) and write_remedy(error) is None
