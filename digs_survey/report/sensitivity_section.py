"""The section on what faults of the data would cost the posterior."""

from __future__ import annotations

from typing import Any

from digs_survey.report.format import percent
from digs_survey.report.load import RunData

__all__ = ["sensitivity_section"]

_NAMED = 3
"""Faults that the words name."""


def sensitivity_section(run: RunData) -> dict[str, Any] | None:
    """Return the table of faults and what it says in words; None if it was not measured."""
    faults = run.audit.get("sensitivity")
    if not faults:
        return None
    unseen = sorted((one for one in faults[1:] if one["unnoticed"]), key=lambda one: -one["unnoticed"])
    words = "Every simulated row that one of these faults biases gets a quality bit."
    if unseen:
        named = ", ".join(f"{one['fault']} ({percent(one['unnoticed'], 0)} of the rows)" for one in unseen[:_NAMED])
        words = f"Rows would be biased without a bit most often by: {named}. Rule these out by other means."
    return {"faults": faults, "rows": faults[0]["rows"], "words": words}
