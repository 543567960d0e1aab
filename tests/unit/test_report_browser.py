"""The report in headless Chromium: on a desk and on a phone, by keyboard, without a network."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest
from synthetic_run import add_agreement, add_survey, build_run

from digs_survey.audit.domain.domain_check import POPULATIONS, DomainCheck, Population
from digs_survey.audit.domain.stack import Stack
from digs_survey.report.html import write_report
from digs_survey.spectra import WavelengthGrid

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")

DESK, PHONE = (1280, 800), (390, 844)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --allow-file-access-from-files "
    "--virtual-time-budget=20000"
).split()
# Chromium's window has a least width, so each screen is a frame; what is measured is written around them.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><pre id="measured"></pre>
<iframe src="report.html" width="1280" height="800"></iframe>
<iframe src="report.html" width="390" height="844"></iframe>
<script>
addEventListener("load", async () => {
  const all = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, screen = frame.contentWindow;
    const box = e => e.getBoundingClientRect(), list = s => [...page.querySelectorAll(s)];
    const held = e => e.closest(".scroll") !== null;
    const reached = list("a[href], button, input, select, summary, [tabindex]").filter(e => e.tabIndex >= 0);
    const ring = reached.map(e => { e.focus({focusVisible: true}); const s = screen.getComputedStyle(e);
      return s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2; });
    screen.scrollTo(0, 0);
    return {
      width: screen.innerWidth, wide: root.scrollWidth,
      beyond: list("body *").filter(e => !held(e) && !e.closest(".skip") && box(e).right > screen.innerWidth + 1
        && box(e).width > 0).map(e => e.tagName + "." + e.className + " " + e.id).slice(0, 5),
      verdict: box(page.querySelector(".verdict")).bottom, tiles: list(".tile .value").map(e => box(e).bottom),
      shown: ["inside-verdict", "low-agreement"].map(id => page.getElementById(id)?.textContent),
      sections: ["#inside img", "#row-agreement img"].map(s => list(s).length),
      images: list("img").map(e => [e.alt.length, e.naturalWidth, e.complete]),
      scrollers: list("body *").filter(e => ["auto", "scroll"].includes(screen.getComputedStyle(e).overflowX))
        .map(e => [e.tabIndex, e.getAttribute("role"), e.getAttribute("aria-label")]),
      first: reached.length ? reached[0].className : "", rings: ring,
      headings: list("h1, h2, h3, h4, h5, h6").map(e => +e.tagName[1]),
      fetched: screen.performance.getEntriesByType("resource").map(e => e.name),
      scripts: list("script").length, links: list("link, iframe, object, embed").length,
    };
  });
  document.getElementById("measured").textContent = JSON.stringify(all);
});
</script>"""


def departing_survey(rows=300, elements=60):
    """A survey with a line that its model lacks and some rows that are far from all simulations."""
    rng = np.random.default_rng(5)

    def population(line=0.0, far=0):
        features, sigma = rng.normal(size=(rows, 8)), rng.normal(size=(rows, elements))
        features[:far] *= 4
        sigma[:, 20:22] += line
        observed = np.zeros((2, rows, 240))
        observed[..., 90:130] = rng.normal(size=(rows, 40))
        observed[..., 104] += line
        distance, chi2, pvalue = np.sqrt((features**2).mean(axis=1)), 1 + 0.1 * rng.normal(size=rows), rng.random(rows)
        found = features, distance, chi2, pvalue, sigma, 5 * sigma, *observed
        return Population(*(np.asarray(one, "f4") for one in found))

    populations = dict(zip(POPULATIONS, (population(0.6, 30), population(), population()), strict=True))
    stacks = {name: Stack.of(one.sigma, one.percent) for name, one in populations.items()}
    return DomainCheck(np.arange(rows), populations, stacks, WavelengthGrid(np.linspace(4000.0, 7000.0, elements)), 1)


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """What was measured on a desk's and on a phone's screen."""
    folder = tmp_path_factory.mktemp("browser")
    run_dir, audit = build_run(folder / "run", galaxies=2, converged=2)
    add_survey(run_dir, audit, departing_survey())
    add_agreement(run_dir, json.loads((run_dir / "audit.json").read_text()))
    shutil.copy(write_report(run_dir), folder / "report.html")
    (folder / "wrapper.html").write_text(WRAPPER)
    command = [CHROMIUM, *FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1800,1000", "--dump-dom", (folder / "wrapper.html").as_uri()]
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    desk, phone = json.loads(html.unescape(found[1]))
    assert (desk["width"], phone["width"]) == (DESK[0], PHONE[0])
    return {"desk": desk, "phone": phone}


@pytest.mark.parametrize("name", ["desk", "phone"])
def test_only_what_is_meant_to_scroll_sideways_does(screens, name):
    assert screens[name]["beyond"] == []
    assert screens[name]["wide"] <= screens[name]["width"]


def test_the_first_screen_has_the_verdict_and_its_numbers(screens):
    assert 0 < screens["desk"]["verdict"] < DESK[1] / 2
    assert len(screens["desk"]["tiles"]) == 5
    assert max(screens["desk"]["tiles"]) < DESK[1]
    assert 0 < screens["phone"]["verdict"] < PHONE[1]


def test_what_was_measured_of_the_survey_and_of_agreement_is_on_the_page(screens):
    for screen in screens.values():
        assert screen["shown"] == ["NO", "2"]
        assert screen["sections"] == [2, 2]


@pytest.mark.parametrize("name", ["desk", "phone"])
def test_every_picture_is_drawn_and_told(screens, name):
    assert len(screens[name]["images"]) > 10
    for alt, width, complete in screens[name]["images"]:
        assert (alt > 10, width > 0, complete) == (True, True, True)


@pytest.mark.parametrize("name", ["desk", "phone"])
def test_the_keyboard_reaches_what_scrolls_and_shows_where_it_is(screens, name):
    found = screens[name]
    assert found["first"] == "skip"
    assert found["rings"]
    assert all(found["rings"])
    for tab, role, label in found["scrollers"]:
        assert (tab, role, bool(label)) == (0, "region", True)
    assert found["scrollers"], "every table can scroll by itself"


def test_headings_skip_no_level_and_nothing_is_fetched(screens):
    levels = screens["desk"]["headings"]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    # The pictures are in the page itself.
    assert [name for name in screens["desk"]["fetched"] if not name.startswith("data:")] == []
    assert (screens["desk"]["scripts"], screens["desk"]["links"]) == (0, 0)
