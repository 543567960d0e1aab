"""Cores are those that the process may use: by affinity, and by the quota of its control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from digs_survey.cluster import cores
from digs_survey.cluster.cores import usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of 128 cores, whose control groups lie in ``tmp_path``."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)), raising=False)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_without_control_groups_the_affinity_counts(machine, monkeypatch):
    assert usable_cores() == 128
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 64})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert usable_cores() == 2


@pytest.mark.parametrize(
    ("quota", "expected"), [("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 128)]
)
def test_the_quota_of_a_container(machine, quota, expected):
    (machine / "own").write_text("0::/\n")
    group(machine, cpu__max=quota)
    assert usable_cores() == expected


def test_the_least_quota_of_the_groups_above(machine):
    (machine / "own").write_text("0::/slurm/job_7/step_0\n")
    group(machine / "slurm" / "job_7" / "step_0", cpu__max="max 100000")
    group(machine / "slurm" / "job_7", cpu__max="800000 100000")
    group(machine / "slurm", cpu__max="6400000 100000")
    assert usable_cores() == 8


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 128)])
def test_version_1(machine, quota, expected):
    (machine / "own").write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    group(machine / "cpu,cpuacct" / "job", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cores() == expected


def test_this_process():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
