"""A Ray cluster without room: what is waited for is said, and the wait ends with exit code 5."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

import pytest
import ray

from digs_survey.cluster import actors, worker_wait
from digs_survey.cluster.actors import run_on_actors
from digs_survey.cluster.dashboards import with_dashboards
from digs_survey.cluster.ray_session import ray_session
from digs_survey.cluster.worker_wait import wait_for_room
from digs_survey.config import SurveyConfig
from digs_survey.errors import ConfigError, MissingDependencyError, StageError
from digs_survey.estimator.training.ray_workers import fit_on_ray

pytestmark = pytest.mark.slow


class Worker:
    """Squares numbers."""

    def __init__(self, task: object) -> None:
        pass

    def ready(self) -> None:
        """Tell that the actor has started."""

    def work(self, piece: int) -> int:
        return piece**2


@pytest.fixture
def full(ray_cores, monkeypatch):
    """A cluster whose cores are all taken, and which is given little time; gives the actor that has them."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("DIGS_SURVEY_WORKER_WAIT_S", "0.4")
    monkeypatch.setattr(worker_wait, "_SOON_S", 0.1)
    monkeypatch.setattr(actors, "_PATIENCE_S", 0.3)
    other = ray.remote(num_cpus=ray_cores)(Worker).remote(None)
    ray.get(other.ready.remote())
    yield other
    ray.kill(other)


@contextmanager
def refused(who):
    """Expect what a stage says that waits and gives up."""
    lines = []
    with with_dashboards(False, lines.append), pytest.raises(MissingDependencyError) as caught:
        yield lines
    assert caught.value.exit_code == 5
    found = str(caught.value)
    assert found.startswith(
        f"{who}: expected room on the Ray cluster for 1 worker with 1 CPU within 0.4 s, found 1 node"
    )
    assert "cores, 0 of them free" in found
    assert "DIGS_SURVEY_WORKER_WAIT_S" in found


def test_session_without_a_core_waits_for_one(full, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    with refused("Ray at auto") as lines, ray_session("auto"):
        pass
    (line,) = lines
    assert line.startswith("Ray at auto: waiting until ")
    assert "for room on the Ray cluster for 1 worker with 1 CPU; it has 1 node, 0 cores" in line


def test_training_that_has_no_room(full, tmp_path):
    config = SurveyConfig.model_validate({"train": {"threads_per_worker": 1}})
    with refused("train") as lines:
        fit_on_ray(config, None, None, tmp_path / "train.pt", "", 0, None)
    assert "train: waiting until " in lines[0]


def test_pool_whose_workers_do_not_start(full):
    with refused("map") as lines:
        list(run_on_actors(Worker, None, [1, 2], 1, failed=lambda piece, why: StageError(why)))
    assert "map: no worker has started for 0 s; is a core of the Ray cluster free?" in lines[0]


def test_room_that_comes_in_time(full, monkeypatch):
    monkeypatch.setenv("DIGS_SURVEY_WORKER_WAIT_S", "60")
    lines = []
    threading.Timer(0.5, lambda: ray.kill(full)).start()
    with with_dashboards(False, lines.append):
        wait_for_room([{"CPU": 1}], "map")
        assert len(lines) == 1
        monkeypatch.setattr(worker_wait, "_SOON_S", 30.0)
        wait_for_room([{"CPU": 1}], "map")
    assert len(lines) == 1, "what is there at once is not worth a line"


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_limit_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("DIGS_SURVEY_WORKER_WAIT_S", text)
    with pytest.raises(ConfigError, match=f"DIGS_SURVEY_WORKER_WAIT_S: expected a number of seconds, found '{text}'"):
        worker_wait.worker_wait_s()
