"""Where catalogs, models and run directories lie: a folder of this machine, or a URL of an object store.

A local location is a :class:`pathlib.Path`. A remote one is a :class:`upath.UPath`, which is used in the same way, but
has no folders to make, nothing to rename, and writes a file whole or not at all.

Credentials come from the environment that the store's own library reads, so that no location ever holds a secret.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fsspec
import fsspec.config

from digs_survey.errors import ConfigError, DigsError, MissingDependencyError

__all__ = ["check_reachable", "exists", "explain", "is_file", "is_remote", "location", "store_errors"]

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "az"),
}
_LOCAL = ("file", "local")

_S3: dict[str, Any] = {
    # Other processes write beside this one, so that a listing which is kept would be a wrong one.
    "use_listings_cache": False,
    # One request for one object: it is not asked for its size first, and is read again in full if its body breaks off.
    "max_concurrency": 1,
    # Waits double from below a second to 20 s. The mode "adaptive" would also hold back requests that have not failed,
    # for minutes, after a few answers that the store is busy.
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"mode": "standard", "max_attempts": 8},
    },
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "s3": _S3,
    "gs": {"use_listings_cache": False},
    "abfs": {"use_listings_cache": False},
}
"""Options of the stores' filesystems by protocol; FSSPEC_S3 and the like, and files in ~/.config/fsspec, override."""


def _set_defaults() -> None:
    for protocol, options in _DEFAULTS.items():
        found = fsspec.config.conf.setdefault(protocol, {})
        for name, value in options.items():
            found[name] = {**value, **found.get(name, {})} if isinstance(value, dict) else found.get(name, value)


# Wherever something is opened, in a worker of a cluster too, this module was imported before.
_set_defaults()


def location(text: str | Path) -> Path:
    """Turn what a user gave into a location.

    Parameters
    ----------
    text : str or Path
        A path, in which ``~`` is the home folder, or a URL such as ``s3://bucket/runs/x``. A location is returned as
        it is.

    Returns
    -------
    Path
        For a URL a :class:`upath.UPath`, which has the same methods.

    Raises
    ------
    ConfigError
        A URL that no library opens, that holds a secret (which the message does not repeat), or that lies in the
        memory of one process.
    MissingDependencyError
        The package for this kind of store is not installed.
    """
    if not isinstance(text, str):
        return text
    if "://" not in text:
        return Path(text).expanduser()
    protocol = _checked(text)
    if protocol in _LOCAL:
        return Path(fsspec.filesystem("file")._strip_protocol(text))
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'digs-survey[{extra}]'" if extra else f"install what fsspec asks for: {error}"
        raise MissingDependencyError(f"{text}: the package for {protocol}:// is not installed; {remedy}") from error
    except ValueError as error:
        expected = "expected a path, or a URL such as s3://, gs:// or az://"
        raise ConfigError(f"{text}: {expected}, found {protocol}://, which fsspec does not know") from error
    from upath import UPath

    return cast(Path, UPath(text))


def _checked(text: str) -> str:
    """Return the protocol of a URL that may be shown and kept."""
    protocol, _, rest = text.partition("://")
    if "::" in text or not protocol.replace("+", "").isalnum():
        raise ConfigError("a location: expected one URL, such as s3://bucket/folder, found a chain of URLs or none")
    host = rest.partition("/")[0]
    # abfs://container@account.dfs.core.windows.net/ names a container where others name a user.
    hidden = rest.partition("@")[2] if _EXTRAS.get(protocol) == "az" and "@" in host else rest
    # A secret may have slashes in it, which put what follows its user outside the host.
    if any(mark in hidden for mark in "@?#") or (protocol in _EXTRAS and ":" in host):
        raise ConfigError(
            f"a location on {protocol}://: expected a URL without user, password, key or signature, found one with "
            "such a part, which manifests and logs would repeat; give credentials by the environment instead, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if protocol == "memory":
        raise ConfigError(f"{text}: expected storage that all workers see, found the memory of one process")
    return protocol


def is_remote(path: Path) -> bool:
    """Tell whether a location is a URL of an object store."""
    return not isinstance(path, Path)


def exists(path: Path) -> bool:
    """Tell whether there is a file or folder. A store that gives no answer is an error here, not an absence."""
    return path.exists() if not is_remote(path) else _kind(path) != ""


def is_file(path: Path) -> bool:
    """Tell whether there is a file, as :func:`exists` does."""
    return path.is_file() if not is_remote(path) else _kind(path) == "file"


def _kind(path: Path) -> str:
    store: Any = path
    try:
        return store.fs.info(store.path)["type"]
    except FileNotFoundError:
        return ""


def store_errors() -> tuple[type[Exception], ...]:
    """Errors by which a store says no: those of the system, and of botocore where it is in use."""
    if "botocore" not in sys.modules:
        return (OSError,)
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, BotoCoreError, ClientError)


def explain(error: BaseException, path: Path | str = "object store") -> DigsError | None:
    """Say what a store's refusal means for a user; None for an error of another kind."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, store_errors()[1:]):
        cause = cause.__cause__
    if cause is None:
        return None
    text = str(error)
    if isinstance(error, PermissionError) or "redential" in text:
        return MissingDependencyError(
            f"{path}: expected to be let in by the store, found {type(error).__name__}: {text}; check the credentials "
            "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL ...), also that of the "
            "workers, and what they are allowed to do"
        )
    return MissingDependencyError(
        f"{path}: expected an answer of the store, found {type(error).__name__}: {text}; what is finished is kept, and "
        "the same command goes on when the store answers"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except store_errors() as error:
        explained = explain(error, path)
        if explained is None:
            raise
        raise explained from error


def check_reachable(path: Path) -> None:
    """Look whether the bucket of a remote location is there and lets us in; a local location is not looked at.

    Raises
    ------
    MissingDependencyError
        There is no such bucket, the store does not answer, or it refuses the credentials.
    """
    if not is_remote(path):
        return
    store: Any = path
    bucket = store.path.lstrip("/").partition("/")[0]
    with _explained(path):
        try:
            store.fs.info(bucket)
        except FileNotFoundError:
            raise MissingDependencyError(
                f"{path}: expected a bucket {bucket!r}, found none; make it, or correct the URL or the endpoint"
            ) from None
