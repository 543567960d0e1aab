"""The report's section on the rows' trust and on whose percentiles they have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from digs_survey.report.figures import trust_plots as figures
from digs_survey.report.format import count, percent
from digs_survey.report.headline import Headline
from digs_survey.report.load import RunData, open_table
from digs_survey.store.locations import exists, is_file
from digs_survey.store.storage import read_json

__all__ = ["trust_section", "with_trust"]

_BINS = 40


def trust_section(run: RunData) -> dict[str, Any] | None:
    """Return the figures and numbers of trust; None where the audit has none."""
    learned = run.audit.get("trust")
    if learned is None:
        return None
    path = run.folder / "escalate.json"
    told = read_json(path) if is_file(path) else None
    pictures = []
    if held := learned.get("held_out"):
        pictures.append(figures.held_out(held["expected"], held["found"], learned["tolerance_sigma"]))
    if told is not None and learned.get("model") and exists(run.folder / "results.parquet"):
        edges = np.linspace(0, 1, _BINS + 1)
        counts = np.zeros(_BINS, dtype=np.int64)
        for batch in open_table(run.folder / "results.parquet").to_batches(columns=["trust"]):
            counts += np.histogram(batch["trust"].to_numpy(zero_copy_only=False), edges)[0]
        pictures.append(figures.spread(edges, counts, told["trust_threshold"]))
    return {"learned": learned, "told": told, "pictures": pictures}


def with_trust(flagged: Headline, trust: dict[str, Any] | None) -> Headline:
    """Add what is known of the rows' trust to the number of flagged rows.

    After an escalation, how many rows keep a posterior that is not trusted; before it, how many of the audited rows
    are within the tolerance of emcee.
    """
    if trust is None or not trust["learned"].get("model"):
        return flagged
    learned, told = trust["learned"], trust["told"]
    if told is not None:
        one = ("low-trust", "not trusted in the end", count(told["low_trust"]))
    else:
        name = f"audited, within {learned['tolerance_sigma']:g} σ of emcee"
        one = ("trust-within", name, percent(learned["share_within"]))
    return replace(flagged, details=[*flagged.details, one])
