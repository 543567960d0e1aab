"""What the benchmarks of the posterior for rows of any noise share: its option, and how it is found."""

from __future__ import annotations

import argparse
from pathlib import Path

from digs_survey.errors import ConfigError
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped

__all__ = ["add_model_option", "survey_posterior"]


def add_model_option(options: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    options.add_argument("--model", type=Path, help="folder of a posterior (default: the shipped one of survey)")


def survey_posterior(folder: Path | None) -> FrozenPosterior:
    """Read the posterior that ``--model`` names, or the shipped one of the preset survey."""
    found = folder or shipped().get("survey")
    if found is None:
        raise ConfigError("no posterior of the preset survey ships with this version; give --model")
    return FrozenPosterior.load(found)
