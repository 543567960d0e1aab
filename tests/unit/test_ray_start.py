"""Ray that does not start, or is asked for where it is not: the cause and what helps, never a bare error."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from digs_survey.cluster import ray_session as session
from digs_survey.cluster.cores import usable_cores
from digs_survey.cluster.ray_session import ray_session
from digs_survey.errors import MissingDependencyError


@pytest.fixture
def started(monkeypatch):
    """What Ray is started with; nothing starts. Set ``error`` for a start that fails."""
    import ray

    found = SimpleNamespace(error=None, settings={}, shut=0)

    def init(**settings):
        found.settings = settings
        if found.error:
            raise found.error
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": found.settings["num_cpus"]})
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(found, "shut", found.shut + 1))
    return found


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (Exception("The current node timed out during startup"), "session_latest/logs"),
        (ValueError("AF_UNIX path length cannot exceed 107 bytes"), "set RAY_TMPDIR to a short folder"),
        (RuntimeError("no memory"), "free memory"),
    ],
)
def test_a_start_that_fails_says_what_helps(started, error, remedy):
    started.error = error
    with pytest.raises(MissingDependencyError) as told, ray_session():
        pass
    assert str(error) in str(told.value)
    assert remedy in str(told.value)
    assert started.shut == 1


def test_a_cluster_that_fails_with_a_bare_exception_is_named(started, monkeypatch):
    started.error = Exception("The current node timed out during startup")
    with (
        pytest.raises(MissingDependencyError, match="Ray cluster auto: expected to be let in, found Exception: "),
        ray_session("auto"),
    ):
        pass


def test_python_without_docstrings(started, monkeypatch):
    started.error = Exception("The current node timed out during startup")
    monkeypatch.setattr(session.sys, "flags", SimpleNamespace(optimize=2))
    with pytest.raises(MissingDependencyError, match="leave PYTHONOPTIMIZE unset"), ray_session():
        pass
    assert sys.flags.optimize == 2


@pytest.mark.parametrize("address", [None, "local"])
def test_it_takes_the_cores_of_the_process_alone(started, monkeypatch, address):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3}, raising=False)
    with ray_session(address) as cores:
        assert cores == usable_cores() == 1
    assert started.settings["address"] == "local"


def test_an_address_of_the_environment_is_named(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with (
        pytest.raises(MissingDependencyError, match="comes from RAY_ADDRESS"),
        ray_session("nonsense"),
    ):
        pass
    with pytest.raises(MissingDependencyError, match="or leave it away"), ray_session("other"):
        pass


def test_a_token_that_the_user_has_is_used(started, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with ray_session():
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with ray_session():
        assert len(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
