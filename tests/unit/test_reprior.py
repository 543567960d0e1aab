"""A finished run under another prior: weights, percentiles, what is refused, and the file that is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet
from scipy.special import ndtri
from scipy.stats import truncnorm
from typer.testing import CliRunner

from digs_survey.cli import app
from digs_survey.config import load_config
from digs_survey.errors import ConfigError, DigsError, RunDirectoryError
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.refine.mass_metallicity import MassMetallicity
from digs_survey.refine.new_prior import NewPrior
from digs_survey.refine.reprior import Reweighing
from digs_survey.run.opened_run import Run

DRAWS, QUANTILES = 4_000, (0.16, 0.5, 0.84)
MEAN, WIDTH = -0.6, 0.2
"""Of the draws of logzsol, far from the ends of its uniform prior, [-2, 0.2]."""
SLOPE, CENTRE = 0.5, 10.5
"""logmass of the draws is CENTRE + SLOPE (logzsol - MEAN), with a scatter of 0.1."""
NEW, SIGMA = -0.4, 0.3
"""Mean and sigma of the new prior of logzsol."""
RUN = Prior({"tage": {"value": 2.5}})
NAMES = RUN.names


def _draws() -> np.ndarray:
    """Draws (parameter, draw) whose logzsol is as even as a Gaussian's quantiles."""
    rng = np.random.default_rng(4)
    even = ndtri((np.arange(DRAWS) + 0.5) / DRAWS)
    theta = {p.name: rng.uniform(p.low, p.high, DRAWS) for p in RUN.parameters}
    theta["logzsol"] = MEAN + WIDTH * even
    theta["logmass"] = CENTRE + SLOPE * WIDTH * even + 0.1 * rng.normal(size=DRAWS)
    return np.stack([theta[name] for name in NAMES])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of six rows: two alike, one of low metallicity, one of a single value, one without draws or a posterior."""
    folder = tmp_path / "run"
    samples = np.repeat(_draws()[None], 6, axis=0).astype("f4")
    column = NAMES.index("logzsol")
    samples[2] = samples[5] = np.nan
    samples[3, column] -= 0.9
    samples[4, column] = -1.9
    group = zarr.open_group(str(folder / "posterior.zarr"), mode="w", zarr_format=3)
    group.create_array("samples", data=samples)
    quality = np.array([0, 0, QualityFlag.BAD_REDSHIFT, 0, QualityFlag.PRIOR_EDGE, 0], dtype="i8")
    table = pa.table(
        {
            "galaxy_id": list("abcdef"),
            "redshift": np.linspace(0.1, 0.6, 6),
            "ra": np.arange(6.0),
            "logzsol_p50": np.zeros(6, "f4"),
            "log_evidence": np.zeros(6),
            "n_good": np.full(6, 9, "i4"),
            "quality": quality,
            "tier": np.zeros(6, "u1"),
        }
    ).replace_schema_metadata({"model_hash": "a1b2", "recalibration": "{}"})
    (folder / "percentiles.parquet").mkdir()
    for shard, start in enumerate((0, 4)):
        parquet.write_table(table.slice(start, 4), folder / "percentiles.parquet" / f"part-{shard:08d}.parquet")
    stages = {"map": {"status": "done", "rows": 6}}
    found = Run(folder, SimpleNamespace(stages=stages, check_formats=lambda stage: None))
    found.__dict__ |= {
        "identity": SimpleNamespace(prior=RUN, noise=SimpleNamespace(config=SimpleNamespace(by_row=False))),
        "config": load_config(None, [f"map.quantiles={list(QUANTILES)}", "map.draws=4000", f"map.samples={DRAWS}"]),
    }
    return found


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "new.toml"
    path.write_text(f"[model.parameters]\n{text}\n")
    return path


def _normal(tmp_path: Path, mean: float = NEW) -> Path:
    ends = "low = -2.0, high = 0.2"
    return _file(tmp_path, f"logzsol = {{ prior = 'clipped_normal', mean = {mean}, sigma = {SIGMA}, {ends} }}")


def test_a_gaussian_times_a_gaussian_is_the_known_gaussian(run: Run, tmp_path: Path) -> None:
    counts = run.reprior(_normal(tmp_path), tmp_path / "new.parquet")
    table = parquet.read_table(tmp_path / "new.parquet")
    precision = WIDTH**-2 + SIGMA**-2
    mean, width = (MEAN / WIDTH**2 + NEW / SIGMA**2) / precision, precision**-0.5
    # Of the metallicity's own slope the mass takes its share; its scatter stays.
    mass, mass_width = CENTRE + SLOPE * (mean - MEAN), np.hypot(SLOPE * width, 0.1)
    for p, q in ((16, 0.16), (50, 0.5), (84, 0.84)):
        assert table[f"logzsol_p{p}"][0].as_py() == pytest.approx(mean + width * ndtri(q), abs=5e-4)
        assert table[f"logmass_p{p}"][0].as_py() == pytest.approx(mass + mass_width * ndtri(q), abs=0.01)
    # (E w)^2 / E w^2 of w = exp(-(x - NEW)^2 / 2 SIGMA^2) for x from the draws' Gaussian.
    one, two = (SIGMA**2 / k for k in (1, 2))
    log_mean = [
        -0.5 * np.log1p(WIDTH**2 / square) - 0.5 * (MEAN - NEW) ** 2 / (WIDTH**2 + square) for square in (one, two)
    ]
    share = np.exp(2 * log_mean[0] - log_mean[1])
    assert table["reprior_share"][0].as_py() == pytest.approx(share, rel=2e-3)
    assert table["reprior_ess"][0].as_py() == pytest.approx(DRAWS * share, rel=2e-3)
    assert table["logzsol_p50"][1] == table["logzsol_p50"][0]
    assert (counts.rows, counts.below, counts.without) == (6, 0, 2)


def test_what_goes_into_the_table(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new.parquet"
    counts = run.reprior(_normal(tmp_path), out, min_ess=1_000)
    table = parquet.read_table(out)
    percentiles = [f"{name}_p{p}" for name in NAMES for p in (16, 50, 84)]
    expected = ["galaxy_id", "redshift", "ra", *percentiles, "n_good", "quality", "reprior_ess", "reprior_share"]
    assert table.column_names == expected
    assert table["galaxy_id"].to_pylist() == list("abcdef")
    ess, median = table["reprior_ess"].to_numpy(), table["dust2_p50"].to_numpy()
    assert np.isnan(ess).tolist() == [False, False, True, False, False, True]
    # All draws of row 4 are the same: the new prior cannot tell them apart, and all count.
    assert ess[4] == DRAWS
    assert ess[3] < 1_000
    assert np.isnan(median[3])
    assert np.isfinite(median[[0, 1, 4]]).all()
    assert np.isnan(median[[2, 5]]).all()
    assert table["quality"].to_pylist() == [0, 0, QualityFlag.BAD_REDSHIFT, 0, QualityFlag.PRIOR_EDGE, 0]
    metadata = table.schema.metadata
    about = json.loads(metadata[b"reprior"])
    assert metadata[b"model_hash"] == b"a1b2"
    assert b"recalibration" not in metadata
    assert about["prior"]["logzsol"] == {
        "prior": "clipped_normal",
        "low": -2.0,
        "high": 0.2,
        "mean": NEW,
        "sigma": SIGMA,
    }
    assert about["prior_of_run"]["logzsol"] == {"prior": "uniform", "low": -2.0, "high": 0.2}
    assert (about["draws"], about["min_ess"]) == (DRAWS, 1_000)
    assert b"under another prior" in table.schema.field("logzsol_p50").metadata[b"description"]
    assert str(counts) == (
        "3 of 6 rows have percentiles under the new prior; 1 have fewer than 1000 effective draws of 4,000, and none; "
        "2 have no kept draws"
    )


def test_the_same_bytes_come_every_time_and_the_run_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    before = _digest(run.run_dir)
    for name in ("one.fits", "two.fits", "one.csv", "two.csv", "one.parquet", "two.parquet"):
        run.reprior(_normal(tmp_path), tmp_path / name)
    for ending in ("fits", "csv", "parquet"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert _digest(run.run_dir) == before


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_draws_beyond_a_narrower_prior_have_no_weight(run: Run, tmp_path: Path) -> None:
    run.reprior(_file(tmp_path, "logzsol = { low = -0.6, high = 0.0 }"), tmp_path / "new.csv")
    values = np.genfromtxt(tmp_path / "new.csv", delimiter=",", names=True, dtype=None, encoding=None)
    half = truncnorm(0, (0.0 - MEAN) / WIDTH, MEAN, WIDTH)
    np.testing.assert_allclose([values[0][f"logzsol_p{p}"] for p in (16, 50, 84)], half.ppf(QUANTILES), atol=1e-3)
    assert values["reprior_ess"][0] == pytest.approx(DRAWS * (0.5 - 0.00135), rel=1e-3)
    # None of the draws of the last rows is possible.
    assert values["reprior_ess"][[3, 4]].tolist() == [0, 0]


def test_derived_quantities_follow_the_draws() -> None:
    seen = {}

    def derive(theta: np.ndarray, redshift: np.ndarray) -> np.ndarray:
        seen["redshift"] = redshift
        return 10 ** theta[..., [0]]

    derive.names = ("surviving_mass",)
    new = NewPrior(RUN, {"logzsol": _prior("logzsol", mean=NEW)})
    weighing = Reweighing(new, QUANTILES, 50.0, derive)
    _, found = weighing(_draws()[None], np.array([0.3]))
    mass, derived = found[0, NAMES.index("logmass")], found[0, -1]
    np.testing.assert_allclose(np.log10(derived), mass, atol=2e-3)
    assert seen["redshift"].tolist() == [[0.3]]
    # Where the model of all rows is at one redshift, that of the row is none of its.
    Reweighing(new, QUANTILES, 50.0, derive, by_row=False)(_draws()[None], np.array([0.3]))
    assert np.isnan(seen["redshift"])


def _prior(name: str, **numbers: float):
    return Prior({name: {"prior": "clipped_normal", "sigma": SIGMA, "low": -2.0, "high": 0.2, **numbers}}).priors[name]


def test_the_weights_are_the_ratio_of_the_densities() -> None:
    old, new = _prior("logzsol", mean=-1.0), _prior("logzsol", mean=NEW)
    run = Prior({"logzsol": old})
    theta = run.from_unit_cube(np.random.default_rng(0).random((2, 50, run.ndim)))
    changed = Prior({"logzsol": new})
    expected = changed.log_prob(theta) - run.log_prob(theta)
    np.testing.assert_allclose(NewPrior(run, {"logzsol": new}).log_ratio(theta), expected, rtol=1e-9, atol=1e-9)


def test_a_parameter_that_the_run_ties_is_refused(tmp_path: Path) -> None:
    run = Prior({"dust2": {"tied": "tage", "factor": 0.1}})
    with pytest.raises(ConfigError, match="dust2: the run has it tied, as 0.1 x tage; change the prior"):
        NewPrior.load(_file(tmp_path, "dust2 = { low = 0.1, high = 0.2 }"), run)


def test_the_mass_metallicity_relation_is_a_density_for_each_mass() -> None:
    relation = MassMetallicity(prior="mass_metallicity", low=-2.0, high=0.2)
    z = np.linspace(-2.0, 0.2, 20_001)
    for mass in (8.0, 9.47, 10.17, 12.5):
        assert np.trapezoid(np.exp(relation.log_pdf(z, mass)), z) == pytest.approx(1, abs=1e-6)
    # Table 2 of Gallazzi et al. (2005): -0.61 (-1.03, -0.01) at 9.47; the sigma is twice half of the difference.
    mean, sigma = relation.mean_and_sigma(9.47)
    assert (float(mean), float(sigma)) == pytest.approx((-0.61, 1.02))
    expected = truncnorm((-2 + 0.61) / 1.02, (0.2 + 0.61) / 1.02, -0.61, 1.02).logpdf(-0.3)
    assert relation.log_pdf(-0.3, 9.47) == pytest.approx(expected)


def test_the_relation_weighs_each_draw_by_its_own_mass(tmp_path: Path) -> None:
    new = NewPrior.load(_file(tmp_path, "logzsol = { prior = 'mass_metallicity' }"), RUN)
    theta = np.full((1, 2, RUN.ndim), 0.15)
    theta[0, :, NAMES.index("logmass")] = 9.0, 11.5
    low_mass, high_mass = new.log_ratio(theta)[0]
    assert high_mass > low_mass + 0.5
    fixed = Prior({"logmass": {"value": 11.5}})
    one = NewPrior.load(_file(tmp_path, "logzsol = { prior = 'mass_metallicity' }"), fixed)
    assert one.log_ratio(np.full((1, 1, fixed.ndim), 0.15))[0, 0] == pytest.approx(high_mass)


REFUSED = {
    "fixed in the run": ("tage = { low = 1.0, high = 2.0 }", "tage: the run has it fixed at 2.5"),
    "to be tied": ("dust2 = { tied = 'logtau' }", "dust2: expected a prior, found a tie"),
    "unknown": ("sigma_smooth = { low = 70.0, high = 90.0 }", "no such parameter; expected some of logmass, logzsol"),
    "to be fixed": ("dust2 = 0.3", "dust2: expected a prior, found a fixed value"),
    "wider": (
        "dust2 = { low = 0.0, high = 1.5 }",
        r"dust2: expected a prior within the run's, \[0.1, 1\].*found \[0, 1.5\], with 0.4",
    ),
    "wrong kind": ("dust2 = { prior = 'gamma' }", "prior.dust2: expected one of the priors uniform, log_uniform"),
    "wrong key": ("dust2 = { low = 0.2, hihg = 0.5 }", "unknown key; did you mean prior.dust2.high"),
    "nothing": ("", r"expected the section \[model.parameters\] with priors, alone; found none"),
    "more than priors": (
        "dust2 = { low = 0.2, high = 0.5 }\n[map]\nsamples = 3",
        r"expected the section \[model.parameters\] with priors, alone; found map",
    ),
    "relation of another": ("dust2 = { prior = 'mass_metallicity' }", "'mass_metallicity' is one of logzsol"),
    "relation with ends": (
        "logzsol = { prior = 'mass_metallicity', low = 0.0, high = 0.5 }",
        r"logzsol: expected a prior within the run's, \[-2, 0.2\]",
    ),
    "relation with a key": ("logzsol = { prior = 'mass_metallicity', sigma = 1.0 }", "logzsol: Extra inputs"),
    "too far": (
        "logzsol = { prior = 'clipped_normal', mean = 0.15, sigma = 0.001, low = 0.14, high = 0.2 }",
        "no row has 50 effective draws or more under the new prior .*: the most is 0 of 4,000",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_prior_that_the_draws_cannot_tell_of_is_refused(run: Run, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.reprior(_file(tmp_path, text), tmp_path / "new.parquet")
    assert not (tmp_path / "new.parquet").exists()


def test_a_model_that_is_no_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text("model = 3\n[prior.dust2]\nlow = 0.2\nhigh = 0.5\n")
    with pytest.raises(ConfigError, match="with priors, alone; found model"):
        NewPrior.load(tmp_path / "new.toml", RUN)


def test_a_prior_that_is_hardly_wider_is_taken(run: Run, tmp_path: Path) -> None:
    text = "dust2 = { prior = 'clipped_normal', mean = 0.5, sigma = 0.1, low = 0.0, high = 2.0 }"
    run.reprior(_file(tmp_path, text), tmp_path / "new.parquet")
    assert parquet.read_table(tmp_path / "new.parquet")["dust2_p50"][0].as_py() == pytest.approx(0.5, abs=0.02)


def test_a_run_without_draws_says_how_to_keep_some(run: Run, tmp_path: Path) -> None:
    zarr.open_group(str(run.run_dir / "posterior.zarr"), mode="w", zarr_format=3)
    with pytest.raises(RunDirectoryError, match=r"map.samples = 0; map it again.*--set map.samples=200"):
        run.reprior(_normal(tmp_path), tmp_path / "new.parquet")


def test_a_run_in_which_no_row_has_draws_is_refused(run: Run, tmp_path: Path) -> None:
    zarr.open_group(str(run.run_dir / "posterior.zarr"))["samples"][:] = np.nan
    with pytest.raises(RunDirectoryError, match="no row has kept draws"):
        run.reprior(_normal(tmp_path), tmp_path / "new.parquet")


def test_no_file_is_replaced_unasked_and_none_goes_into_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("mine")
    with pytest.raises(DigsError, match="exists already"):
        run.reprior(_normal(tmp_path), tmp_path / "new.csv")
    run.reprior(_normal(tmp_path), tmp_path / "new.csv", overwrite=True)
    assert (tmp_path / "new.csv").read_text().startswith("galaxy_id,redshift")
    with pytest.raises(DigsError, match="expected a place outside the run"):
        run.reprior(_normal(tmp_path), run.run_dir / "new.csv")
    with pytest.raises(DigsError, match=r"new.txt: expected an ending of .fits"):
        run.reprior(_normal(tmp_path), tmp_path / "new.txt")


def test_the_commands_print_what_they_wrote(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("digs_survey.run.opened_run.open_run", lambda run_dir: run)
    run.identity.seed, run.identity.posterior_hash = 1, "a1b2"
    run.manifest.data = {"inputs": {"catalog": {"fingerprint": "c3d4"}}}
    out, call = tmp_path / "new.csv", CliRunner().invoke
    found = call(app, ["reprior", str(run.run_dir), "--prior", str(_normal(tmp_path)), "--output", str(out)])
    assert (found.exit_code, found.stdout) == (0, f"{out}\n")
    assert found.stderr == "4 of 6 rows have percentiles under the new prior; 2 have no kept draws\n"
    out = tmp_path / "population.csv"
    found = call(app, ["population", str(run.run_dir), "--parameter", "logzsol", "--output", str(out)])
    assert (found.exit_code, found.stdout) == (0, f"{out}\n{out.with_suffix('.png')}\n")
    assert found.stderr == "10 bins from 4 rows; 2 have no draws or a bad fit, and are left out\n"
    assert out.is_file()


def test_nothing_is_trained_with_the_relation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prior.logzsol: .*depends on the mass.*'digs-survey reprior'"):
        load_config(_file(tmp_path, "logzsol = { prior = 'mass_metallicity' }"))
