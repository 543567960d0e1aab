"""The token of a Ray session on this machine, which goes when the session does."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

__all__ = ["private_token", "token_hint"]

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def private_token() -> Iterator[None]:
    """Give a session that starts inside a token in a folder that no one else can read; leave nothing of it behind.

    Ray asks for a token wherever it starts. Where it finds none it would write a new one to ``~/.ray/auth_token``, and
    every later ``ray start`` of this user would ask for that one. A token, or a mode, that the user has set is used.
    """
    before = {name: os.environ.get(name) for name in (_MODE, _PATH)}
    with ExitStack() as stack:
        if not (os.environ.get(_TOKEN) or before[_PATH] or (Path.home() / ".ray" / "auth_token").exists()):
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digs-survey-ray-"))) / "token"
            path.write_text(secrets.token_hex(32), encoding="ascii")
            os.environ[_PATH] = str(path)
        _read_again()
        try:
            yield
        finally:
            # Ray itself sets the mode, for processes that this one starts, and keeps it.
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _read_again()


def token_hint() -> str:
    """Say where the token is that Ray's dashboard asks for; nothing if it asks for none."""
    if os.environ.get(_MODE) != "token":
        return ""
    path = os.environ.get(_PATH)
    return f"its token: cat {path}" if path else "its token: ray get-auth-token"


def _read_again() -> None:
    """Let Ray forget the mode and the token that it read from the environment before."""
    raylet = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
