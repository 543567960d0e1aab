"""Versions of the code that is at work: of this package, of those that decide results, and of the checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

__all__ = ["__version__", "git_commit", "versions"]

__version__ = "0.1.0"


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    names = (
        "digs-survey",
        "astro-prospector",
        "bagpipes",
        "dask",
        "emcee",
        "numpy",
        "ray",
        "sbi",
        "torch",
        "zarr",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
