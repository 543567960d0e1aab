"""The command of this process, as it may be written to files that others read."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

__all__ = ["safe_command"]

_SECRET = r"(?:token|secret|password|passwd|credential|signature|api[-_]?key|access[-_]?key|account[-_]?key)"
_NAMED = re.compile(rf"(?i)([\w.-]*{_SECRET}[\w.-]*\"?\s*[=:]\s*\"?)[^\s&,;\"']+")
_OPTION = re.compile(rf"(?i)--?[\w-]*{_SECRET}[\w-]*")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def safe_command(argv: Sequence[str] | None = None) -> str:
    """Return the command line with ``***`` in the place of what looks like a secret.

    That is the user part of an address, and the value of anything that is named like a token, password or key.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program; default: those of this process.
    """
    shown = ["digs-survey"]
    hides_next = False
    for argument in sys.argv[1:] if argv is None else argv:
        shown.append("***" if hides_next else _USERINFO.sub("***@", _NAMED.sub(r"\1***", argument)))
        hides_next = _OPTION.fullmatch(argument) is not None
    return " ".join(shown)
