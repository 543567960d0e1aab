"""Many spectra brought to the rest frame: the same as one by one, with honest errors, each row by itself."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.catalog.rest_frame import to_rest_frame
from digs_survey.spectra import rebin_spectrum

WIDE, NARROW = np.arange(2500.0, 5001.0, 25.0), np.arange(2500.0, 5001.0, 0.7)
"""Elements wider and narrower than the pixels, of about 2 Angstrom."""
UNEVEN = np.concatenate([np.arange(2000.0, 3000.0, 0.3), np.arange(3000.0, 4000.0, 40.0), [4000.0, 4700.0, 9000.0]])


def random_rows(n: int, seed: int = 0, pixels: int = 600) -> dict:
    """Spectra on uneven pixels with bad pixels of every kind, gaps and negative flux; arguments of the function."""
    rng = np.random.default_rng(seed)
    edges = 3600 + np.cumsum(rng.uniform(0.2, 4.0, pixels + 1))
    flux, ivar = rng.normal(0.5, 1.0, (n, pixels)), rng.lognormal(0.0, 2.0, (n, pixels))
    good = rng.random((n, pixels)) > 0.1
    for row in range(n):
        start = rng.integers(0, pixels)
        good[row, start : start + 40] = False
    for values, wrong in ((flux, np.nan), (flux, np.inf), (ivar, np.nan), (ivar, np.inf), (ivar, 0.0), (ivar, -1.0)):
        values[rng.random(values.shape) < 0.01] = wrong
    redshift = rng.uniform(0.0, 1.0, n)
    redshift[:2] = 0.0, 1.0
    return {"edges": edges, "flux": flux, "ivar": ivar, "good": good, "redshift": redshift}


def one_by_one(edges, flux, ivar, good, redshift, rest_edges, min_coverage):
    rows = []
    for f, i, g, z in zip(flux, ivar, good, redshift, strict=True):
        shifted = edges / (1 + z), f * (1 + z), np.where(g, i / (1 + z) ** 2, 0.0)
        with np.errstate(invalid="ignore"):
            rows.append(rebin_spectrum(*shifted, rest_edges, min_coverage)[:2])
    return np.array(rows).transpose(1, 0, 2)


def bytes_of(arrays) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("min_coverage", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rest_edges", [WIDE, NARROW, UNEVEN, [1000.0, 1e5]], ids=["wide", "narrow", "uneven", "one"])
def test_many_rows_are_rebinned_as_each_by_itself(rest_edges, min_coverage):
    rows = random_rows(25)
    rest_edges = np.array(rest_edges)
    flux, ivar = to_rest_frame(**rows, rest_edges=rest_edges, min_coverage=min_coverage)
    expected_flux, expected_ivar = one_by_one(**rows, rest_edges=rest_edges, min_coverage=min_coverage)
    assert np.array_equal(ivar > 0, expected_ivar > 0)
    np.testing.assert_allclose(flux, expected_flux, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ivar, expected_ivar, rtol=1e-12)
    if rest_edges.size > 2:
        assert 0.05 < (ivar > 0).mean() < 0.95
        assert (flux < 0).any()


def test_the_pixels_own_edges_leave_a_spectrum_as_it_is():
    rows = random_rows(3)
    rows["redshift"][:] = 0.0
    flux, ivar = to_rest_frame(**rows, rest_edges=rows["edges"])
    usable = rows["good"] & np.isfinite(rows["flux"]) & np.isfinite(rows["ivar"]) & (rows["ivar"] > 0)
    np.testing.assert_allclose(flux, np.where(usable, rows["flux"], 0.0), rtol=1e-14)
    np.testing.assert_allclose(ivar, np.where(usable, rows["ivar"], 0.0), rtol=1e-14)


@pytest.mark.parametrize(("low", "high"), [(100.0, 1000.0), (1e4, 2e4)], ids=["below", "above"])
def test_rows_off_the_elements_are_zeros(low, high):
    flux, ivar = to_rest_frame(**random_rows(4), rest_edges=np.linspace(low, high, 30))
    assert not flux.any()
    assert not ivar.any()


def test_only_elements_that_a_row_reaches_are_filled():
    edges = np.linspace(4000, 5000, 501)
    ones = np.ones((2, 500))
    _, ivar = to_rest_frame(edges, ones, ones, ones > 0, [0.0, 0.25], np.arange(3000.0, 6001.0, 100.0))
    centres = np.arange(3050.0, 6000.0, 100.0)
    assert np.array_equal(ivar[0] > 0, (centres > 4000) & (centres < 5000))
    assert np.array_equal(ivar[1] > 0, (centres > 3200) & (centres < 4000))


@pytest.mark.parametrize("z", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("elements", [7, 3000])
def test_flux_is_conserved(z, elements):
    rng = np.random.default_rng(1)
    rows = random_rows(5)
    rows["good"][:], rows["redshift"][:] = True, z
    rows["flux"], rows["ivar"] = rng.normal(1, 1, rows["flux"].shape), np.ones_like(rows["flux"])
    first, last = rows["edges"][[50, 550]] / (1 + z)
    rest_edges = np.sort(np.concatenate([[first, last], rng.uniform(first, last, elements - 1)]))
    flux, ivar = to_rest_frame(**rows, rest_edges=rest_edges)
    assert (ivar > 0).all()
    total = (rows["flux"] * np.diff(rows["edges"]))[:, 50:550].sum(axis=1)
    np.testing.assert_allclose((flux * np.diff(rest_edges)).sum(axis=1), total, rtol=1e-10)


def test_a_constant_spectrum_stays_constant():
    rows = random_rows(10)
    rows["flux"] = np.where(np.isfinite(rows["flux"]), 7.0 / (1 + rows["redshift"][:, None]), np.nan)
    for rest_edges in (WIDE, NARROW):
        flux, ivar = to_rest_frame(**rows, rest_edges=rest_edges)
        assert (ivar > 0).any(axis=1).sum() >= 6
        np.testing.assert_allclose(flux[ivar > 0], 7.0, rtol=1e-13)


def test_errors_are_those_of_repeated_observations():
    rng = np.random.default_rng(2)
    trials, pixels, z = 4000, 150, 0.37
    edges = 5000 + np.cumsum(rng.uniform(0.5, 3.0, pixels + 1))
    truth, ivar = 3 + np.sin(np.arange(pixels) / 9), rng.lognormal(1.0, 1.0, pixels)
    observed = truth + rng.standard_normal((trials, pixels)) / np.sqrt(ivar)
    good = np.broadcast_to(rng.random(pixels) > 0.1, observed.shape)
    for width in (0.8, 12.0):
        rest_edges = np.arange(edges[0], edges[-1], width * (1 + z)) / (1 + z)
        flux, inverse = to_rest_frame(
            edges, observed, np.broadcast_to(ivar, observed.shape), good, np.full(trials, z), rest_edges
        )
        mean, _ = to_rest_frame(edges, truth[None], ivar[None], good[:1], [z], rest_edges)
        assert (inverse == inverse[0]).all()
        used = inverse[0] > 0
        assert used.sum() >= 10
        pull = (flux - mean)[:, used] * np.sqrt(inverse[0, used])
        np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=0.06)
        np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=0.08)


def test_bytes_do_not_depend_on_the_other_rows():
    rows = random_rows(12)
    edges, each = rows.pop("edges"), list(rows.values())
    together = to_rest_frame(edges, *each, WIDE)
    for row in range(12):
        alone = to_rest_frame(edges, *(values[row : row + 1] for values in each), WIDE)
        assert bytes_of(alone) == bytes_of(array[row : row + 1] for array in together)
    order = np.random.default_rng(0).permutation(12)
    shuffled = to_rest_frame(edges, *(values[order] for values in each), WIDE)
    assert bytes_of(shuffled) == bytes_of(array[order] for array in together)
    each[0][3:], each[1][3:], each[3][3:] = np.nan, 1e300, -5.0
    assert bytes_of(array[:3] for array in to_rest_frame(edges, *each, WIDE)) == bytes_of(a[:3] for a in together)


@pytest.mark.parametrize(
    "stored",
    [np.asfortranarray, lambda a: a.astype(">f8"), lambda a: np.repeat(a, 2, axis=1)[:, ::2], np.ndarray.tolist],
    ids=["columns first", "big-endian", "strided", "lists"],
)
def test_bytes_do_not_depend_on_how_rows_are_stored(stored):
    rows = random_rows(4)
    kept = {name: values.copy() for name, values in rows.items()}
    expected = bytes_of(to_rest_frame(**rows, rest_edges=WIDE))
    assert bytes_of(to_rest_frame(**{**rows, "flux": stored(rows["flux"])}, rest_edges=WIDE)) == expected
    for name, values in rows.items():
        assert np.array_equal(values, kept[name], equal_nan=True)
        values.setflags(write=False)
    assert bytes_of(to_rest_frame(**rows, rest_edges=WIDE)) == expected


def test_float32_is_computed_in_float64():
    rows = random_rows(4)
    narrow = {**rows, "flux": rows["flux"].astype("f4"), "ivar": rows["ivar"].astype("f4")}
    wide = {**narrow, "flux": narrow["flux"].astype("f8"), "ivar": narrow["ivar"].astype("f8")}
    found = to_rest_frame(**narrow, rest_edges=WIDE)
    assert bytes_of(found) == bytes_of(to_rest_frame(**wide, rest_edges=WIDE))
    assert found[0].dtype == found[1].dtype == np.float64


def test_in_the_rest_frame_spectra_are_only_rebinned():
    rows = random_rows(6)
    rows["redshift"][:3] = np.nan, -1.0, 0.8
    rest_edges = np.arange(3700.0, 4700.0, 20.0)
    found = to_rest_frame(**rows, rest_edges=rest_edges, frame="rest")
    unshifted = {**rows, "redshift": np.zeros(6)}
    assert bytes_of(found) == bytes_of(to_rest_frame(**unshifted, rest_edges=rest_edges))
    assert (found[1] > 0).any(axis=1).all()


def test_rows_without_a_redshift_are_zeros():
    rows = random_rows(8)
    rows["redshift"][:] = np.nan, np.inf, -np.inf, -1.0, -2.0, 1e300, 0.2, -0.1
    flux, ivar = to_rest_frame(**rows, rest_edges=WIDE)
    assert not flux[:6].any()
    assert not ivar[:6].any()
    assert (ivar[6:] > 0).any(axis=1).all()


@pytest.mark.parametrize("unit", [1e-20, 1e-3, 1e30, 1e100, 1e-100])
def test_no_unit_of_flux_is_too_large_or_small(unit):
    rows = random_rows(4)
    flux, ivar = to_rest_frame(**rows, rest_edges=WIDE)
    scaled = {**rows, "flux": rows["flux"] * unit, "ivar": rows["ivar"] / unit / unit}
    scaled_flux, scaled_ivar = to_rest_frame(**scaled, rest_edges=WIDE)
    np.testing.assert_allclose(scaled_flux / unit, flux, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scaled_ivar * unit * unit, ivar, rtol=1e-12)


@pytest.mark.parametrize(
    ("flux", "ivar"), [(1e308, 1.0), (-1e308, 1.0), (1.0, 1e-310), (1.0, 1e308)], ids=["large", "low", "wide", "exact"]
)
def test_what_leaves_the_range_of_float64_is_missing(flux, ivar):
    edges, rest_edges = np.linspace(4000, 4400, 401), np.array([4000.0, 4100.0, 4200.0])
    fluxes, ivars = np.ones((1, 400)), np.ones((1, 400))
    fluxes[0, :100], ivars[0, :100] = flux, ivar
    found = to_rest_frame(edges, fluxes, ivars, np.ones((1, 400), bool), [0.0], rest_edges)
    assert found[0][0].tolist() == [0.0, 1.0]
    assert found[1][0] == pytest.approx([0.0, 100.0])


def test_no_rows_give_no_rows():
    rows = random_rows(2)
    none = {name: values if name == "edges" else values[:0] for name, values in rows.items()}
    assert [array.shape for array in to_rest_frame(**none, rest_edges=WIDE)] == [(0, WIDE.size - 1)] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"edges": np.arange(600.0)}, r"flux: expected shape \(n, pixel\) = \(3, 599\), found \(3, 600\)"),
        ({"edges": np.zeros(601)}, "edges: expected at least two finite, strictly increasing"),
        ({"ivar": np.ones(600)}, r"ivar: expected shape .* found \(600,\)"),
        ({"good": np.ones((3, 1), bool)}, "good: expected shape"),
        ({"redshift": 0.1}, r"redshift: expected shape \(n,\), found \(\)"),
        ({"rest_edges": [1.0]}, "rest_edges: expected at least two"),
        ({"rest_edges": [1.0, np.nan]}, "rest_edges: expected at least two finite"),
        ({"frame": "air"}, r"frame: expected observed\|rest, found 'air'"),
        ({"min_coverage": np.nan}, "min_coverage: expected 0 to 1, found nan"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        to_rest_frame(**{**random_rows(3), "rest_edges": WIDE, **wrong})
