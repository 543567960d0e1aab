"""The section on what faults of the data would cost the posterior."""

from __future__ import annotations

from typing import Any

from digs_survey.audit.sensitivity.fault_table import worst_faults
from digs_survey.report.load import RunData

__all__ = ["sensitivity_section"]


def sensitivity_section(run: RunData) -> dict[str, Any] | None:
    """Return the table of faults and what it says in words; None if it was not measured."""
    faults = run.audit.get("sensitivity")
    return {"faults": faults, "rows": faults[0]["rows"], "words": worst_faults(faults)} if faults else None
