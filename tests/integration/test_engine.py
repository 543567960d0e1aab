from __future__ import annotations

import re

import pytest

from digs_survey.config import load_config
from digs_survey.errors import ConfigError, NotBatchedError
from digs_survey.simulate.simulation_set import simulate
from digs_survey.simulate.trial import Trial, chosen_engine, told_estimate
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps import spread
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import recorded_recipe

SMALL = ["grid.start_angstrom=4000", "grid.stop_angstrom=5000", "simulate.rows_per_shard=8"]
FREE = "prior.sigma_smooth={low=60.0,high=400.0}"


def made(folder, *settings, count=24, workers=0):
    config = load_config(None, [*SMALL, *settings])
    lines: list[str] = []
    grid = WavelengthGrid.from_config(config.grid)
    path, ledger = folder / "simulations.zarr", Ledger(folder / "ledger")
    simulate(config, grid, path, count=count, stream="simulate", ledger=ledger, workers=workers, say=lines.append)
    assert ledger.totals()[0] == count
    return (recorded_recipe(path) or {})["engine"], lines


@pytest.fixture
def hard(monkeypatch):
    """A line spread that no number of nodes interpolates."""

    def refuse(*_):
        raise NotBatchedError("prior.sigma_smooth: cannot be interpolated")

    monkeypatch.setattr(spread, "_nodes", refuse)


def test_batches_tell_nothing(tmp_path):
    assert made(tmp_path, "simulate.engine=batched") == ("batched", [])


def test_who_asks_for_prospector_is_told_how_long_it_takes(tmp_path):
    engine, lines = made(tmp_path, "simulate.engine=prospector", workers=2)
    assert engine == "prospector"
    (line,) = lines
    assert "simulate: Prospector makes the spectra one by one (simulate.engine = 'prospector' asks for it)" in line
    assert re.search(r"24 on 2 workers will take about \d+:\d\d:\d\d$", line)
    took, spectra = re.search(r"One took (\S+) s \(median of (\d)\)", line).groups()
    # A busy machine has time for fewer.
    assert 1e-4 < float(took) < 5
    assert 2 <= int(spectra) <= 8
    # What is finished is not made again, and nothing is told of it.
    assert made(tmp_path, "simulate.engine=prospector", workers=2) == ("prospector", [])


def test_what_cannot_be_batched_falls_back_to_prospector(hard, tmp_path):
    engine, lines = made(tmp_path, "simulate.engine=auto", FREE)
    assert engine == "prospector"
    assert len(lines) == 1
    assert "(prior.sigma_smooth: cannot be interpolated)" in lines[0]
    assert "24 on 1 worker will take about" in lines[0]


def test_batches_that_are_asked_for_and_impossible_are_refused(hard, tmp_path):
    with pytest.raises(ConfigError, match="simulate.engine = 'batched'.*cannot be interpolated; expected simulate.eng"):
        made(tmp_path, "simulate.engine=batched", FREE)
    assert not (tmp_path / "simulations.zarr").exists()


def test_a_fixed_line_spread_is_decided_without_populations(monkeypatch):
    config = load_config(None, SMALL)
    monkeypatch.setattr(spread, "_nodes", lambda *_: pytest.fail("not to be asked"))
    grid = WavelengthGrid.from_config(config.grid)
    assert chosen_engine(config, config.make_prior(), grid) == ("batched", "")


@pytest.mark.parametrize(
    ("rows", "size", "workers", "expected"),
    [(60_000, 2_000, 4, 10 + 16_000 * 0.05), (100, 2_000, 4, 15.0), (4_001, 2_000, 2, 10 + 4_000 * 0.05)],
)
def test_the_estimate_is_of_the_worker_with_most_shards(rows, size, workers, expected):
    trial = Trial(start_s=10.0, spectrum_s=0.05, spectra=8)
    assert trial.estimate_s(rows, size, workers) == pytest.approx(expected)


def test_the_line_of_the_estimate():
    line = told_estimate("simulate", "why not", Trial(10.0, 0.05, 8), 60_000, 2_000, 4)
    assert line == (
        "simulate: Prospector makes the spectra one by one (why not). One took 0.05 s (median of 8), after 10 s to "
        "begin: 60,000 on 4 workers will take about 0:13:30"
    )


def test_a_trial_that_fails_leaves_the_word_to_the_shards(monkeypatch, tmp_path):
    from digs_survey.errors import StageError
    from digs_survey.simulate import shard

    def broken(*_):
        raise RuntimeError("no populations")

    monkeypatch.setattr(shard, "_simulator", broken)
    with pytest.raises(StageError, match=r"simulate: shard 0 \(rows 0 to 7\).* no populations"):
        made(tmp_path, "simulate.engine=prospector")
