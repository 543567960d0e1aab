"""The report's section on the rows' agreement and on whose percentiles they have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from digs_survey.audit.domain.domain_check import OUTSIDE_VERDICTS
from digs_survey.report.figures import row_agreement_plots as figures
from digs_survey.report.format import count, percent
from digs_survey.report.headline import Headline
from digs_survey.report.load import RunData, open_table
from digs_survey.store.locations import exists

__all__ = ["row_agreement_section", "with_agreement"]

_BINS = 40


def row_agreement_section(run: RunData) -> dict[str, Any] | None:
    """Return the figures and numbers of the rows' agreement; None where the audit has none."""
    learned = run.audit.get("row_agreement")
    if learned is None:
        return None
    told = run.escalated
    pictures = []
    if held := learned.get("held_out"):
        pictures.append(figures.held_out(**held, tolerance=learned["tolerance_sigma"]))
    if told is not None and learned.get("model") and exists(run.folder / "results.parquet"):
        edges = np.linspace(0, 1, _BINS + 1)
        counts = np.zeros(_BINS, dtype=np.int64)
        for batch in open_table(run.folder / "results.parquet").to_batches(columns=["agreement"]):
            counts += np.histogram(batch["agreement"].to_numpy(zero_copy_only=False), edges)[0]
        pictures.append(figures.spread(edges, counts, told["agreement_threshold"]))
    return {"learned": learned, "told": told, "capped": _capped(told), "pictures": pictures}


def _capped(told: dict[str, Any] | None) -> str:
    """Say why no row has a higher agreement than the cap; empty where there is no cap."""
    if told is None or told["verdict"] not in OUTSIDE_VERDICTS:
        return ""
    return (
        f"The survey as a whole is {OUTSIDE_VERDICTS[told['verdict']]}: agreement is capped at "
        f"{told['agreement_cap']:g}, in {count(told['capped'])} rows (AGREEMENT_CAPPED)."
    )


def with_agreement(flagged: Headline, found: dict[str, Any] | None) -> Headline:
    """Add what is known of the rows' agreement to the number of flagged rows.

    After an escalation, how many rows keep a posterior whose agreement is low, and for how many it was capped; before
    it, how many of the spectra that it was learned from are within the tolerance of the exact posterior.
    """
    if found is None or not found["learned"].get("model"):
        return flagged
    learned, told, capped = found["learned"], found["told"], found["capped"]
    if told is None:
        name = f"within {learned['tolerance_sigma']:g} σ of the exact posterior"
        return replace(
            flagged, details=[*flagged.details, ("agreement-within", name, percent(learned["share_within"]))]
        )
    name = f"agreement below {told['agreement_threshold']:g}"
    details = [*flagged.details, ("low-agreement", name, count(told["low_agreement"]))]
    if not capped:
        return replace(flagged, details=details)
    details.append(("agreement-capped", f"agreement capped at {told['agreement_cap']:g}", count(told["capped"])))
    status = flagged.status if flagged.status == "unknown" else "attention"
    return replace(flagged, words=f"{flagged.words} {capped}", status=status, details=details)
