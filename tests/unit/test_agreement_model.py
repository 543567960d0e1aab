"""Agreement: learned where there is something to learn, honest about it, and never more for stranger rows."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy.stats import norm

from digs_survey.audit.agreement_model import MIN_ROWS, AgreementModel, Compared, fit_agreement
from digs_survey.audit.agreement_predictors import predictors
from digs_survey.audit.select import mean_predictor
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.results.final import RefinedRow, RefinedRows, final_part

TOLERANCE, SCATTER = 0.3, 0.4
PRIOR = Prior()


def rows(count: int, slope: float, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predictors of which one tells, one is idle, one is the same everywhere; and disagreements."""
    rng = np.random.default_rng(seed)
    found = {"weights": rng.normal(1, 2, count), "edge": rng.normal(size=count), "lost": np.zeros(count)}
    return found, np.exp(np.log(0.25) + slope * (found["weights"] - 1) / 2 + SCATTER * rng.normal(size=count))


def test_agreement_is_the_share_that_agrees_on_rows_that_it_never_saw():
    model, told = fit_agreement(Compared(*rows(200, 0.7)), None, TOLERANCE, seed=1)
    found, disagreement = rows(20_000, 0.7, seed=2)
    agreement = model.agreement(np.stack(list(found.values()), axis=-1))
    within = disagreement < TOLERANCE
    for low in (0, 0.2, 0.4, 0.6, 0.8):
        here = (agreement >= low) & (agreement < low + 0.2)
        assert within[here].mean() == pytest.approx(agreement[here].mean(), abs=0.08)
    exact = norm.cdf((np.log(TOLERANCE / 0.25) - 0.7 * (found["weights"] - 1) / 2) / SCATTER)
    np.testing.assert_allclose(agreement, exact, atol=0.1)
    assert told["auc_95"][0] < told["auc"] < told["auc_95"][1]
    # Of all rows: the area that this signal gives, by the rows themselves.
    from sklearn.metrics import roc_auc_score

    assert told["auc"] == pytest.approx(roc_auc_score(~within, -agreement), abs=0.06)
    assert told["mean_agreement"] == pytest.approx(told["share_within"], abs=0.06)
    assert told["rank_correlation"] > 0.7
    assert told["rows"] == 200
    assert len(told["held_out"]["expected"]) == len(told["held_out"]["found"]) == 200


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_tells_the_held_out_rows_say_so(seed):
    _, told = fit_agreement(Compared(*rows(60, 0.0, seed)), None, TOLERANCE, seed)
    assert 0.1 < told["auc_95"][0] < 0.5
    # Below zero by chance: what the others seem to teach by accident, the held-out rows have the other way round.
    assert -0.6 < told["rank_correlation"] < 0.3


def test_where_no_predictor_means_anything_no_row_comes_before_another():
    """Of a single predictor that has less disagreement where it is larger, which agreement must not use."""
    found, disagreement = rows(60, -0.7)
    model, told = fit_agreement(Compared({"weights": found["weights"]}, disagreement), None, TOLERANCE, 0)
    assert model.coefficient.tolist() == [0]
    assert told["rank_correlation"] is told["rank_correlation_pvalue"] is None
    assert (told["auc"], told["auc_95"]) == (0.5, [0.5, 0.5])
    assert 0 < told["beyond_tolerance"] < 60


def test_agreement_never_increases_with_a_predictor():
    found, disagreement = rows(60, -0.7)
    model, _ = fit_agreement(Compared(found, disagreement), None, TOLERANCE, 0)
    assert (model.coefficient >= 0).all()
    values = np.zeros((5, 3))
    values[:, 0] = np.arange(5)
    assert (np.diff(model.agreement(values)) <= 0).all()


def test_too_few_rows_teach_nothing_and_unknown_ones_are_left_out():
    found, disagreement = rows(MIN_ROWS + 2, 0.7)
    disagreement[:3] = np.nan
    model, told = fit_agreement(Compared(found, disagreement), None, TOLERANCE, 0)
    assert model is None
    assert told["rows"] == MIN_ROWS - 1
    assert told["model"] is None
    found["edge"][3] = np.nan
    assert fit_agreement(Compared(found, rows(MIN_ROWS + 2, 0.7)[1]), None, TOLERANCE, 0)[1]["rows"] == MIN_ROWS + 1


