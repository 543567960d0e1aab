"""The benchmarks of features: what each kind is shown, and that one is trained and judged."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from row_noise import ELEMENTS, QUIET, draw, row_noise, spectra

from benchmarks import _form, features
from benchmarks._features import Channels, FilledFlux, LeastSquares
from digs_survey.config import TrainConfig
from digs_survey.estimator.shipped import shipped
from digs_survey.noise.observation import join_clean, split_observed
from digs_survey.parameters import Prior

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
    kinds = [kind for kind in features.KINDS if kind.name in ("described", "diagonal", "channels")]
    kinds = [features.Kind(kind.name, kind.what, kind.build) for kind in kinds]
    folder = shipped()["survey"]
    found = features.measure(folder, kinds, small, 1_000, 40, 3, tmp_path)
    assert [figures["features"] for figures in found.values()] == [8 + 3, 3 * 8 + 4, 3 * 680 + 1]
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
    assert sum(line.startswith("| ") for line in lines) == 4
    assert "old" not in lines
