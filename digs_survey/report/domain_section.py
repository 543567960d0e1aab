"""The section on whether the survey is inside what was simulated, and its line in the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from digs_survey.report.figures import domain_plots as figures
from digs_survey.report.format import count, fixed, number, percent
from digs_survey.report.headline import Headline, nested
from digs_survey.report.load import RunData
from digs_survey.report.sections import wavelength_axis

__all__ = ["inside_headline", "inside_section"]

_SMALL = 1e-5
_FAR = "distance_above_99.9%"
_NAMES = {
    "distance_above_99%": "features further than those of 99 % of the simulations",
    _FAR: "features further than those of 99.9 % of the simulations",
    "pvalue_below_0.01": "predictive p-value below 0.01",
    "pvalue_below_1e-05": "predictive p-value below 0.00001",
    "pvalue_above_0.99": "predictive p-value above 0.99 (the noise is smaller than it is taken for)",
}
_STRONGER = {"distance_above_99%": _FAR, "pvalue_below_0.01": "pvalue_below_1e-05"}
"""What is not said where something stronger is."""
_NAMED = 3
"""Ranges of wavelength that the verdict names."""


def inside_section(run: RunData) -> dict[str, Any] | None:
    """Return the stacked residuals, the map of the rows and the rows of the tables; None if it was not measured."""
    told, data = run.audit.get("domain"), run.survey
    if not told or data is None or told["verdict"] == "unknown":
        return None
    values = {name: data[name].values for name in data.variables}
    known = np.isfinite(values["feature_distance"]) & np.isfinite(values["pvalue"])
    simulated = np.isfinite(values["simulated_feature_distance"]) & np.isfinite(values["simulated_pvalue"])
    return {
        "residuals": figures.stacks(
            values["wavelength"],
            values["residual_sigma"],
            values["residual_sigma_error"],
            values["residual_percent"],
            values["residual_percent_error"],
            told["departures"],
            wavelength_axis(run),
        ),
        "outliers": figures.outliers(
            values["feature_distance"][known],
            values["pvalue"][known],
            values["simulated_feature_distance"][simulated],
            values["simulated_pvalue"][simulated],
            told["shares"][_FAR]["limit"],
            _SMALL,
        ),
        "numbers": told,
        "words": _words(told),
        "shares": [{"name": _NAMES.get(name, name), **one} for name, one in told["shares"].items()],
    }


def inside_headline(run: RunData) -> Headline:
    """Return the verdict's line, which says so if it was not measured."""
    told = run.audit.get("domain")
    title = "Survey inside the simulations"
    if not told:
        words = "Whether the survey is inside what was simulated was not measured."
        return Headline("inside-verdict", title, words, note="Set audit.checked_galaxies above 0 and audit again.")
    if told["verdict"] == "unknown":
        return Headline("inside-verdict", title, "Whether the survey is inside what was simulated is not known.")
    far, odd, close = (nested(told, "shares", name) for name in (_FAR, "pvalue_below_1e-05", "pvalue_above_0.99"))
    value = {"inside": "yes", "partly outside": "partly", "not described": "NO"}[told["verdict"]]
    return Headline(
        "inside-verdict",
        title,
        _words(told),
        value,
        "good" if value == "yes" else "attention",
        f"Of {count(told['rows'])} rows drawn at random, beside {count(told['simulations'])} simulations.",
        [
            ("inside-far", "far from the training set", percent(far["share"])),
            ("inside-odd", "not explained (p < 0.00001)", percent(odd["share"])),
            ("inside-close", "too close (p > 0.99)", percent(close["share"])),
            ("inside-ranges", "wavelengths that depart", count(len(told["departures"] + told["observed_departures"]))),
        ],
    )


def _words(told: dict[str, Any]) -> str:
    if told["verdict"] == "inside":
        return (
            f"The survey is inside what was simulated, as far as {count(told['rows'])} rows tell: a feature that all "
            f"share would have been seen from {fixed(told['min_sigma'], 2)} σ on."
        )
    words = []
    kinds = (told["departures"], ""), (told["observed_departures"], " in the observed frame")
    if places := " and ".join(f"{_places(found)}{where}" for found, where in kinds if found):
        words.append(f"The model does NOT describe the survey's flux at {places}.")
    described = not words
    weaker = {name for name, stronger in _STRONGER.items() if stronger in told["reasons"]}
    for name in [name for name in told["reasons"] if name not in weaker]:
        one = told["shares"][name]
        words.append(
            f"{percent(one['share'])} of the rows, but {_share(one['simulations_share'])} of the simulations, have "
            f"{'a ' if name.startswith('p') else ''}{_NAMES.get(name, name)}."
        )
    if told["reasons"] and described:
        words.insert(0, "Part of the survey is OUTSIDE what was simulated.")
    return " ".join(words)


def _places(found: Sequence[dict[str, Any]]) -> str:
    furthest = sorted(found, key=lambda one: -abs(one["sigma"]))
    more = f" and in {len(found) - _NAMED} more ranges" if len(found) > _NAMED else ""
    return (
        ", ".join(
            f"{one['low']:.0f}–{one['high']:.0f} Å ({fixed(one['sigma'], 2, signed=True)} σ)"
            for one in furthest[:_NAMED]
        )
        + more
    )


def _share(share: float) -> str:
    return "none" if share == 0 else f"{number(100 * share, 2)} %"
