"""The benchmarks of posteriors for rows of any noise: kinds of features, and how draws are held against chains."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from row_noise import ELEMENTS, GRID, QUIET, draw, row_noise, spectra

from benchmarks import _form, features, survey_chains
from benchmarks._features import Channels, FilledFlux, LeastSquares
from benchmarks._survey import WeighedDraws
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MCMCConfig, TrainConfig, load_config
from digs_survey.estimator.shipped import shipped
from digs_survey.identity import RunIdentity
from digs_survey.noise.observation import join_clean, join_observed, split_observed
from digs_survey.prior import Prior

KINDS = {
    "filled": partial(FilledFlux, described=False),
    "described": partial(FilledFlux, described=True),
    "no-errors": partial(LeastSquares, errors="none"),
    "diagonal": partial(LeastSquares, errors="diagonal"),
    "more": partial(LeastSquares, errors="more"),
    "channels": Channels,
}
TOLD = [name for name in KINDS if name != "filled"]
"""Kinds that are told what the errors of a row are."""


def simulations(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flux, redshift = spectra(rows, seed)
    theta = Prior().from_unit_cube(np.random.default_rng(seed).random((rows, 5)))
    noise = row_noise()
    return draw(noise, flux, redshift, seed + 1), join_clean(flux, redshift), theta


@pytest.fixture(scope="module", params=list(KINDS))
def fitted(request):
    network = TrainConfig(components=6, amplitude="equivariant", whitening="least_squares")
    made = KINDS[request.param](ELEMENTS, network, Prior(), row_noise().config)
    made.fit(*simulations())
    return request.param, made


def seen(made, observed: np.ndarray) -> np.ndarray:
    return made(torch.as_tensor(observed)).numpy()


def test_features_have_unit_variance_and_the_stated_size(fitted):
    _, made = fitted
    found = seen(made, simulations()[0])
    assert found.shape == (400, 1 + made.shape_features)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.1)
    deviation = found.std(axis=0)
    # Few elements are masked in hardly any row.
    assert (deviation < 1.3).all()
    assert (deviation > 0.9).mean() > 0.8


def test_the_flux_of_a_gap_is_not_seen(fitted):
    _, made = fitted
    observed = simulations()[0]
    flux, inverse, _ = split_observed(observed)
    assert (inverse == 0).any(axis=1).sum() > 100
    other = observed.copy()
    other[:, :ELEMENTS] = np.where(inverse > 0, flux, 1e-3)
    np.testing.assert_array_equal(seen(made, other), seen(made, observed))


def test_a_brighter_row_of_the_same_errors_has_the_same_shape(fitted):
    _, made = fitted
    observed = simulations()[0]
    brighter = observed.copy()
    brighter[:, :ELEMENTS] *= 10
    brighter[:, ELEMENTS:-1] /= 10
    found, more = seen(made, observed), seen(made, brighter)
    np.testing.assert_allclose(more[:, 1:], found[:, 1:], atol=2e-3)
    dex = (more[:, 0] - found[:, 0]) * float(made.amplitude_std)
    np.testing.assert_allclose(dex, 1, atol=1e-3)


def test_only_kinds_that_are_told_of_errors_change_with_them(fitted):
    name, made = fitted
    flux, redshift = spectra(200, 5)
    rows = draw(row_noise(QUIET | {"snr": (20.0, 20.1)}), flux, redshift)
    noisier = rows.copy()
    noisier[:, ELEMENTS:-1] /= 4
    change = np.abs(seen(made, noisier) - seen(made, rows)).max(axis=1)
    if name in TOLD:
        assert (change > 0.1).all()
    else:
        np.testing.assert_array_equal(change, 0)


def test_correlations_are_shown_beside_the_diagonals():
    network, config = TrainConfig(components=6, amplitude="equivariant"), row_noise().config
    size = {name: KINDS[name](ELEMENTS, network, Prior(), config).size for name in ("no-errors", "diagonal", "more")}
    assert size["no-errors"] == 6 + 2
    assert size["diagonal"] == size["no-errors"] + 2 * 7
    # Of seven columns there are 21 pairs.
    assert size["more"] == size["diagonal"] + 21


@pytest.mark.slow
def test_posteriors_are_trained_judged_and_kept(tmp_path):
    small = ["train.hidden_features=12", "train.transforms=2", "train.embedding_features=16", "train.batch_size=256"]
    small += ["train.epochs=1", "train.components=8"]
    kinds = [kind for kind in features.KINDS if kind.name in ("described", "diagonal")]
    kinds = [features.Kind(kind.name, kind.what, kind.build) for kind in kinds]
    folder = shipped()["survey"]
    found = features.measure(folder, kinds, small, 1_000, 40, 3, tmp_path)
    assert [figures["features"] for figures in found.values()] == [8 + 3, 3 * 8 + 4]
    for figures in found.values():
        assert np.isfinite([figures["log_q"], *figures["half_width"], figures["encode_core_ms"]]).all()
        assert all(0 <= share <= 1 for share in figures["coverage_68"])
        # Next to nothing is learned of so few.
        assert max(v for v in figures["width_over_exact"] if v is not None) > 1.2
    assert features.measure(folder, kinds, small, 1_000, 40, 3, tmp_path) == found
    page = tmp_path / "page.md"
    page.write_text(f"before\n{features.BEGIN}\nold\n<!-- end -->\nafter\n")
    _form.write_table(page, features.BEGIN, *features._page(found), "about")
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert sum(line.startswith("| ") for line in lines) == 3
    assert "old" not in lines


# -- draws beside chains ---------------------------------------------------------------------------------------


def fits_and_draws(width: float, shift: float, rows: int = 6) -> tuple[PreparedRows, list[GalaxyFit], WeighedDraws]:
    """Chains of a normal posterior of width 0.1, and draws that are so much wider and shifted by so many sigma.

    The weights are those that make the draws the posterior's. The last row's weights are worth one draw, and the chain
    of the last but one has not converged.
    """
    rng, prior = np.random.default_rng(3), Prior()
    middle = rng.random((rows, 1, prior.ndim))
    settings = load_config("survey").audit.mcmc
    setup = FitSetup(RunIdentity.of_config(load_config("survey"), GRID), settings)
    failed = GalaxyFit.failed(setup, "")
    fits = []
    for row in range(rows):
        draws = middle[row] + 0.1 * rng.normal(size=(20_000, prior.ndim))
        r_hat = np.full(prior.ndim, 1.001 + 0.001 * row)
        made = replace(failed, draws=draws, r_hat=r_hat, converged=row != rows - 2, steps=500, job_core_s=30.0 + row)
        fits.append(made)
    normal = rng.normal(size=(rows, 20_000, prior.ndim))
    offset = shift + width * normal
    log_weights = 0.5 * (normal**2 - offset**2).sum(axis=-1)
    log_weights[-1, 0] += 1e3
    inverse = np.geomspace(2, 40, rows)[:, None] * np.ones(ELEMENTS)
    observed = join_observed(np.ones((rows, ELEMENTS)), inverse, np.full(rows, 0.1))
    seen_rows = PreparedRows(observed, inverse**2, inverse > 0, np.zeros(rows, dtype=np.int64))
    return seen_rows, fits, WeighedDraws(middle + 0.1 * offset, log_weights)


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (1.3, 0.0), (1.2, 0.3)])
def test_widths_and_shifts_are_those_of_the_draws_and_weights_take_them_out(width, shift):
    table, figures = survey_chains.compared(Prior().names, *fits_and_draws(width, shift))
    neural, weighted = figures["neural"], figures["weighted"]
    assert neural["mean_width_ratio"]["all"] == pytest.approx(width, abs=0.02)
    assert weighted["mean_width_ratio"]["all"] == pytest.approx(1, abs=0.03)
    assert neural["mean_abs_shift_sigma"]["all"] == pytest.approx(shift, abs=0.02)
    assert weighted["mean_abs_shift_sigma"]["all"] < 0.04
    # Of six rows one has no converged chain, and another no weights.
    assert neural["converged"] == figures["converged"] == 5
    assert weighted["converged"] == 4
    assert figures["low_ess"] == 1
    assert figures["r_hat_largest"] == pytest.approx(1.006)
    assert figures["r_hat_median"] == pytest.approx(1.0035)
    assert figures["core_s_mean"] == pytest.approx(32.5)
    for kind, count in (("neural", 5), ("weighted", 4)):
        assert sum(found["galaxies"] for found in figures[kind]["by_snr"].values()) == count
    by_name = {name: values for name, values, _ in table}
    assert len(by_name) == len(table)
    assert np.mean(by_name["neural: dust2, shift"]) == pytest.approx(shift, abs=0.04)
    assert all(values for values in by_name.values())


def test_a_fit_that_failed_is_counted_and_enters_nothing_else():
    rows, fits, weighed = fits_and_draws(1.3, 0.0)
    failed = GalaxyFit.failed(FitSetup(RunIdentity.of_config(load_config("survey"), GRID), MCMCConfig()), "it stalled")
    fits[0] = replace(failed, draws=np.full_like(fits[0].draws, np.nan))
    _, figures = survey_chains.compared(Prior().names, rows, fits, weighed)
    assert figures["failed"] == 1
    assert figures["converged"] == figures["neural"]["converged"] == 4
    assert figures["neural"]["mean_width_ratio"]["all"] == pytest.approx(1.3, abs=0.02)
    assert figures["r_hat_median"] == pytest.approx(1.004)
    assert figures["core_s_mean"] == pytest.approx(33)


def test_chains_none_of_which_converged_leave_the_other_figures():
    rows, fits, weighed = fits_and_draws(1.0, 0.0)
    fits = [replace(fit, converged=False) for fit in fits]
    table, figures = survey_chains.compared(Prior().names, rows, fits, weighed)
    assert figures["converged"] == 0
    assert not figures["neural"]["by_snr"]
    assert dict((name, values) for name, values, _ in table)["converged"] == [0.0]
