"""``digs-survey escalate``: agreement in every row, better posteriors where it is low, within a budget, and once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from survey import ROWS, contents, run_here

import digs_survey as ds
from digs_survey.audit.agreement_model import AgreementModel
from digs_survey.audit.agreement_predictors import read_predictors
from digs_survey.config import load_config
from digs_survey.importance.weights import effective_sample_size, log_ratios
from digs_survey.quality import QualityFlag
from digs_survey.refine.reweigh import ReweighSetup, reweigh_rows
from digs_survey.run.verify import verify_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]

# Chains are short, and any length will do. So much noise that a small network's draws can be weighed. Half of the rows
# are audited, which is enough to learn agreement from.
SHORT = [
    f"--set={setting}"
    for setting in (
        "simulate.engine=batched",
        "noise.fraction=0.5",
        "map.derived=['sfr_100', 'surviving_mass']",
        "audit.galaxies=24",
        "audit.checked_galaxies=0",
        "audit.sensitivity_rows=0",
        "audit.mcmc.engine=batched",
        "audit.mcmc.moves=stretch",
        "audit.mcmc.walkers=40",
        "audit.mcmc.steps=150",
        "audit.mcmc.max_steps=150",
        "audit.mcmc.autocorrelation_times=0.001",
    )
]
GENEROUS = ("--set", "escalate.core_hours=1", "--set", "escalate.draws=2000")


@pytest.fixture(scope="module")
def audited(shared_ray, build_once, survey):
    """A run whose audit has learned agreement from the rows that it fitted."""

    def build(folder):
        shared_ray.open()
        finished = run_here("run", survey[0], "-c", survey[1], *SHORT, "-o", folder / "run")
        assert finished.returncode == 0, finished.stderr

    run_dir = build_once("audited", build) / "run"
    learned = json.loads((run_dir / "audit.json").read_text())["row_agreement"]
    assert learned["rows"] >= 20
    assert learned["model"] is not None
    return run_dir


def threshold(run_dir):
    """An agreement below which half of the rows are that the audit did not fit."""
    table = table_of(run_dir)
    return float(np.median(table.agreement[table.tier == 0]))


def table_of(run_dir, name="results.parquet"):
    return pq.read_table(run_dir / name).to_pandas()


def test_without_a_budget_rows_are_told_apart_and_audited_ones_are_emcees(audited, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(audited, run_dir)
    least = threshold(audited)
    finished = run_here("escalate", "-o", run_dir, "--redo", "--set", f"escalate.agreement_threshold={least}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [str(run_dir / "results.parquet"), str(run_dir / "escalate.json")]
    before, after = table_of(run_dir, "percentiles.parquet"), table_of(run_dir)
    assert after.columns.tolist() == [*before.columns, "agreement", "tier"]
    assert after.galaxy_id.tolist() == before.galaxy_id.tolist()
    galaxies = zarr.open_group(str(run_dir / "audit.zarr"), mode="r")["galaxies"]
    fitted = galaxies["row"][:][galaxies["converged"][:]]
    assert fitted.size >= 20
    assert after.tier.tolist() == [2 * (row in fitted) for row in range(ROWS)]
    chains = galaxies["mcmc"][:][galaxies["converged"][:]]
    for k, name in enumerate(galaxies["parameter"][:]):
        np.testing.assert_allclose(after[f"{name}_p84"][fitted], np.quantile(chains[..., k], 0.84, axis=1), rtol=1e-6)
    same = ~np.isin(np.arange(ROWS), fitted)
    kept = [name for name in before.columns if name != "quality"]
    assert after[kept][same].equals(before[kept][same])
    low = (after.quality & int(QualityFlag.LOW_AGREEMENT)) != 0
    assert low.tolist() == ((after.agreement < least) & same).tolist()
    assert 0 < low.sum() < same.sum()
    told = json.loads((run_dir / "escalate.json").read_text())
    assert told["rows"] == {"neural posterior": same.sum(), "importance weights": 0, "emcee": fitted.size}
    assert (told["low_agreement"], told["without_agreement"]) == (low.sum(), 0)
    assert (
        f"{low.sum()} rows keep a neural posterior that agrees with the exact one with a chance below {least:g}"
        in finished.stderr
    )

    # Agreement is the audit's own model of what the table has, and nothing else.
    mapped = zarr.open_group(str(run_dir / "posterior.zarr"), mode="r")
    identity = ds.open_run(run_dir).identity
    model = AgreementModel.from_dict(json.loads((run_dir / "audit.json").read_text())["row_agreement"]["model"])
    found = read_predictors(mapped, slice(None), identity.prior, len(identity.grid))
    np.testing.assert_allclose(
        after.agreement, model.agreement(np.stack([found[n] for n in model.names], axis=-1)), rtol=1e-6
    )

    # While the table is being made, or when that was killed, the report is of the audit.
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["stages"]["escalate"]["status"] = "running"
    del manifest["stages"]["escalate"]["finished"]
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    report = run_here("report", "-o", run_dir)
    assert report.returncode == 0, report.stderr
    assert (run_dir / "report.html").exists()


def test_a_survey_that_is_not_described_has_no_high_agreement(audited, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(audited, run_dir)
    before, least = table_of(audited), threshold(audited)
    audit = json.loads((run_dir / "audit.json").read_text())
    (run_dir / "audit.json").write_text(json.dumps(audit | {"domain": {"verdict": "not described"}}))
    finished = run_here("escalate", "-o", run_dir, "--redo", "--set", f"escalate.agreement_cap={least}")
    assert finished.returncode == 0, finished.stderr
    after, told = table_of(run_dir), json.loads((run_dir / "escalate.json").read_text())
    capped = (after.quality & int(QualityFlag.AGREEMENT_CAPPED)) != 0
    assert capped.tolist() == (before.agreement > np.float32(least)).tolist()
    assert told["capped"] == capped.sum() > 0
    np.testing.assert_allclose(after.agreement, np.minimum(before.agreement, least), rtol=1e-6)
    assert (after.quality[~capped] == before.quality[~capped]).all()
    assert after.tier.tolist() == before.tier.tolist()
    assert "the survey as a whole is NOT described by the model" in finished.stderr


def test_a_budget_gives_weights_first_and_emcee_to_the_rest_and_resumes(audited, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(audited, run_dir)
    least = threshold(audited)
    settings = (*GENEROUS, "--set", f"escalate.agreement_threshold={least}", "--set", "escalate.min_ess=20")
    finished = run_here("escalate", "-o", run_dir, "--redo", *settings)
    assert finished.returncode == 0, finished.stderr
    told = json.loads((run_dir / "escalate.json").read_text())
    assert told["wanted"] == told["weighed"] > 0
    assert told["accepted"] + told["fitted"] == told["wanted"]
    assert told["fitted"] >= told["converged"] > 0
    assert min(told["core_s"].values()) > 0
    before, after = table_of(run_dir, "percentiles.parquet"), table_of(run_dir)
    assert told["rows"] == dict(zip(told["rows"], np.bincount(after.tier, minlength=3).tolist(), strict=True))
    assert told["rows"]["importance weights"] == told["accepted"] > 0
    assert told["low_agreement"] == told["fitted"] - told["converged"]  # a chain that did not converge replaces nothing
    changed = after.tier > 0
    for column in ("tage_p50", "sfr_100_p50", "surviving_mass_p97_5"):
        assert (after[column][~changed] == before[column][~changed]).all()
        assert (after[column][changed] != before[column][changed]).all()
    assert (np.diff(after[[f"tage_{q}" for q in ("p2_5", "p16", "p50", "p84", "p97_5")]], axis=1) >= 0).all()
    assert (after.agreement[after.tier == 1] < least).all()
    assert verify_run(run_dir) == []

    # Killed after its work and before its table was complete, and with a part that is damaged.
    parts = contents(run_dir / "results.parquet")
    (run_dir / "results.parquet" / "part-00000002.parquet").write_bytes(b"x")
    (run_dir / "results.parquet" / "part-00000004.parquet").unlink()
    damage = [str(one) for one in verify_run(run_dir)]
    assert len(damage) == 2
    assert "part-00000002.parquet: shard 2 (rows 16 to 23): the file is not the one that was written" in damage[0]
    # What was decided holds, though the budget would do for all of it once more.
    shutil.rmtree(run_dir / "escalate-jobs" / "weights")
    shutil.rmtree(run_dir / "escalate-jobs" / "emcee")
    jobs = contents(run_dir / "escalate-jobs")
    again = run_here("escalate", "-o", run_dir)
    assert again.returncode == 0, again.stderr
    assert contents(run_dir / "results.parquet") == parts
    assert contents(run_dir / "escalate-jobs") == jobs
    assert json.loads((run_dir / "escalate.json").read_text()) == told

    refused = run_here("escalate", "-o", run_dir, "--set", "escalate.agreement_threshold=0.9")
    assert refused.returncode == 6
    assert f"escalate.agreement_threshold: was {least}, now 0.9" in refused.stderr


def test_weighted_rows_are_what_the_importance_weights_say(audited, tmp_path):
    from digs_survey.audit.sample import prepare_rows
    from digs_survey.catalog import Catalog
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood

    config = load_config(audited / "config.toml", ["escalate.draws=300"])
    path = json.loads((audited / "manifest.json").read_text())["inputs"]["catalog"]["path"]
    identity = ds.open_run(audited).identity
    setup, rows = ReweighSetup(path, identity, config, None), np.array([5, 2, 40, *range(20, 36)])
    counted = []
    blocks = reweigh_rows(setup, rows, tmp_path / "weights", 1e9, advance=counted.append)
    assert sum(counted) == rows.size
    assert np.concatenate([block.rows for block in blocks]).tolist() == rows.tolist()
    posterior = FrozenPosterior.load(audited / "model")
    seen = prepare_rows(Catalog.open(path), [2], identity, config)
    theta = posterior.sample(seen.flux, 300)
    log_weights = log_ratios(posterior, SpectrumLikelihood.of_posterior(posterior), theta, seen.flux, seen.good)
    assert blocks[0].ess[1] == pytest.approx(effective_sample_size(log_weights)[0], rel=1e-5)

    # A budget that is used up begins no block; what was done is not done again.
    marks = contents(tmp_path / "weights")
    assert len(reweigh_rows(setup, rows, tmp_path / "weights", 1e-9)) == len(blocks)
    assert contents(tmp_path / "weights") == marks
    assert reweigh_rows(setup, rows, tmp_path / "other", 0.0) == []
    few = reweigh_rows(setup, rows, tmp_path / "other", 1e-9)
    assert 0 < len(few) <= 2


def test_a_budget_with_no_room_for_one_fit_begins_none(audited, caplog):
    from digs_survey.refine.escalate import _affordable

    assert _affordable(audited, 1e-6) == 0
    assert "one fit of the audit took" in caplog.text
    assert _affordable(audited, 1e4) > 10
