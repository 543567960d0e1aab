"""By which engine spectra are made, why, and how long Prospector will take where they are not made in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from digs_survey.config import SurveyConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.engine import why_not_batched

__all__ = ["TRIAL_ROWS", "TRIAL_S", "Trial", "chosen_engine", "told_estimate"]

TRIAL_ROWS, TRIAL_S = 8, 20.0
"""Spectra that are timed before the work begins, and seconds after which no more are begun."""


@dataclass(frozen=True)
class Trial:
    """What a few spectra took in one worker.

    Attributes
    ----------
    start_s : float
        To build the model and make a few spectra, which fills what later ones use again.
    spectrum_s : float
        Median of the same spectra, made once more.
    spectra : int
        How many these were.
    """

    start_s: float
    spectrum_s: float
    spectra: int

    def estimate_s(self, rows: int, rows_per_shard: int, workers: int) -> float:
        """Return the seconds that so many rows take, in whole shards on workers that make one each at a time.

        Examples
        --------
        >>> Trial(10.0, 0.05, 8).estimate_s(60_000, 2_000, 4)
        810.0
        """
        most = math.ceil(math.ceil(rows / rows_per_shard) / max(1, workers)) * rows_per_shard
        return self.start_s + min(most, rows) * self.spectrum_s


def chosen_engine(config: SurveyConfig, prior: Prior, grid: WavelengthGrid) -> tuple[str, str]:
    """Return "batched" or "prospector", and why spectra are not made in batches ("" where they are).

    Raises
    ------
    ConfigError
        If ``simulate.engine = "batched"`` is asked for, and this model cannot be made so.
    """
    asked = config.simulate.engine
    if asked == "prospector" and config.model.param_file is None:
        return asked, "simulate.engine = 'prospector' asks for it"
    why = why_not_batched(config.model, prior, grid)
    if why and asked == "batched":
        raise ConfigError(
            f"simulate.engine = 'batched': this model's spectra cannot be made in batches: {why}; expected "
            "simulate.engine = 'auto' or 'prospector', by which Prospector makes them one by one"
        )
    return ("prospector", why) if why else ("batched", "")


def told_estimate(stage: str, why: str, trial: Trial, rows: int, rows_per_shard: int, workers: int) -> str:
    """Return the line that says why spectra are made one by one, what one took, and when all will be there."""
    left = timedelta(seconds=math.ceil(trial.estimate_s(rows, rows_per_shard, workers)))
    return (
        f"{stage}: Prospector makes the spectra one by one ({why}). One took {trial.spectrum_s:.3g} s (median of "
        f"{trial.spectra}), after {trial.start_s:.3g} s to begin: {rows:,} on {workers} "
        f"{'worker' if workers == 1 else 'workers'} will take about {left}"
    )