def test_rows_of_one_kind_have_no_area():
    found, disagreement = rows(40, 0.7)
    _, told = fit_agreement(Compared(found, disagreement), None, 1e6, 0)
    assert (told["auc"], told["auc_95"], told["beyond_tolerance"]) == (None, None, 0)
    assert told["rank_correlation"] > 0.5


def test_a_model_comes_back_from_json():
    found, disagreement = rows(40, 0.7)
    model, told = fit_agreement(Compared(found, disagreement), None, TOLERANCE, 0)
    again = AgreementModel.from_dict(json.loads(json.dumps(told))["model"])
    values = np.stack(list(found.values()), axis=-1)
    np.testing.assert_array_equal(again.agreement(values), model.agreement(values))
    assert again.names == ("weights", "edge", "lost")
    values[0, 1] = np.nan
    assert np.isnan(again.agreement(values)).tolist() == [True] + [False] * 39


def test_simulations_teach_a_survey_of_ten_rows_and_one_without_a_converged_chain():
    found, disagreement = rows(10, 0.7, seed=3)
    simulated = Compared(*rows(400, 0.7, seed=4))
    model, told = fit_agreement(Compared(found, disagreement), simulated, TOLERANCE, 0)
    assert (told["rows"], told["audited_rows"], told["simulations"]) == (410, 10, 400)
    assert told["auc_95"][0] > 0.8
    assert sum(told["held_out"]["audited"]) == 10
    assert told["audited"]["share_within"] == pytest.approx((disagreement < TOLERANCE).mean())
    none, told = fit_agreement(Compared(found, np.full(10, np.nan)), simulated, TOLERANCE, 0)
    assert (told["audited_rows"], told["audited"], none.excess) == (0, None, 0)
    values = np.stack(list(found.values()), axis=-1)
    assert np.isfinite(none.agreement(values)).all()
    np.testing.assert_allclose(none.agreement(values), model.agreement(values), atol=0.15)


@pytest.mark.parametrize(("factor", "expected"), [(2.0, np.log(2.0)), (0.5, 0.0)])
def test_rows_that_disagree_more_than_simulations_lower_the_agreement_of_all(factor, expected):
    simulated = Compared(*rows(400, 0.7))
    found, disagreement = rows(40, 0.7, seed=5)
    model, told = fit_agreement(Compared(found, factor * disagreement), simulated, TOLERANCE, 0)
    # Shrunk by 40 / 45, and the ridge itself has learned some of it from 40 rows of 440.
    assert model.excess == pytest.approx(0.8 * expected, abs=0.15)
    if expected:
        # Held-out audited rows have the chance that is theirs.
        assert told["audited"]["mean_agreement"] == pytest.approx(told["audited"]["share_within"], abs=0.12)


def test_predictors_by_hand():
    place = np.tile([0.2, 0.3, 0.5, 0.7, 0.8], (3, 5, 1))
    place[1, 2] = [0.01, 0.02, 0.03, 0.04, 0.05]
    place[2] = np.nan
    theta = np.moveaxis(PRIOR.low + np.moveaxis(place, 1, -1) * (PRIOR.high - PRIOR.low), -1, 1)
    found = predictors(
        PRIOR,
        (0.025, 0.16, 0.5, 0.84, 0.975),
        theta,
        np.array([0, int(QualityFlag.OUTSIDE_SIMULATIONS | QualityFlag.PRIOR_EDGE), 0]),
        np.array([40, 30, 40]),
        40,
        {
            "feature_distance": np.array([1.0, np.e, 1.0]),
            "weight_scatter": np.array([0.5, 0.0, 1.0]),
            "importance_ess": np.array([100.0, np.nan, 1.0]),
            "importance_pareto_k": np.array([0.1, np.nan, np.inf]),
        },
    )
    np.testing.assert_allclose(found["narrow"][:2], [-np.log(0.4), -(4 * np.log(0.4) + np.log(0.02)) / 5])
    np.testing.assert_allclose(found["edge"][:2], [-np.log(0.5), -np.log(0.03)])
    assert np.isnan([found["narrow"][2], found["edge"][2]]).all()
    np.testing.assert_allclose(found["lost"], [0, 0.25, 0])
    np.testing.assert_allclose(found["outside"], [0, 1, 0])
    np.testing.assert_allclose(found["distance"], [0, 1, 0])
    np.testing.assert_allclose(found["weights"], np.log([0.5, 1e-4, 1]))
    np.testing.assert_allclose(found["ess"], [-np.log(100), 0, 0])
    np.testing.assert_allclose(found["pareto_k"], [0.1, 1.5, 1.5])
    assert "chi2" not in found


