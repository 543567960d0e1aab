"""What can be watched while a stage runs: dashboards and metrics, on the loopback interface and nowhere else."""

from __future__ import annotations

import ipaddress
import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import zarr
from estimators import GRID, freeze, small_config
from identities import identity_of, untrained
from prometheus_client.parser import text_string_to_metric_families

from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyJob
from digs_survey.catalog import write_catalog
from digs_survey.cluster.dashboards import with_dashboards
from digs_survey.cluster.dask_session import probe_dask
from digs_survey.cluster.metrics import METRICS
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import MCMCConfig, ModelConfig, load_config
from digs_survey.errors import StageError
from digs_survey.infer.map_catalog import map_catalog
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.store.ledger import Ledger

pytestmark = pytest.mark.slow

PRIOR = Prior()
ROWS, SHARD = 23, 5


def get(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.status == 200
        return answer.read().decode()


@pytest.fixture(scope="module")
def told(shared_ray):
    """Lines that a session with dashboards has told; the session stays open for this file's tests."""
    shared_ray.close()
    lines = []
    with with_dashboards(True, lines.append), ray_session():
        yield {line.partition(": ")[0]: line.partition(": ")[2].partition(" ")[0] for line in lines}


def scrape(address):
    """Sums over processes of what Prometheus reads, by name and our own labels."""
    sums = {}
    for family in text_string_to_metric_families(get(address)):
        for sample in family.samples:
            if sample.name.startswith("ray_digs_survey_"):
                ours = {"bit", "phase", "error", "converged", "le"} & set(sample.labels)
                key = (sample.name.removeprefix("ray_"), *(sample.labels[name] for name in sorted(ours)))
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


def scraped(address, enough, limit_s=60.0):
    """Scrape until ``enough`` is there: processes send their counts every few seconds."""
    deadline = time.monotonic() + limit_s
    while True:
        found = scrape(address)
        if enough(found):
            return found
        assert time.monotonic() < deadline, f"not counted within {limit_s:g} s: {found}"
        time.sleep(0.5)


def listening(session):
    """Addresses on which the processes of a session, and this one, listen."""
    ours = {psutil.Process()}
    for process in psutil.process_iter(["cmdline"]):
        if session in " ".join(process.info["cmdline"] or []):
            ours |= {process, *process.children(recursive=True)}
    connections = [(p.name(), c) for p in ours if p.is_running() for c in p.net_connections(kind="inet")]
    return [(name, c.laddr.ip) for name, c in connections if c.status == psutil.CONN_LISTEN]


def test_ray_is_told_and_answers_on_loopback_alone(told):
    assert "Ray Dashboard" in get(told["Ray dashboard"])
    ray.get(ray.remote(lambda: None).remote())
    session = ray._private.worker._global_node.get_session_dir_path()
    found = listening(session)
    assert len(found) > 5
    for name, address in found:
        seen = ipaddress.ip_address(address)
        seen = getattr(seen, "ipv4_mapped", None) or seen
        assert seen.is_loopback, f"{name} listens on {address}"
    discovery = Path(session) / "prom_metrics_service_discovery.json"
    deadline = time.monotonic() + 90
    metrics = told["Ray metrics for Prometheus"].removeprefix("http://").removesuffix("/metrics")
    targets: list[str] = []
    # Ray writes the file anew every few seconds, at first without the node's own address.
    while metrics not in targets:
        assert time.monotonic() < deadline, f"Ray told Prometheus of {targets}, and not of {metrics}"
        time.sleep(0.5)
        if discovery.is_file():
            targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
    assert all(target.startswith("127.0.0.1:") for target in targets)


def test_map_counts_rows_shards_bits_and_seconds(told, tmp_path):
    flux = np.random.default_rng(1).uniform(0.9, 1.1, (ROWS, len(GRID)))
    mask = np.zeros(flux.shape, dtype=np.uint8)
    mask[3, 2:4] = 1
    flux[7] = np.nan
    write_catalog(
        tmp_path / "catalog.zarr",
        grid=GRID,
        flux=flux,
        ivar=400 / flux**2,
        mask=mask,
        redshift=np.full(ROWS, 0.1),
        galaxy_id=np.arange(ROWS),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    freeze(tmp_path / "model", small_config())
    config = load_config(None, [f"map.rows_per_shard={SHARD}", "map.workers=2", "map.draws=50"])
    out = tmp_path / "posterior.zarr"
    map_catalog(
        identity_of(tmp_path / "model", tmp_path / "catalog.zarr"),
        tmp_path / "catalog.zarr",
        out,
        config,
        ledger=Ledger(tmp_path / "ledger"),
    )

    shards = -(-ROWS // SHARD)
    found = scraped(
        told["Ray metrics for Prometheus"], lambda found: found.get(("digs_survey_map_rows_total",), 0) >= ROWS
    )
    assert found["digs_survey_map_rows_total",] == ROWS
    assert found["digs_survey_map_shards_total",] == shards
    quality = zarr.open_group(str(out), mode="r")["quality"][:]
    for flag in QualityFlag:
        rows = ((quality & flag.value) != 0).sum()
        assert found.get(("digs_survey_map_quality_rows_total", flag.name), 0) == rows
    assert found.get(("digs_survey_map_quality_rows_total", "none"), 0) == (quality == 0).sum()
    assert found["digs_survey_map_quality_rows_total", "FILLED_ELEMENTS"] >= 1
    assert found["digs_survey_map_quality_rows_total", "FEW_GOOD_ELEMENTS"] == 1
    for phase in ("read", "infer", "write"):
        assert found["digs_survey_map_shard_seconds_count", phase] == shards
        assert found["digs_survey_map_shard_seconds_bucket", "+Inf", phase] == shards
    assert not any(name == "digs_survey_map_failures_total" for name, *_ in found)

    (tmp_path / "ledger" / "00000003.json").unlink()
    (out / "quality" / "c" / "3").unlink()
    (out / "quality" / "c" / "3").mkdir()
    with pytest.raises(StageError, match="shard 3"):
        map_catalog(
            identity_of(tmp_path / "model", tmp_path / "catalog.zarr"),
            tmp_path / "catalog.zarr",
            out,
            config,
            ledger=Ledger(tmp_path / "ledger"),
        )
    failed = ("digs_survey_map_failures_total", "IsADirectoryError")
    found = scraped(told["Ray metrics for Prometheus"], lambda found: failed in found)
    assert found[failed] == 1
    assert found["digs_survey_map_rows_total",] == ROWS


def test_audit_counts_galaxies(told, tmp_path):
    from digs_survey.sps.prospector import ProspectorSimulator

    model = ModelConfig()
    noise = NoiseModel.from_config(load_config(None, []).noise)
    setup = FitSetup(untrained(GRID, noise, seed=3), MCMCConfig(walkers=12, burn_in=(2,), steps=4, max_steps=4))
    draws = PRIOR.from_unit_cube(np.random.default_rng(2).uniform(0.3, 0.7, (32, PRIOR.ndim)))
    flux = ProspectorSimulator(model, PRIOR, GRID).spectrum(draws[0])
    good = np.ones(len(GRID), dtype=bool)
    broken = GalaxyJob(2, flux[:-1], good, None, start=draws, predictive=draws[:2])
    jobs = [GalaxyJob(row, flux, good, None, start=draws, predictive=draws[:2]) for row in (0, 1)]
    fits = fit_galaxies(setup, [*jobs, broken], tmp_path)
    assert [bool(fit.error) for fit in fits] == [False, False, True]

    name = "digs_survey_audit_galaxies_total"
    found = scraped(
        told["Ray metrics for Prometheus"],
        lambda found: (
            sum(value for key, value in found.items() if key[0] == name) >= 2
            and any(key[0] == "digs_survey_audit_failures_total" for key in found)
        ),
    )
    converged = sum(fit.converged for fit in fits)
    assert found.get((name, "true"), 0) == converged
    assert found[name, "false"] == 2 - converged
    assert found["digs_survey_audit_fit_seconds_count",] == 2
    buckets = {float(key[1]): n for key, n in found.items() if key[0] == "digs_survey_audit_fit_seconds_bucket"}
    assert len(buckets) > 10
    for bound, count in buckets.items():
        assert count == sum(fit.core_s <= bound for fit in fits[:2])
    failures = {key: value for key, value in found.items() if key[0] == "digs_survey_audit_failures_total"}
    assert list(failures.values()) == [1]
    assert not {key[0] for key in found} - {
        full for metric in METRICS.values() for full in (metric.name, *(metric.name + end for end in ENDS))
    }


ENDS = ("_bucket", "_count", "_sum", "_created")


def test_dask_has_a_dashboard_where_one_is_asked_for():
    lines = []
    with with_dashboards(True, lambda line: lines.append((line, get(line.split(": ", 1)[1])))):
        probe_dask()
    ((line, page),) = lines
    assert line.startswith("Dask dashboard: http://127.0.0.1:")
    assert "Bokeh" in page or "bokeh" in page
    with with_dashboards(False, lines.append):
        probe_dask()
    assert len(lines) == 1
