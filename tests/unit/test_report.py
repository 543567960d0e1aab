"""The report: what it says is what the run directory holds, and it holds together without it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic_run import build_run

from digs_survey.config import load_config
from digs_survey.errors import RunDirectoryError
from digs_survey.report import galaxies
from digs_survey.report.html import write_report
from digs_survey.report.sections import facts, importance_section
from digs_survey.store.storage import write_json

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('mine')<\\script>.zarr"


class Page(HTMLParser):
    """The page as a list of elements, each with its ancestors and text; unbalanced tags are errors."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.elements = html, [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": list(self.open), **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [e for e in self.elements if e["tag"] == tag]

    def by_id(self, name):
        (element,) = [e for e in self.elements if e.get("id") == name]
        return element


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ([], "5 % of the flux"),
        (["space=log10"], "5 % of the flux, Gaussian in log10 flux"),
        (["kind=catalog"], "the catalog's inverse variances, with 5 % of the flux added in quadrature"),
        (
            ["kind=catalog", "poisson_share=0.3", "fraction=0", "kernel=[1.0, 0.25]"],
            "the catalog's inverse variances, 30 % of them Poisson; shared between neighbours by the kernel 1, 0.25",
        ),
        (["kind=constant", "fraction=0"], "constant in each element (the median of the catalog)"),
        (["kind=constant", "sigma_flam=[1e-9, 2e-9]", "fraction=0"], "constant in each element (given)"),
        (
            ["kind=constant", "sigma_flam=1e-9", "fraction=0.02", "missing.probability=0.1"],
            "1e-09 erg/s/cm2/Å at any flux, with 2 % of the flux added in quadrature; "
            "10 % of the simulations lack a stretch of 1 to 10 elements",
        ),
    ],
)
def test_the_noise_is_said_in_words(settings, text):
    config = load_config(None, [f"noise.{setting}" for setting in settings])
    assert facts(SimpleNamespace(config=config, manifest={}, card=None))["noise"] == text


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run in which all went well."""
    folder, audit = build_run(tmp_path_factory.mktemp("run") / "sound", galaxies=1, converged=1)
    return Page(write_report(folder).read_text()), audit


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    """No chain converged, one failed, the truth is not known, and the catalog has a hostile name."""
    folder, audit = build_run(
        tmp_path_factory.mktemp("run") / "doubtful",
        galaxies=3,
        converged=0,
        failed=1,
        known_truth=False,
        name=HOSTILE,
        simulations=200,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(galaxies, "GALAXIES_SHOWN", 2)
        first = write_report(folder).read_text()
    return Page(first), audit


def test_the_page_fetches_nothing_and_runs_nothing(sound):
    page, _ = sound
    assert len(page.html) < 4e6
    assert not {"script", "link", "iframe", "object"} & {e["tag"] for e in page.elements}
    assert not re.search(r"@import|url\(", "".join(e["text"] for e in page.all("style")))
    for element in page.elements:
        for name in ("src", "srcset"):
            assert element.get(name, "data:").startswith("data:")
        assert " " not in element.get("srcset", ""), "a srcset is split at spaces"
        assert not any(name.startswith("on") for name in element)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids or link["href"].startswith("https://arxiv.org/abs/")


def test_every_figure_has_pictures_alt_text_and_caption(sound):
    page, _ = sound
    figures = page.all("figure")
    wanted = {"spectrum-1", "history-1", "corner-1", "recovery", "ranks", "rank-cdf", "coverage-curve", "bins", "edges"}
    assert wanted | {"shifts", "residuals", "learning", "cost-figure", "medians"} == {f["id"] for f in figures}
    for figure in figures:
        images = [i for i in page.all("img") if figure in i["inside"]]
        captions = [c for c in page.all("figcaption") if figure in c["inside"]]
        assert images
        assert all(len(i["alt"]) > 20 for i in images)
        assert len(captions) == 1
        assert len(captions[0]["text"].split()) > 20
    for box in page.all("table"):
        assert any(e.get("class") == "scroll" for e in box["inside"]), "a wide table must scroll by itself"


def test_the_numbers_are_those_of_the_audit(sound):
    page, audit = sound
    strong = audit["cost"]["baselines"]["batched"]
    for par in audit["parameters"]:
        covered = audit["calibration"]["coverage"]["0.68"][par]
        assert page.by_id(f"coverage-{par}")["text"] == f"{covered:.3f}"
        shift = audit["agreement"]["mean_abs_shift_sigma"][par]
        assert page.by_id(f"shift-{par}")["text"] == f"{shift:.2f} σ"
    assert page.by_id("shift")["text"] == f"{audit['agreement']['mean_abs_shift_sigma']['all']:.2f} σ"
    assert page.by_id("break-even")["text"] == f"{strong['break_even_galaxies']} galaxies"
    assert page.by_id("speed-map")["text"] == "5,000"
    at_catalog = strong["galaxies_per_fit_with_training_at_catalog"]
    assert float(page.by_id("speed-all")["text"]) == pytest.approx(at_catalog, rel=5e-3)
    assert page.by_id("flagged")["text"] == "5"
    text = page.by_id("calibration")["text"]
    for par in audit["parameters"]:
        row = [f"{audit['calibration']['coverage'][q][par]:.3f}" for q in ("0.5", "0.68", "0.9", "0.95")]
        assert "".join(row) in text
    assert "did NOT converge" not in page.html
    assert f"p = {audit['calibration']['tarp']['pvalue']:.2g}" in page.by_id("coverage-curve-caption")["text"]
    assert len([i for i in page.all("img") if page.by_id("coverage-curve") in i["inside"]]) == 6
    ratio, error = (audit["agreement"][key]["tage"] for key in ("mean_width_ratio", "mean_width_ratio_error"))
    assert f"{ratio:.3f} ± {error:.3f}" in page.by_id("agreement")["text"]


def test_every_test_its_sizes_and_what_it_could_not_have_seen_are_told(sound):
    page, audit = sound
    found, text = audit["calibration"], page.by_id("calibration")["text"]
    assert f"{found['verdict']['tests']} tests look at the same simulations" in text
    assert float(page.by_id("verdict-pvalue")["text"]) == pytest.approx(found["verdict"]["pvalue"], rel=0.06)
    for par in audit["parameters"]:
        shift, error = (found["departures"][key][par] for key in ("shift_sigma", "shift_sigma_error"))
        assert f"{shift:+.3f} ± {error:.3f}".replace("-", "−") in text
    assert "Found: 20 % too narrow. NOT found, so that this audit could not have told: " in text
    assert f"{audit['parameters'][0]} without correlation." in text
    assert "these tests find only 1." in page.by_id("verdict")["text"]
    bins = [i["alt"] for i in page.all("img") if page.by_id("bins") in i["inside"]]
    # One for each parameter's median; S/N was not known.
    assert [alt.split()[0] for alt in bins] == audit["parameters"]
    edges = [i["alt"] for i in page.all("img") if page.by_id("edges") in i["inside"]]
    assert len(edges) == len(audit["parameters"])
    for par, alt in zip(audit["parameters"], edges, strict=True):
        strips = found["by_truth"][par]
        told = [f"{strip['bias']:+.2f}" for strip in strips if strip["bias"] is not None]
        assert alt.startswith(f"{par}: bias by where the truth lies in the prior, {told[0]} in the lowest")
        assert f"{told[-1]} in the highest" in alt
    words = "none lies outside" if found["leakage"] == 0 else f"{100 * found['leakage']:.2f} % lie outside"
    assert words in page.by_id("edges-caption")["text"]


def test_chains_that_did_not_converge_are_named_loudly(doubtful):
    page, audit = doubtful
    assert audit["agreement"]["converged"] == 0
    loud = [e["text"] for e in page.elements if e.get("class") == "loud"]
    assert any("None of the 3 emcee chains converged" in text for text in loud)
    assert page.by_id("shift")["text"] == "–"
    for name in ("galaxy-1", "galaxy-2"):
        article = page.by_id(name)
        assert any(
            article in e["inside"] and "did NOT converge" in e["text"]
            for e in page.elements
            if e.get("class") == "loud"
        )
    assert len(page.all("article")) == 2
    assert [e["text"] for e in page.elements if e.get("class") == "no"] == ["NO"] * 3


def test_an_unknown_truth_is_said_and_not_drawn(doubtful, sound):
    assert "The truth is not known." in doubtful[0].by_id("corner-1-caption")["text"]
    assert "Truth" not in [e["text"] for e in doubtful[0].all("th")]
    assert "Truth" in [e["text"] for e in sound[0].all("th")]


def test_every_figure_is_a_file_too_with_the_numbers_that_are_drawn(tmp_path):
    folder, audit = build_run(tmp_path / "run", galaxies=1, simulations=120, rows=60)
    page = write_report(folder, figures=True).read_bytes()
    assert page == write_report(folder).read_bytes()
    names = {path.stem for path in (folder / "figures").iterdir()}
    par = audit["parameters"][0]
    assert {"calibration-ranks-1", "calibration-bins-5", "agreement-shifts", "learning", "cost-picture"} <= names
    assert {"cards-1-spectrum", "cards-1-history", "cards-1-corner", "catalog-medians-5"} <= names
    for name in names:
        pdf, png = ((folder / "figures" / f"{name}.{kind}").read_bytes() for kind in ("pdf", "png"))
        assert pdf.startswith(b"%PDF")
        assert png.startswith(b"\x89PNG")
        table = pd.read_csv(folder / "figures" / f"{name}.csv", comment="#")
        assert list(table) == ["panel", "kind", "series", "x", "y"]
        assert len(table) > 4, name
    text = (folder / "figures" / "calibration-recovery-1.csv").read_text()
    assert text.startswith(f"# {par}: recovered against true values of 120 simulations")
    drawn = pd.read_csv(folder / "figures" / "calibration-recovery-1.csv", comment="#")
    with xr.open_zarr(folder / "audit.zarr", group="calibration", consolidated=False) as stored:
        truth = stored["theta"].values[:, 0]
    points = drawn[(drawn.panel == 0) & (drawn.kind == "line")]
    assert set(np.round(truth, 9)) <= set(np.round(points.x, 9))
    errors = drawn[(drawn.panel == 0) & (drawn.kind == "errors")]
    assert len(errors) == 2 * 120
    medians = pd.read_csv(folder / "figures" / "catalog-medians-1.csv", comment="#")
    assert medians[medians.kind == "steps"].y.sum() == 2 * 59


def test_strings_of_users_are_escaped(doubtful):
    page, _ = doubtful
    assert not page.all("script")
    assert HOSTILE in page.by_id("run")["text"]
    assert HOSTILE in page.by_id("catalog")["text"]


def test_a_failed_fit_and_missing_stages_do_not_stop_the_report(tmp_path):
    folder, _ = build_run(tmp_path / "run", galaxies=1, converged=0, failed=1, simulations=60, rows=40)
    for name in ("posterior.zarr", "audit.zarr/calibration", "model"):
        (folder / name).rename(tmp_path / name.replace("/", "-"))
    (folder / "percentiles.parquet").unlink()
    page = Page(write_report(folder).read_text())
    assert "emcee FAILED for this galaxy" in page.by_id("galaxies")["text"]
    for section in ("calibration", "inside", "training", "catalog"):
        assert "Not available" in page.by_id(section)["text"]


def test_the_same_run_gives_the_same_bytes_and_a_folder_that_is_none_is_refused(tmp_path):
    folder, _ = build_run(tmp_path / "run", galaxies=1, simulations=60, rows=40)
    (folder / "audit.zarr").rename(tmp_path / "audit.zarr")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    (folder / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"manifest\.json"):
        write_report(folder)


def test_importance_weights_are_told_where_there_are_any(tmp_path):
    folder, audit = build_run(tmp_path / "run", galaxies=1, simulations=60, rows=40)
    numbers = {"rows": 60, "draws": 1000, "ess_share_median": 0.3137, "ess_share_16": 0.21, "ess_share_84": 0.42}
    known = numbers | {"pareto_k_above": 0.05}
    unknown = dict.fromkeys(known) | {"rows": 1, "draws": 1000, "pareto_k_above": 1.0}
    write_json(folder / "audit.json", audit | {"importance": {"simulations": known, "galaxies": unknown}})
    page = Page(write_report(folder).read_text())
    assert page.by_id("ess-simulations")["text"] == "31.4 %"
    assert page.by_id("ess-galaxies")["text"] == "–"
    words = " ".join(page.by_id("calibration")["text"].split())
    assert "1,000 draws for each of 60 simulations" in words
    assert "worth 31.4 % of as many from the exact posterior" in words
    assert "weights of 5.0 % have a tail that is not to be trusted" in words
    assert not importance_section(SimpleNamespace(audit=audit))