def test_the_mean_predictor_is_in_standard_deviations():
    first, second = np.array([1.0, 2.0, 3.0, np.nan]), np.array([10.0, 30.0, 20.0, 40.0])
    total = mean_predictor({"a": first, "b": second, "c": np.ones(4)})
    z = [(x[:3] - np.nanmean(x)) / np.nanstd(x) for x in (first, second)]
    np.testing.assert_allclose(total[:3], (z[0] + z[1] + 1) / 3)
    assert np.isnan(total[3])


def test_a_part_of_the_final_table(tmp_path):
    columns = {
        "galaxy_id": ["a", "b", "c"],
        "tage_p16": [1.0, 2, 3],
        "tage_p50": [2.0, 3, 4],
        "sfr_10_p16": [5.0, 6, 7],
    }
    columns |= {"sfr_10_p50": [6.0, 7, 8], "tage_p50_weighted": [0.0, 0, 0], "quality": [0, 1, 2]}
    fields = [pa.field(name, pa.array(values).type, metadata={"unit": name}) for name, values in columns.items()]
    table = pa.table(list(columns.values()), schema=pa.schema(fields, metadata={"model_hash": "x"}))
    parquet.write_table(table, tmp_path / "part.parquet")
    every = {11: RefinedRow(2, np.array([[1.5, 2.5]]), np.array([[8.0, 9.0]]))}
    every[99] = every[2] = RefinedRow(1, np.zeros((1, 2)), np.zeros((1, 2)))
    better = RefinedRows.of(every, parameters=1, quantities=1, quantiles=2)
    better.save(tmp_path / "better.npz")
    better = RefinedRows.load(tmp_path / "better.npz")
    assert (better.rows.tolist(), better.tier.tolist()) == ([2, 11, 99], [1, 2, 1])
    data = final_part(
        tmp_path / "part.parquet",
        np.array([0.9, np.nan, 0.2]),
        better.within(10, 13),
        np.array([0, int(QualityFlag.AGREEMENT_CAPPED), int(QualityFlag.LOW_AGREEMENT)]),
        (("tage",), ("sfr_10",)),
        (0.16, 0.5),
        {"auc": 0.8},
    )
    found = parquet.read_table(pa.BufferReader(data))
    assert found.column_names == [*columns, "agreement", "tier"]
    frame = found.to_pydict()
    assert frame["tier"] == [0, 2, 0]
    assert frame["agreement"] == [pytest.approx(0.9), pytest.approx(np.nan, nan_ok=True), pytest.approx(0.2)]
    assert (frame["tage_p16"], frame["tage_p50"]) == ([1, 1.5, 3], [2, 2.5, 4])
    assert (frame["sfr_10_p16"], frame["sfr_10_p50"]) == ([5, 8, 7], [6, 9, 8])
    assert frame["quality"] == [0, 1 | int(QualityFlag.AGREEMENT_CAPPED), 2 | int(QualityFlag.LOW_AGREEMENT)]
    assert frame["tage_p50_weighted"] == [0, 0, 0]
    assert found.schema.field("tage_p50").metadata == {b"unit": b"tage_p50"}
    assert found.schema.field("tier").metadata[b"description"].startswith(b"whose percentiles: 0 neural")
    assert found.schema.metadata[b"model_hash"] == b"x"
    assert json.loads(found.schema.metadata[b"agreement"]) == {"auc": 0.8}


def test_no_row_that_is_better_has_the_shapes_of_many(tmp_path):
    none = RefinedRows.of({}, parameters=5, quantities=0, quantiles=3)
    none.save(tmp_path / "better.npz")
    again = RefinedRows.load(tmp_path / "better.npz").within(0, 10)
    assert (again.percentiles.shape, again.derived.shape, again.rows.size) == ((0, 5, 3), (0, 0, 3), 0)
