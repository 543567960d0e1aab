"""The verdict's lines: what they say of which audit, and when they ask for attention."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from digs_survey.report.domain_section import inside_headline
from digs_survey.report.headline import Headline, headlines
from digs_survey.report.row_agreement import row_agreement_section, with_agreement


def _verdict(covered=0.68, found=(), planted=True, converged=5, ratio=1.15, break_even=9):
    tests = [{"kind": kind, "quantity": quantity, "pvalue": 1e-5} for kind, quantity in found]
    audit = {
        "galaxies": 5,
        "calibration": {
            "simulations": 2000,
            "coverage": {"0.68": {"tage": covered}},
            "verdict": {"tests": 33, "found": tests, "planted": {"20 % too wide": True, "lost": planted}},
            "departures": {"shift_sigma": {"tage": -0.31}, "width_factor": {"tage": 0.96}},
        },
        "agreement": {
            "converged": converged,
            "mean_abs_shift_sigma": {"tage": 0.1, "all": 0.1},
            "mean_width_ratio": {"tage": ratio, "all": ratio},
            "mean_width_ratio_error": {"tage": 0.04, "all": 0.04},
        },
        "cost": {"baselines": {"batched": {"core_s_per_galaxy": 8.0, "break_even_galaxies": break_even}}},
    }
    run = SimpleNamespace(audit=audit, manifest={"inputs": {"catalog": {"rows": 10}}}, catalog=None)
    return {h.key: h for h in headlines(run)}


@pytest.mark.parametrize(
    ("fault", "key", "words"),
    [
        ({"covered": 0.63}, "coverage", "NOT calibrated in tage"),
        ({"covered": 0.73}, "coverage", "NOT calibrated in tage"),
        # A shift hardly moves the coverage; the ranks see it.
        ({"found": [("rank", "tage")]}, "coverage", "1 of 33 tests finds that the posterior is NOT exact"),
        ({"found": [("rank", "tage")]}, "coverage", "shifted by at most 0.31 σ, and its widths are off by at most 4 %"),
        ({"found": [("region", "all"), ("pair", "a x b")]}, "coverage", "in the region of all parameters together"),
        ({"ratio": 1.2}, "shift", "widths 1.20 ± 0.04 times emcee's"),
        ({"ratio": 0.8}, "shift", "widths 0.80 ± 0.04 times emcee's"),
        ({"converged": 4}, "shift", "1 of 5 chains did NOT converge"),
        ({"break_even": 11}, "break-even", "11 galaxies"),
    ],
)
def test_the_verdict_points_at_what_is_wrong(fault, key, words):
    assert {h.status for h in _verdict().values()} == {"good", "unknown"}
    assert _verdict(**fault)[key].status == "attention"
    assert words in _verdict(**fault)[key].words


def test_a_posterior_from_elsewhere_has_a_break_even_by_its_card():
    audit = {"cost": {"baselines": {"batched": {"core_s_per_galaxy": 9.0, "break_even_galaxies": 400}}}}
    manifest = {"stages": {"train": {"key": {"pretrained": "digs2022"}}}, "inputs": {"catalog": {"rows": 10}}}
    card = {"cost": {"simulate_core_s": 100.0, "train_core_s": 3500.0}}
    run = SimpleNamespace(audit=audit, manifest=manifest, catalog=None, card=card)
    found = next(h for h in headlines(run) if h.key == "break-even")
    assert (found.value, found.status) == ("400 galaxies", "measured")
    assert "The posterior digs2022 ships with digs-survey" in found.words
    assert "training 3,500" in found.note
    audit["cost"] = {}
    assert "is not known" in next(h for h in headlines(run) if h.key == "break-even").words


def test_the_verdict_says_which_faults_it_would_have_seen():
    words = _verdict()["coverage"].words
    assert "none of 33 tests finds a fault. Of 2 faults planted in the same draws, these tests find all." in words
    assert "these tests find only 1." in _verdict(planted=False)["coverage"].words


def test_the_cost_is_against_the_strong_baseline_where_known_and_names_it():
    batched = {"core_s_per_galaxy": 9.0, "galaxies_per_fit_map_only": 500, "break_even_galaxies": 70}
    prospector = {"core_s_per_galaxy": 90.0, "galaxies_per_fit_map_only": 5000, "break_even_galaxies": 7}

    def told(engine, **baselines):
        cost = {"mcmc_engine": engine, "baselines": baselines}
        run = SimpleNamespace(audit={"cost": cost}, manifest={}, catalog=None)
        return next(h for h in headlines(run) if h.key == "break-even")

    for engine in ("batched", "prospector"):
        both = told(engine, batched=batched, prospector=prospector)
        assert "NPE is cheaper than emcee on spectra in batches from 70 galaxies on." in both.words
        assert "one emcee fit on spectra in batches, 500 galaxies" in both.words
        ran = "The chains ran on Prospector's spectra, 90.0 s a galaxy"
        assert (ran in both.note) == (engine == "prospector")
        assert ("the same likelihoods would take 90.0 s a galaxy." in both.note) == (engine == "batched")
    alone = told("prospector", prospector=prospector, batched={"core_s_per_galaxy": None})
    assert "NPE is cheaper than emcee on Prospector's spectra from 7 galaxies on." in alone.words
    assert "batches" not in alone.words + alone.note


def test_the_first_screen_has_five_numbers_even_where_none_is_known():
    run = SimpleNamespace(audit={}, manifest={}, card=None, catalog=None)
    told = [*headlines(run), inside_headline(run)]
    assert [h.key for h in told] == ["coverage", "shift", "break-even", "flagged", "inside-verdict"]
    assert {(h.value, h.status) for h in told} == {("–", "unknown")}
    assert "was not measured" in told[-1].words


ESCALATED = {"low_agreement": 1300, "agreement_threshold": 0.5}


@pytest.mark.parametrize(
    ("told", "detail"),
    [
        (ESCALATED, ("low-agreement", "agreement below 0.5", "1,300")),
        (None, ("agreement-within", "within 0.3 σ of the exact posterior", "65.0 %")),
    ],
)
def test_the_flagged_rows_have_their_agreement_beside_them(told, detail):
    flagged = Headline("flagged", "Rows flagged", "Words.")
    learned = {"model": {}, "tolerance_sigma": 0.3, "share_within": 0.65}
    found = {"learned": learned, "told": told, "capped": ""}
    assert with_agreement(flagged, found) == flagged, "no model was learned"
    learned["model"] = {"intercept": 0.0}
    assert with_agreement(flagged, found).details == [detail]
    assert with_agreement(flagged, None) == flagged


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("not described", "NOT described by the model"), ("partly outside", "partly outside of what was simulated")],
)
def test_a_survey_that_is_not_inside_has_its_cap_on_the_first_screen(tmp_path, verdict, words):
    told = ESCALATED | {"verdict": verdict, "agreement_cap": 0.5, "capped": 7}
    audit = {"row_agreement": {"model": {"intercept": 0.0}, "tolerance_sigma": 0.3}}
    run = SimpleNamespace(folder=tmp_path, audit=audit, escalated=told)
    flagged = with_agreement(Headline("flagged", "Rows flagged", "Words.", "7", "measured"), row_agreement_section(run))
    assert (
        flagged.words
        == f"Words. The survey as a whole is {words}: agreement is capped at 0.5, in 7 rows (AGREEMENT_CAPPED)."
    )
    assert flagged.status == "attention"
    assert flagged.details[-1] == ("agreement-capped", "agreement capped at 0.5", "7")
    run = SimpleNamespace(folder=tmp_path, audit=audit, escalated=told | {"verdict": "inside", "capped": 0})
    inside = with_agreement(Headline("flagged", "Rows flagged", "Words.", "7", "measured"), row_agreement_section(run))
    assert (inside.words, inside.status, len(inside.details)) == ("Words.", "measured", 1)
