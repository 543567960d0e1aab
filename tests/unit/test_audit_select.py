import numpy as np
import pytest

from digs_survey.audit.select import principal_position, select_rows, signal_to_noise


@pytest.fixture
def catalog():
    rng = np.random.default_rng(3)
    snr = rng.lognormal(3, 0.5, 300)
    position = 0.02 * snr + rng.normal(size=300)
    eligible = rng.random(300) > 0.1
    snr[5] = np.nan
    return snr, position, eligible


def test_each_occupied_cell_gets_an_equal_share_and_excluded_rows_none(catalog):
    snr, position, eligible = catalog
    chosen = select_rows(snr, position, eligible, 27, seed=1)
    assert (np.bincount(chosen.stratum, minlength=9) == 3).all()
    assert eligible[chosen.rows].all()
    assert 5 not in chosen.rows
    assert (np.diff(chosen.rows) > 0).all()


@pytest.mark.parametrize("count", [4, 13, 60])
def test_weights_are_the_inverse_of_how_often_a_row_is_chosen(catalog, count):
    snr, position, eligible = catalog
    kept = eligible & np.isfinite(snr)
    trials, seen, total = 1000, np.zeros(300), []
    for seed in range(trials):
        chosen = select_rows(snr, position, eligible, count, seed)
        assert chosen.rows.size == count
        seen[chosen.rows] += 1
        total.append((chosen.weight * snr[chosen.rows]).sum())
        probability = 1 / chosen.weight
        assert ((probability > 0) & (probability <= 1 + 1e-12)).all()
    assert (seen[kept] > 0).all()
    assert (seen[~kept] == 0).all()
    # Horvitz-Thompson: unbiased for the sum over the eligible rows
    error = np.std(total) / np.sqrt(trials)
    assert abs(np.mean(total) - snr[kept].sum()) < 4 * error
    z = (seen[chosen.rows] - trials * probability) / np.sqrt(trials * probability * (1 - probability) + 1e-9)
    assert np.abs(z).max() < 5


def test_a_small_cell_is_taken_whole_and_the_rest_is_shared():
    snr = np.r_[np.arange(90.0), 1000.0]
    position = np.where(snr == 1000, 5.0, 0.0)
    chosen = select_rows(snr, position, np.ones(91, bool), 30, seed=0)
    assert chosen.rows.size == 30
    assert (chosen.rows[-1], chosen.weight[-1]) == (90, 1.0)
    assert np.bincount(chosen.stratum)[[0, 3, 6]].tolist() in ([10, 10, 9], [10, 9, 10], [9, 10, 10])


def test_same_seed_same_rows_and_fewer_rows_than_asked_for(catalog):
    first, again = (select_rows(*catalog, 10, seed=7).rows for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, select_rows(*catalog, 10, seed=8).rows)
    few = select_rows([3.0, 2.0, 9.0], [0.0, 0.0, 0.0], [True, False, True], 10, seed=0)
    assert few.rows.tolist() == [0, 2]
    assert few.weight.tolist() == [1, 1]
    assert select_rows([3.0], [np.nan], [True], 10, seed=0).rows.size == 0


def test_equal_snr_everywhere_is_one_stratum_and_still_gives_the_count():
    chosen = select_rows(np.full(50, 20.0), np.linspace(0, 1, 50), np.ones(50, bool), 6, seed=0)
    assert chosen.rows.size == 6
    assert np.unique(chosen.stratum // 3).size == 1
    assert np.bincount(chosen.stratum % 3).tolist() == [2, 2, 2]


def test_position_follows_the_direction_of_largest_spread():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=200)
    medians = hidden[:, None] * [0.3, 0.1] + 0.001 * rng.normal(size=(200, 2))
    medians[4] = np.nan
    position = principal_position(medians)
    assert np.isnan(position[4])
    kept = np.arange(200) != 4
    assert abs(np.corrcoef(position[kept], hidden[kept])[0, 1]) > 0.999


def test_signal_to_noise_looks_at_good_elements_only():
    flux = np.array([[10.0, 20.0, np.nan], [1.0, 1.0, 1.0]])
    ivar = np.array([[1.0, 4.0, np.nan], [1.0, 1.0, 1.0]])
    good = np.array([[True, True, False], [False, False, False]])
    ratio = signal_to_noise(flux, ivar, good)
    assert ratio[0] == 25.0
    assert np.isnan(ratio[1])


def test_redshift_makes_cells_of_its_own():
    rng = np.random.default_rng(2)
    snr, position, redshift = rng.random((3, 900))
    chosen = select_rows(snr, position, np.ones(900, bool), 81, seed=4, redshift=redshift)
    assert np.bincount(chosen.stratum, minlength=27).tolist() == [3] * 27
    assert (redshift[chosen.rows][chosen.stratum < 9] < 0.4).all()
    same = select_rows(snr, position, np.ones(900, bool), 81, seed=4, redshift=np.full(900, 0.1))
    np.testing.assert_array_equal(same.rows, select_rows(snr, position, np.ones(900, bool), 81, seed=4).rows)


def test_signal_to_noise_of_garbage_is_not_a_warning():
    flux, ivar = np.array([[np.inf, 2.0, 3.0], [np.inf, np.nan, 1.0]]), np.array([[1.0, 4.0, 1.0], [np.inf, 1.0, 1.0]])
    good = np.array([[False, True, True], [False, False, False]])
    with np.errstate(all="raise"):
        found = signal_to_noise(flux, ivar, good)
    assert found[0] == 3.5
    assert np.isnan(found[1])
