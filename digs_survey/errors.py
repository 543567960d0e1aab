"""The errors that a user can act on, and the exit code that each one ends the command with.

Every message names the thing, what was expected, what was found and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CatalogError",
    "ConfigError",
    "DigsError",
    "MissingDependencyError",
    "NotBatchedError",
    "RunDirectoryError",
    "StageError",
]


class DigsError(Exception):
    """Anything that digs-survey can explain; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(DigsError):
    """The configuration cannot be used: an unknown key, a wrong type, an impossible value."""

    exit_code = 3


class NotBatchedError(ConfigError):
    """The spectra of a model cannot be made in batches; Prospector can make them one by one."""


class CatalogError(DigsError):
    """A catalog breaks its schema, or does not fit the posterior that is to be applied to it.

    Parameters
    ----------
    message : str
        What is wrong as a whole.
    violations : sequence of str
        One line for each violation; printed below the message.
    """

    exit_code = 4

    def __init__(self, message: str, violations: Sequence[str] = ()) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join([message, *(f"  - {line}" for line in self.violations)]))


class MissingDependencyError(DigsError):
    """Something outside the package is missing: FSPS's data, a cluster, disk space."""

    exit_code = 5


class RunDirectoryError(DigsError):
    """A run directory holds results that were made with other settings or inputs."""

    exit_code = 6


class StageError(DigsError):
    """A stage could not finish; what it had finished is kept and the same command goes on."""

    exit_code = 7
