"""Where the survey is not inside what was simulated, agreement is capped, and the terminal's last line says so."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.refine.escalate import above_cap, in_words
from digs_survey.results.columns import TIERS

AGREEMENT = np.array([0.2, 0.5, 0.500001, 0.9, np.nan], dtype=np.float32)


@pytest.mark.parametrize("verdict", ["not described", "partly outside"])
def test_only_rows_above_the_cap_are_lowered(verdict: str) -> None:
    assert above_cap(AGREEMENT, verdict, 0.5).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("verdict", ["inside", "unknown", None])
def test_no_row_is_lowered_where_nothing_speaks_against_the_survey(verdict: str | None) -> None:
    assert not above_cap(AGREEMENT, verdict, 0.5).any()


def test_the_last_line_says_what_was_capped_and_why() -> None:
    told = {"rows": dict(zip(TIERS, (8, 0, 2), strict=True)), "without_agreement": 0, "low_agreement": 3}
    told |= {"agreement_threshold": 0.5, "agreement_cap": 0.4, "capped": 6, "verdict": "inside"}
    assert "3 rows keep a neural posterior that agrees with the exact one with a chance below 0.5" in in_words(told)
    assert "AGREEMENT_CAPPED" not in in_words(told)
    words = in_words(told | {"verdict": "partly outside"})
    assert "partly outside of what was simulated, so that no row has an agreement above 0.4: 6 rows" in words
    assert "agreement is not known" in in_words(told | {"without_agreement": 10})
