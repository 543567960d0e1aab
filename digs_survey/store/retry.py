"""Calls to a file system or store that is away for a moment."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_random_exponential

__all__ = ["is_full", "retry_io"]

_ATTEMPTS, _LONGEST_WAIT_S = 7, 30.0
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def retry_io(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that may be called again, until it does not fail with what may pass (at most 7 times).

    What may pass is an OSError (time-outs and lost connections are among them), but for those that say that
    something is not there, not allowed or full. Waits grow from half a second to half a minute, at random.
    """
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
        stop=stop_after_attempt(_ATTEMPTS),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    return retrying(function, *args, **kwargs)


def is_full(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, is that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, _LASTING) and error.errno not in _FULL
