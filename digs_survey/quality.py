"""Quality bits: why a row of the result is not to be trusted, or has no posterior at all."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

__all__ = ["DESCRIPTIONS", "NO_POSTERIOR", "QualityFlag", "describe", "without_posterior"]


class QualityFlag(IntFlag):
    """Bits of the ``quality`` column; 0 means that nothing was found wrong."""

    NONFINITE_FLUX = 1 << 0
    BAD_IVAR = 1 << 1
    FEW_GOOD_ELEMENTS = 1 << 2
    FILLED_ELEMENTS = 1 << 3
    NONPOSITIVE_FLUX = 1 << 4
    BAD_REDSHIFT = 1 << 5
    DUPLICATE_ID = 1 << 6
    OUTSIDE_SIMULATIONS = 1 << 7
    PRIOR_EDGE = 1 << 8
    UNEVEN_WEIGHTS = 1 << 9
    UNREADABLE = 1 << 10
    POOR_FIT = 1 << 11
    LOW_AGREEMENT = 1 << 12
    OUTSIDE_CONDITIONS = 1 << 13
    AGREEMENT_CAPPED = 1 << 14
    CALIBRATION_STEP = 1 << 15
    BAD_PHOTOMETRY = 1 << 16


DESCRIPTIONS: dict[QualityFlag, str] = {
    QualityFlag.NONFINITE_FLUX: "unmasked elements hold NaN or infinite flux; they were treated as masked",
    QualityFlag.BAD_IVAR: "unmasked elements have a negative, zero or non-finite inverse variance; "
    "they were treated as masked",
    QualityFlag.FEW_GOOD_ELEMENTS: "fewer good elements than map.min_good_fraction asks for; no posterior",
    QualityFlag.FILLED_ELEMENTS: "masked elements were filled by interpolation before inference",
    QualityFlag.NONPOSITIVE_FLUX: "unmasked elements have zero or negative flux, whose log10 means nothing; "
    "they were treated as masked",
    QualityFlag.BAD_REDSHIFT: "the redshift is not finite or not positive; no posterior",
    QualityFlag.DUPLICATE_ID: "another row of the catalog has the same galaxy_id",
    QualityFlag.OUTSIDE_SIMULATIONS: "features lie outside the range of the training simulations",
    QualityFlag.PRIOR_EDGE: "the posterior piles up at an edge of the prior in at least one parameter",
    QualityFlag.UNEVEN_WEIGHTS: "a few draws have most of the importance weight (Pareto k above 0.7, or an effective "
    "sample size below 20): the posterior misses part of the exact one, and weighted percentiles and evidence are not "
    "to be trusted",
    QualityFlag.UNREADABLE: "the row's part of the catalog is damaged: its checksum fails or it cannot be decoded; "
    "no posterior",
    QualityFlag.POOR_FIT: "spectra of the row's posterior do not look like it (predictive_pvalue or shift_pvalue below "
    "map.min_pvalue): the model, the noise or the redshift is not the galaxy's",
    QualityFlag.LOW_AGREEMENT: "the row's neural posterior probably does not agree with the exact posterior of the "
    "same model (agreement below escalate.agreement_threshold), and the budget had no better one",
    QualityFlag.OUTSIDE_CONDITIONS: "the row's errors, gaps or redshift are not those that the posterior was trained "
    "for; it may be too wide or too narrow",
    QualityFlag.AGREEMENT_CAPPED: "the survey as a whole is not inside what was simulated, so that agreement with the "
    "exact posterior says little; it was higher than escalate.agreement_cap, and was lowered to it",
    QualityFlag.CALIBRATION_STEP: "the residuals have a step at some wavelength (step_pvalue below map.min_pvalue), as "
    "where the arms of a spectrograph join badly; ordinary galaxies can have it too, where the model is not exact",
    QualityFlag.BAD_PHOTOMETRY: "a band has an infinite flux, or a negative or infinite inverse variance; it was left "
    "out",
}

NO_POSTERIOR = QualityFlag.FEW_GOOD_ELEMENTS | QualityFlag.BAD_REDSHIFT | QualityFlag.UNREADABLE
"""Rows with one of these bits have NaN percentiles."""


def describe(quality: int) -> list[str]:
    """Return the names of the bits that are set in ``quality``."""
    return [flag.name or str(flag.value) for flag in QualityFlag if quality & flag]


_DECIDED_BY = {
    QualityFlag.FEW_GOOD_ELEMENTS: "map.min_good_fraction = {min_good_fraction:g}",
    QualityFlag.BAD_REDSHIFT: "column redshift",
    QualityFlag.UNREADABLE: "damaged parts of the catalog",
}


def without_posterior(quality: NDArray[np.integer], min_good_fraction: float) -> str:
    """Say in a line how many rows have no posterior, for which reason, and what decides it.

    Parameters
    ----------
    quality : ndarray of int, shape (row,)
    min_good_fraction : float
        ``map.min_good_fraction`` of the run.

    Examples
    --------
    >>> without_posterior(np.array([0, 4, 36]), 0.8)
    '2 of 3 rows have no posterior: 2 FEW_GOOD_ELEMENTS (map.min_good_fraction = 0.8), 1 BAD_REDSHIFT (column redshift)'
    >>> without_posterior(np.array([0]), 0.8)
    'all 1 rows have a posterior'
    """
    count = int(((quality & int(NO_POSTERIOR)) != 0).sum())
    if not count:
        return f"all {quality.size:,} rows have a posterior"
    reasons = [
        f"{found:,} {flag.name} ({setting.format(min_good_fraction=min_good_fraction)})"
        for flag, setting in _DECIDED_BY.items()
        if (found := int(((quality & int(flag)) != 0).sum()))
    ]
    return f"{count:,} of {quality.size:,} rows have no posterior: {', '.join(reasons)}"
