"""The verdict: the few numbers that matter, each with what is expected of it and what it means here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from digs_survey.report.format import count, duration, fixed, number, percent
from digs_survey.report.load import RunData

__all__ = ["SHIFT_TOLERANCE", "Headline", "coverage_limits", "headlines", "nested"]

SHIFT_TOLERANCE = 0.3
"""Mean |shift| between NPE and emcee, in sigma, that this project asks for."""

_BASELINES = {"batched": "spectra in batches", "prospector": "Prospector's spectra"}
"""Of cost, the strong one first."""

_LEVEL = 0.68
_COVERAGE_TOLERANCE = 0.04
_WIDTH_TOLERANCE = 0.1
"""Of the mean ratio of widths from 1, beyond twice its standard error."""


@dataclass(frozen=True)
class Headline:
    """One number of the verdict.

    Attributes
    ----------
    key, title : str
    words : str
        The number's sentence in the verdict.
    value : str
        The number as it stands large on the page.
    status : {"good", "attention", "measured", "unknown"}
        Against what is expected, where something is.
    note : str
        What it is measured on, and what is expected of it.
    details : list of (key, name, value)
        Parts of the number, as for each parameter.
    """

    key: str
    title: str
    words: str
    value: str = "–"
    status: str = "unknown"
    note: str = ""
    details: list[tuple[str, str, str]] = field(default_factory=list)


def nested(data: dict[str, Any], *keys: str) -> Any:
    """Return ``data[key1][key2]...``, or None where a key is missing or null on the way."""
    value: Any = data
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def coverage_limits(simulations: int) -> tuple[float, float]:
    """Shares of truths between which the coverage of the 68 % interval is as it should be.

    0.04 on either side, or the 95 % of a right posterior's sampling error if the simulations are few.
    """
    reach = max(_COVERAGE_TOLERANCE, 1.96 * math.sqrt(_LEVEL * (1 - _LEVEL) / max(1, simulations)))
    return _LEVEL - reach, _LEVEL + reach


def headlines(run: RunData) -> list[Headline]:
    """Return the numbers of the verdict in their order; whether the survey is inside is told elsewhere."""
    return [_coverage(run), _agreement(run), _cost(run), _flagged(run)]


def _coverage(run: RunData) -> Headline:
    title = "Coverage of the 68 % interval"
    found = nested(run.audit, "calibration", "coverage", f"{_LEVEL:g}") or {}
    covered: dict[str, float] = {name: value for name, value in found.items() if value is not None}
    simulations = nested(run.audit, "calibration", "simulations") or 0
    if not covered or not simulations:
        return Headline("coverage", title, "Whether the posterior is calibrated was not measured.")
    low, high = coverage_limits(simulations)
    outside = [name for name, value in covered.items() if not low <= value <= high]
    first, last = (fixed(100 * round(side, 3), 1) for side in (min(covered.values()), max(covered.values())))
    held = f"68 % intervals hold {first}–{last} % of the true values"
    verdict = nested(run.audit, "calibration", "verdict") or {"found": [], "tests": 0}
    if outside:
        words = f"On simulations of the model the posterior is NOT calibrated in {', '.join(outside)}: its {held}."
    elif verdict["found"]:
        # A shift by a third of sigma, or a lost correlation, leaves these intervals almost as they were.
        departures = nested(run.audit, "calibration", "departures") or {}
        words = f"On simulations of the model the {held}, as they should, but {_found(verdict, departures)}"
    else:
        words = (
            f"On simulations of the model the posterior is calibrated: its {held}, and none of {verdict['tests']} "
            "tests finds a fault."
        )
    if planted := verdict.get("planted"):
        seen = "all" if all(planted.values()) else f"only {sum(planted.values())}"
        words += f" Of {len(planted)} faults planted in the same draws, these tests find {seen}."
    return Headline(
        "coverage",
        title,
        words,
        f"{fixed(min(covered.values()), 3)}–{fixed(max(covered.values()), 3)}",
        "attention" if outside or verdict["found"] else "good",
        f"Expected: {fixed(low, 2)}–{fixed(high, 2)} for each parameter. "
        f"On {count(simulations)} independent simulations.",
        [(f"coverage-{name}", name, fixed(value, 3)) for name, value in covered.items()],
    )


def _found(verdict: dict[str, Any], departures: dict[str, dict[str, float | None]]) -> str:
    """Say which tests find a fault, and how large it is."""
    shift, width = (
        max((abs(value - right) for value in departures.get(name, {}).values() if value is not None), default=None)
        for name, right in (("shift_sigma", 0.0), ("width_factor", 1.0))
    )
    first, finds = verdict["found"][0], "finds" if len(verdict["found"]) == 1 else "find"
    subject = "all parameters together" if first["quantity"] == "all" else first["quantity"]
    return (
        f"{len(verdict['found'])} of {verdict['tests']} tests {finds} that the posterior is NOT exact (first of all in "
        f"the {first['kind']} of {subject}): it is shifted by at most {fixed(shift, 2)} σ, and its widths are off by "
        f"at most {percent(width, 0)}."
    )


def _agreement(run: RunData) -> Headline:
    title = "NPE against emcee, mean |shift|"
    galaxies, converged = run.audit.get("galaxies") or 0, nested(run.audit, "agreement", "converged") or 0
    shifts = nested(run.audit, "agreement", "mean_abs_shift_sigma") or {}
    shift = shifts.get("all")
    if not galaxies:
        return Headline("shift", title, "No galaxy was given to emcee.")
    if not converged or shift is None:
        words = f"None of the {galaxies} emcee chains converged, so NPE could NOT be compared with emcee."
        note = "See which chains, and how long they were, below."
        return Headline("shift", title, words, status="attention", note=note)
    missing = galaxies - converged
    words = f"NPE and emcee differ by {fixed(shift, 2)} σ on average"
    ratio, error = (
        nested(run.audit, "agreement", key, "all") for key in ("mean_width_ratio", "mean_width_ratio_error")
    )
    if ratio is not None:
        width = fixed(ratio, 2) + (f" ± {fixed(error, 2)}" if error is not None else "")
        words += f", with widths {width} times emcee's"
    fits = ratio is None or abs(ratio - 1) <= _WIDTH_TOLERANCE + 2 * (error or 0)
    words += f"; {missing} of {galaxies} chains did NOT converge." if missing else f", over {galaxies} galaxies."
    return Headline(
        "shift",
        title,
        words,
        f"{fixed(shift, 2)} σ",
        "good" if shift < SHIFT_TOLERANCE and fits and not missing else "attention",
        f"Expected: below {SHIFT_TOLERANCE} σ, and widths within {percent(_WIDTH_TOLERANCE, 0)} of emcee's, "
        "give or take two standard errors. "
        f"Over {converged} of {galaxies} galaxies, those with converged chains.",
        [(f"shift-{name}", name, f"{fixed(value, 2)} σ") for name, value in shifts.items() if name != "all"],
    )


def _baseline(run: RunData) -> tuple[str, dict[str, Any]]:
    """Return the name and the figures of the strong baseline of the cost, or of Prospector's where it is not known."""
    for name, words in _BASELINES.items():
        one = nested(run.audit, "cost", "baselines", name) or {}
        if one.get("core_s_per_galaxy") is not None:
            return words, one
    return "", {}


