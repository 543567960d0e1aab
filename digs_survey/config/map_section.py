"""The section of the map."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from digs_survey.config.types import Fraction, Section, Share
from digs_survey.parameters import percent, rate_at

__all__ = ["MIN_RECALIBRATION", "DerivedName", "MapConfig"]

DerivedName = Literal[
    "tage", "surviving_mass", "mass_weighted_age", "sfr_10", "sfr_100", "ssfr_10", "ssfr_100", "t50", "t90"
]
MIN_RECALIBRATION = 1_000
"""Simulations below which corrected levels are no better than what they correct."""


class MapConfig(Section):
    """Applying the frozen posterior to every row."""

    of_rows: ClassVar[frozenset[str]] = frozenset({"error_floor", "mask_lines"})
    """Keys that need noise.kind = "row"."""
    added = of_rows | {"history_lookback_gyr"}

    draws: Annotated[int, Field(ge=16)] = 1_000
    quantiles: tuple[Fraction, ...] = (0.025, 0.16, 0.5, 0.84, 0.975)
    rows_per_shard: Annotated[int, Field(ge=0)] = 0
    """Rows that are computed, written and marked as done together; 0 takes a power of two between 256 and 65,536 that
    makes some 256 shards. Results do not depend on it."""
    derived: tuple[DerivedName, ...] = ()
    """What percentiles are wanted of besides the parameters; surviving mass needs the model's populations."""
    history_lookback_gyr: tuple[Annotated[float, Field(ge=1e-4, le=14)], ...] = ()
    """Lookback times, in order, at which percentiles of the star formation rate are wanted."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Draws of each row, evenly thinned, that are kept in posterior.zarr."""
    samples_column: str = ""
    """Column of the catalog whose nonzero rows keep them; without one, every row does."""
    min_good_fraction: Fraction = 0.8
    """Rows with fewer good elements get a quality bit and no posterior."""
    error_floor: Share | Literal["fit"] = 0.02
    """With noise.kind = "row": share of a row's own smoothed flux that is added in quadrature to its errors, for what
    the model gets wrong and the catalog's errors leave out. "fit" learns it from the residuals of the survey's rows."""
    mask_lines: bool = True
    """With noise.kind = "row": leave out the elements of strong emission lines, which the model's gas, of one
    ionisation parameter, describes badly in many galaxies."""
    predictive_draws: Annotated[int, Field(ge=0)] = 0
    """Draws of each row whose spectra are held against it: chi-square, its p-value, those of an error of the redshift
    and of a step in the calibration, the distance of its features from those of the simulations, and the bits POOR_FIT
    and CALIBRATION_STEP; 0 leaves all of that out."""
    min_pvalue: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """P-value below which a row gets POOR_FIT (chi-square, redshift) or CALIBRATION_STEP (step)."""
    recalibrate: Annotated[int, Field(ge=0)] = 0
    """Simulations on which the levels of the parameters' percentiles are corrected, so that each holds the share of
    truths that it names; 0 gives the posterior's own. Draws, derived quantities and weighted percentiles stay."""
    edge_fraction: Fraction = 0.02
    """Share of the prior's probability in the strip at each end that PRIOR_EDGE looks at. Of a uniform prior it is the
    share of the range."""
    edge_mass: Fraction = 0.25
    """Posterior mass in that strip from which on a row gets PRIOR_EDGE."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Ray actors; 0 takes one for each core of the cluster."""

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of all that is derived from draws."""
        return (*self.derived, *(rate_at(time).name for time in self.history_lookback_gyr))

    def shard_size(self, rows: int) -> int:
        """Return the rows of a shard of a catalog of so many rows."""
        if self.rows_per_shard:
            return self.rows_per_shard
        return min(max(2 ** math.ceil(math.log2(rows / 256)), 256), 65_536)

    @model_validator(mode="after")
    def _samples(self) -> MapConfig:
        if self.samples > self.draws:
            raise ValueError(f"samples: expected at most the {self.draws} draws, found {self.samples}")
        if 0 < self.recalibrate < MIN_RECALIBRATION:
            raise ValueError(
                f"recalibrate: expected 0 or at least {MIN_RECALIBRATION} simulations, found {self.recalibrate}"
            )
        if self.predictive_draws > self.draws:
            raise ValueError(
                f"predictive_draws: expected at most the {self.draws} draws, found {self.predictive_draws}"
            )
        if self.samples_column and not self.samples:
            raise ValueError("samples_column: expected samples = 1 or more with it, found 0")
        if len(set(self.derived)) < len(self.derived):
            raise ValueError("derived: expected each quantity once")
        if list(self.history_lookback_gyr) != sorted(set(self.history_lookback_gyr)):
            raise ValueError("history_lookback_gyr: expected increasing lookback times")
        return self

    @model_validator(mode="after")
    def _quantiles(self) -> MapConfig:
        if list(self.quantiles) != sorted(set(self.quantiles)) or 0.5 not in self.quantiles:
            raise ValueError("expected increasing quantiles that include 0.5")
        names = [percent(quantile) for quantile in self.quantiles]
        if same := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                "quantiles: expected values that differ in the first six digits of their percentage, which names their "
                f"columns, found two of {same[0]} %"
            )
        return self
