"""A pool of Ray actors: every piece is done, whatever happens to a worker, and errors are counted."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import pytest
import ray

from digs_survey.cluster import actors
from digs_survey.cluster.actors import run_on_actors
from digs_survey.errors import MissingDependencyError, StageError

pytestmark = pytest.mark.slow


class Worker:
    """Squares numbers. The first attempt at a piece fails in the way that a file in a folder, named after it, says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self) -> None:
        """Tell that the actor has started."""

    def work(self, piece: int) -> int:
        fault = self.folder / str(piece)
        if fault.exists():
            how = fault.read_text()
            if how != "always":
                fault.unlink()
            if how == "stall":
                time.sleep(600)
            if how == "full":
                raise OSError(28, "No space left on device")
            raise ValueError(f"no square of {piece}")
        return piece**2


def failed(piece: int | None, why: str) -> StageError:
    return StageError(f"piece {piece}: {why}")


@pytest.fixture
def run(ray_cores, tmp_path, monkeypatch):
    """Run pieces on workers, with faults planted; return the results and the errors that were heard."""
    # Workers need not be able to import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    heard: list[BaseException] = []

    def run(pieces, workers=1, faults=None, **about):
        for piece, how in (faults or {}).items():
            (tmp_path / str(piece)).write_text(how)
        return dict(run_on_actors(Worker, tmp_path, pieces, workers, failed=failed, on_error=heard.append, **about))

    run.heard = heard
    return run


def test_a_stalled_worker_is_replaced_and_its_piece_done(run, monkeypatch, caplog):
    for name, seconds in {"_PATIENCE_S": 0.3, "_STALLED_S": 1.0, "_STALLED_TIMES": 2.0}.items():
        monkeypatch.setattr(actors, name, seconds)
    with caplog.at_level(logging.WARNING, "digs_survey"):
        assert run(range(4), faults={1: "stall"}) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert "map: piece 1 goes to another worker" in caplog.text


def test_a_piece_is_tried_as_often_as_asked_for(run, caplog):
    with caplog.at_level(logging.WARNING, "digs_survey"):
        assert run(range(3), faults={0: "raise"}, tries=2) == {0: 0, 1: 1, 2: 4}
    assert "piece 0: ValueError: no square of 0" in caplog.text
    assert len(run.heard) == 1
    with pytest.raises(StageError, match="piece 0: ValueError: no square of 0") as caught:
        run(range(3), faults={0: "always"}, tries=2)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(run.heard) == 3


def test_several_failures_are_named_together_and_too_many_end_it(run):
    with pytest.raises(StageError, match=r"several pieces failed:\n  - piece 1: .*\n  - piece 3: "):
        run(range(5), faults={1: "raise", 3: "raise"})
    with pytest.raises(StageError) as caught:
        run(range(9), faults=dict.fromkeys(range(9), "always"), stage="audit")
    assert str(caught.value).startswith("audit: several pieces failed:")
    assert str(caught.value).count("no square of") == 3


def test_a_full_disk_ends_it_at_once(run):
    with pytest.raises(MissingDependencyError, match="piece 2: .*No space left on device; free some space first"):
        run(range(3), faults={2: "full"}, tries=5)
    assert run.heard == []
