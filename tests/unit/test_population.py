"""The distribution of a parameter in a survey: what is planted comes back, where stacked posteriors do not have it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet
from scipy.stats import norm

from digs_survey.errors import ConfigError, DigsError
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.refine.population import _most_probable, bin_edges, infer_population
from digs_survey.run.opened_run import Run

PLANTED, ERROR = np.array([0.02, 0.08, 0.35, 0.4, 0.15]), 0.25
"""Shares of five equal bins of logzsol, and the error of each row's measurement."""
SHAPED = Prior({"logzsol": {"prior": "clipped_normal", "mean": -1.2, "sigma": 0.5, "low": -2.0, "high": 0.2}})
COLUMN = SHAPED.index("logzsol")
PRIOR = SHAPED.parameters[COLUMN].distribution


def _survey(rows: int, draws: int = 200, seed: int = 1) -> np.ndarray:
    """Draws (row, parameter, draw) of exact posteriors under the shaped prior, of a survey with another population."""
    rng = np.random.default_rng(seed)
    truth = -2.0 + 2.2 / 5 * (rng.choice(5, size=rows, p=PLANTED) + rng.random(rows))
    seen = truth + ERROR * rng.normal(size=rows)
    precision = ERROR**-2 + 0.5**-2
    mean, width = (seen / ERROR**2 - 1.2 / 0.5**2) / precision, precision**-0.5
    samples = np.full((rows, SHAPED.ndim, draws), 0.5, dtype="f4")
    low, high = norm.cdf(-2.0, mean, width), norm.cdf(0.2, mean, width)
    share = low + (high - low) * rng.random((draws, rows))
    samples[:, COLUMN] = norm.ppf(share, mean, width).T
    return samples


def test_a_planted_population_comes_back_within_its_errors() -> None:
    samples = _survey(3_000)
    edges = bin_edges("5", PRIOR)
    found = infer_population(samples, COLUMN, np.zeros(3_000, dtype=int), PRIOR, edges, bootstrap=40)
    error = 0.5 * (found.high - found.low)
    assert found.share.sum() == pytest.approx(1)
    assert (np.abs(found.share - PLANTED) < 3 * error).all()
    assert ((error > 0.002) & (error < 0.03)).all()
    # Stacked posteriors are drawn to the prior, by more than twice that.
    assert np.linalg.norm(found.share - PLANTED) < 0.5 * np.linalg.norm(found.stacked - PLANTED)
    assert np.diff(PRIOR.cdf(edges)) == pytest.approx(found.prior)
    assert (found.rows, found.left_out) == (3_000, 0)


def test_the_shares_are_those_of_the_greatest_likelihood() -> None:
    rng = np.random.default_rng(3)
    density, times = rng.random((400, 6)) ** 3, rng.integers(0, 4, 400)
    share = _most_probable(density, times)
    # At the maximum no bin would gain: the mean of A_b / (A f) is 1 where there is a share, and less elsewhere.
    gain = density.T @ (times / (density @ share)) / times.sum()
    assert gain.max() < 1 + 1e-5
    np.testing.assert_allclose(gain[share > 1e-6], 1, atol=1e-5)


def test_rows_without_draws_or_with_a_bad_fit_are_left_out() -> None:
    samples, quality = _survey(60), np.zeros(60, dtype=int)
    edges = bin_edges("4", PRIOR)
    expected = infer_population(samples[:50], COLUMN, quality[:50], PRIOR, edges, bootstrap=2)
    samples[50:55] = np.nan
    quality[55:] = QualityFlag.POOR_FIT
    quality[:9] = QualityFlag.FILLED_ELEMENTS
    found = infer_population(samples, COLUMN, quality, PRIOR, edges, bootstrap=2)
    assert (found.rows, found.left_out) == (50, 10)
    np.testing.assert_array_equal(found.share, expected.share)
    assert str(found) == "4 bins from 50 rows; 10 have no draws or a bad fit, and are left out"
    with pytest.raises(ConfigError, match="expected two rows or more that have draws and a good fit, found 0 of 5"):
        infer_population(samples[55:], COLUMN, quality[55:], PRIOR, edges)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ("0", "expected a number of bins, or increasing edges"),
        ("few", "found 'few'"),
        ("-2,0.1,-1,0.2", "increasing edges"),
        ("-1,0.2", r"reach from -2 to 0.2, the ends of the run's prior, found -1 to 0.2; make the outer bins wide"),
        ("-4,-3,0.2", r"all edges within the run's prior, \[-2, 0.2\]"),
    ],
)
def test_bins_that_cannot_be_are_refused(bins: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bin_edges(bins, PRIOR)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    zarr.open_group(str(folder / "posterior.zarr"), mode="w", zarr_format=3).create_array("samples", data=_survey(80))
    (folder / "percentiles.parquet").mkdir()
    parquet.write_table(pa.table({"quality": np.zeros(80, "i8")}), folder / "percentiles.parquet/part-00000000.parquet")
    manifest = SimpleNamespace(
        stages={"map": {"status": "done", "rows": 80}},
        data={"inputs": {"catalog": {"fingerprint": "c3d4"}}},
        check_formats=lambda stage: None,
    )
    found = Run(folder, manifest)
    found.__dict__["identity"] = SimpleNamespace(prior=SHAPED, seed=7, posterior_hash="a1b2")
    return found


def test_the_table_and_the_figure_are_written_alike_each_time(run: Run, tmp_path: Path) -> None:
    found = run.population("logzsol", tmp_path / "a.csv", bins="5")
    run.population("logzsol", tmp_path / "b.csv", bins="5")
    for ending in ("csv", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    run.population("logzsol", tmp_path / "c.json", bins="5")
    run.population("logzsol", tmp_path / "d.parquet", bins="5")
    csv = np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True)
    told, table = json.loads((tmp_path / "c.json").read_text()), parquet.read_table(tmp_path / "d.parquet")
    for name, values in found.columns().items():
        np.testing.assert_allclose(csv[name], values, rtol=1e-12)
        np.testing.assert_array_equal([row[name] for row in told["bins"]], values)
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    assert table.schema.metadata[b"model_hash"] == told["model_hash"].encode() == b"a1b2"
    assert table.schema.field("bin_low").metadata == {b"unit": b"dex"}


def test_what_the_run_does_not_have_and_places_that_are_taken_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sigma_smooth: the run has no draws of it; expected one of logmass"):
        run.population("sigma_smooth", tmp_path / "a.csv")
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(DigsError, match=r"a.png exists already"):
        run.population("logzsol", tmp_path / "a.csv")
    with pytest.raises(DigsError, match="expected a place outside the run"):
        run.population("logzsol", run.run_dir / "a.csv")
    with pytest.raises(DigsError, match=r"a.fits: expected an ending of .csv, .json, .parquet"):
        run.population("logzsol", tmp_path / "a.fits")
