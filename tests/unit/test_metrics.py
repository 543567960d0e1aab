"""Metrics: what the docs say of them, and how a shard's time is divided."""

from __future__ import annotations

import re
from pathlib import Path

from digs_survey.cluster.metrics import METRICS, Phases

DOCS = Path(__file__).parents[2] / "docs" / "watching.md"


def test_docs_name_every_metric_with_its_type_and_labels():
    rows = re.findall(r"^\| `ray_(\w+)` \| (\w+) \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert told == {metric.name: (metric.kind, metric.labels) for metric in METRICS.values()}


def test_phases_share_out_all_of_the_time(monkeypatch):
    clock = iter((10.0, 13.0, 14.0))
    monkeypatch.setattr("digs_survey.cluster.metrics.time.perf_counter", lambda: next(clock))
    phases = Phases()
    phases.end("read")
    phases.end("infer")
    assert phases.seconds == {"read": 3.0, "infer": 1.0}