def _speed(run: RunData) -> Headline:
    title = "Galaxies for the price of one emcee fit"
    spectra, one = _baseline(run)
    mapped, whole = one.get("galaxies_per_fit_map_only"), one.get("galaxies_per_fit_with_training_at_catalog")
    if mapped is None:
        return Headline("speed", title, "What an emcee fit costs was not measured.")
    words = f"For the price of one emcee fit on {spectra}, {number(mapped)} galaxies are mapped."
    note = "On the same cores in the same run. The second number spreads simulation and training over this catalog."
    slow = nested(run.audit, "cost", "baselines", "prospector", "core_s_per_galaxy")
    if spectra == _BASELINES["batched"] and slow is not None:
        if nested(run.audit, "cost", "mcmc_engine") == "batched":
            note += f" With Prospector's spectra the same likelihoods would take {duration(slow)} a galaxy."
        else:
            note += f" The chains ran on Prospector's spectra, {duration(slow)} a galaxy; batches: their likelihoods."
    return Headline(
        "speed",
        title,
        words,
        number(mapped),
        "measured",
        note,
        [("speed-map", "galaxies a fit, mapping", number(mapped)), ("speed-all", "with training too", number(whole))],
    )


def _cost(run: RunData) -> Headline:
    even, speed = _break_even(run), _speed(run)
    return replace(
        even,
        words=f"{even.words} {speed.words}",
        status=speed.status if even.status == "unknown" else even.status,
        note=f"{even.note} {speed.note}".strip(),
        details=speed.details,
    )


def _break_even(run: RunData) -> Headline:
    title = "Break-even"
    spectra, one = _baseline(run)
    galaxies = one.get("break_even_galaxies")
    rows = nested(run.manifest, "inputs", "catalog", "rows")
    shipped = nested(run.manifest, "stages", "train", "key", "pretrained")
    first = (
        f"The posterior {shipped} ships with digs-survey: nothing was simulated or trained here. " if shipped else ""
    )
    if galaxies is None:
        return Headline("break-even", title, f"{first}From how many galaxies on NPE is cheaper is not known.")
    value = f"{count(math.ceil(galaxies))} galaxies"
    limits = one.get("break_even_galaxies_95")
    between = f" 95 % of resampled chains give {count(limits[0])} to {count(limits[1])}." if limits else ""
    words = f"{first}With simulation and training, NPE is cheaper than emcee on {spectra} from {value} on."
    if shipped:
        cost = [nested(run.card or {}, "cost", key) for key in ("simulate_core_s", "train_core_s")]
        note = (
            f"Elsewhere, simulating took {number(cost[0])} core-seconds and training {number(cost[1])}, which counts."
        )
        return Headline("break-even", title, words, value, "measured", note + between)
    if rows is None:
        return Headline("break-even", title, words, value, "measured", between.strip())
    enough = rows >= galaxies
    note = f"Expected: fewer than this catalog's {count(rows)}.{between}"
    return Headline("break-even", title, words, value, "good" if enough else "attention", note)


def _flagged(run: RunData) -> Headline:
    title = "Rows flagged"
    if run.catalog is None:
        return Headline("flagged", title, "The catalog was not mapped.")
    rows, flagged, without = run.catalog.rows, run.catalog.flagged, run.catalog.without_posterior
    words = f"{count(flagged)} of {count(rows)} rows carry a quality bit and {count(without)} have no posterior."
    status = "attention" if without else "measured" if flagged else "good"
    note = f"Of {count(rows)} rows ({percent(flagged / max(1, rows))}); {count(without)} have no posterior."
    return Headline("flagged", title, words, count(flagged), status, note)
