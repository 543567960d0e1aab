"""Places to write to: whether they take a file, and what is in the way if they do not."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from digs_survey.errors import MissingDependencyError
from digs_survey.store.locations import is_remote

__all__ = ["can_write", "check_target", "explain_write", "write_remedy", "writing"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    **dict.fromkeys(_FULL, "free some space first: the same command goes on from what is finished"),
    errno.EROFS: "this file system is read-only: name a place on another one",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "ask for permission to write there, or name another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is where a folder should be: name another place"),
    errno.EISDIR: "a folder is where a file should be: name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_remedy(error: BaseException | None) -> str | None:
    """Return what to do where an error, or what caused it, is that a disk is full or read-only; None for others."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*_FULL, errno.EROFS):
            return _REMEDIES.get(error.errno or 0)
        error = error.__cause__
    return None


def explain_write(
    error: BaseException, what: str = "", path: Path | str | None = None
) -> MissingDependencyError | None:
    """Say which place cannot be written, why, and what to do; None for an error that says nothing of a place.

    Parameters
    ----------
    error : Exception
    what : str
        What the place is, such as "run directory".
    path : path-like, optional
        The place; by default the one that the error names.
    """
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if remedy is None or not isinstance(error, OSError):
        return None
    place = path or error.filename or "a file"
    reason = error.strerror or str(error)
    return MissingDependencyError(f"{what} {place} cannot be written ({reason}); {remedy}".lstrip())


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Name a place where an error of the system inside says that it cannot be written.

    Raises
    ------
    MissingDependencyError
    """
    try:
        yield
    except OSError as error:
        # What an object store says is explained where its own errors are known.
        explained = None if is_remote(path) else explain_write(error, what, path)
        if explained is None:
            raise
        raise explained from error


def check_target(what: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a place that takes no file, before anything is computed for it; nothing is left there.

    On an object store nothing is tried.

    Parameters
    ----------
    what : str
        What is to be written, for the message.
    path : Path
        The file or folder to be.
    folder : bool
        Whether files go into ``path`` itself; else into the folder that it lies in. Neither need be there.

    Raises
    ------
    MissingDependencyError
        Naming the place, what is in the way and what to do.
    """
    if is_remote(path):
        return
    holder = path.absolute() if folder else path.absolute().parent
    there = next(place for place in (holder, *holder.parents) if place.exists())
    with writing(what, path):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        tempfile.TemporaryFile(dir=there).close()


def can_write(folder: Path) -> bool:
    """Tell whether a folder that is there takes files; an archive does not."""
    try:
        if not is_remote(folder):
            tempfile.TemporaryFile(dir=folder).close()
            return True
        probe = folder / f".probe-{uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
    except PermissionError:
        return False
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return False
    return True
