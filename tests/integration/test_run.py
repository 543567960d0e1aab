"""``digs-survey run`` as a user runs it: to the end, again, killed, on clusters, and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import zarr
from survey import ROWS, command, contents, environment, run, run_here

pytestmark = pytest.mark.slow


def test_everything_is_there_and_counts_agree(finished_run):
    run_dir = finished_run.run_dir
    assert finished_run.stdout.split() == [str(run_dir / "results.parquet"), str(run_dir / "report.html")]
    table = pq.read_table(run_dir / "percentiles.parquet").to_pandas()
    assert table.galaxy_id.tolist() == list(range(1000, 1000 + ROWS))
    columns = [f"tage_{q}" for q in ("p2_5", "p16", "p50", "p84", "p97_5")]
    assert (np.diff(table[columns], axis=1) >= 0).all()
    assert table.tage_p50.between(0.01, 4.0).all()
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert {name: s["status"] for name, s in manifest["stages"].items()} == dict.fromkeys(
        ("simulate", "train", "map", "audit", "escalate", "report"), "done"
    )
    assert manifest["stages"]["map"]["rows"] == ROWS
    assert all(s["core_s"] > 0 for s in manifest["stages"].values())
    assert (run_dir / "report.html").read_text().startswith("<!")
    assert not (run_dir / "checkpoint").exists()
    card = json.loads((run_dir / "model" / "card.json").read_text())
    assert card["calibration"]["simulations"] == card["importance"]["simulations"]["rows"] == 120
    assert table.importance_ess.between(1, 200).all()
    assert "Importance weights in numbers" in (run_dir / "report.html").read_text()


def test_simulations_are_prospectors(finished_run, survey):
    from digs_survey.spectra import WavelengthGrid
    from digs_survey.sps.prospector import ProspectorSimulator

    config = survey[2]
    group = zarr.open_group(str(finished_run.run_dir / "simulations.zarr"), mode="r")
    simulator = ProspectorSimulator(config.model, config.make_prior(), WavelengthGrid.from_config(config.grid))
    rows = [0, 100, 239]
    assert np.allclose(group["flux"][:][rows], simulator.spectra(group["theta"][:][rows]), rtol=1e-5)


def test_a_second_run_does_nothing_and_says_so(finished_run, survey, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run.run_dir, run_dir)
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file()}
    again = run_here("run", survey[0], "-c", survey[1], "-o", run_dir)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert again.stdout == finished_run.stdout.replace(str(finished_run.run_dir), str(run_dir))
    after = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p] and p.parent.name != "logs"}
    assert changed <= {"manifest.json"}


def test_other_settings_are_refused_naming_the_field(finished_run, survey, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run.run_dir, run_dir)
    refused = run_here("run", survey[0], "-c", survey[1], "-o", run_dir, "--set", "train.epochs=41")
    assert refused.returncode == 6
    assert "train.epochs: was 40, now 41" in refused.stderr
    assert "--redo train" in refused.stderr


STAGES = ("simulate", "train", "map", "calibration", "audit")


class Chaos:
    """A run in one directory whose processes are killed at points that a seed gives."""

    def __init__(self, run_dir: Path, arguments: tuple[object, ...]) -> None:
        self.run_dir, self.arguments = run_dir, arguments
        self.driver: subprocess.Popen[bytes] | None = None
        self.finished: dict[Path, bytes] = {}

    def markers(self, stage: str) -> dict[Path, bytes]:
        folder = self.run_dir / ("audit-jobs/ledger" if stage == "audit" else f"ledger/{stage}")
        return {path: path.read_bytes() for path in folder.glob("*.json")}

    def reached(self, stage: str, done: int) -> bool:
        if stage == "train":
            return (self.run_dir / "checkpoint" / "train.pt").exists()
        return len(self.markers(stage)) >= done

    def wait(self, stage: str, done: int) -> None:
        """Start the command unless it runs, and wait until a stage has come so far."""
        if self.driver is None or self.driver.poll() is not None:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.driver = subprocess.Popen(command(*self.arguments), env=environment(), **quiet)
        deadline = time.monotonic() + 240
        while not self.reached(stage, done):
            assert self.driver.poll() is None, f"ended with {self.driver.returncode} before {stage} had {done}"
            assert time.monotonic() < deadline, f"{stage} did not come to {done}"
            time.sleep(0.01)

    def kill_driver(self) -> None:
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        self.driver = None
        for stage in STAGES:
            self.finished |= self.markers(stage)

    def kill_worker(self, of: str) -> bool:
        """SIGKILL one of the driver's Dask workers, or Ray workers at work; False if there was none any more."""
        assert self.driver is not None
        try:
            children = psutil.Process(self.driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        for child in children:
            try:
                ray_work = child.name().startswith(("ray::ShardWorker", "ray::_fit"))
                dask_work = "multiprocessing.spawn" in " ".join(child.cmdline())
                if dask_work if of == "dask" else ray_work:
                    child.kill()
                    return True
            except psutil.Error:
                continue
        return False

    def end(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()


def kill_points(seed: int) -> list[tuple[str, int, str]]:
    """Twenty points, each a stage, how many shards of it are done, and whom to kill, in their order."""
    rng = np.random.default_rng(seed)
    points: list[tuple[str, int, str]] = []
    for stage, shards, victims in (
        ("simulate", 20, ["driver"] * 2 + ["dask"] * 5),
        ("train", 1, ["driver"] * 2),
        ("map", 6, ["driver"] + ["ray"] * 4),
        ("calibration", 10, ["driver"] + ["dask"] * 3),
        ("audit", 0, ["ray", "driver"]),
    ):
        if shards > 1:
            victims = rng.permutation(victims).tolist()
        done = np.sort(rng.choice(max(1, shards - 1), len(victims), replace=shards < len(victims)))
        points += [(stage, int(k), victim) for k, victim in zip(done, victims, strict=True)]
    return points


def test_killed_at_twenty_points_the_same_command_ends_with_the_same_bytes(finished_run, survey, tmp_path):
    catalog, toml, _ = survey
    run_dir = tmp_path / "run"
    arguments = ("run", catalog, "-c", toml, "-o", run_dir)
    points = kill_points(seed=20)
    assert len(points) == 20
    shards = {"simulate": 20, "map": ROWS // 8, "calibration": 10}
    rng, chaos = np.random.default_rng(21), Chaos(run_dir, arguments)
    killed: list[tuple[str, int, str]] = []
    try:
        for stage, done, victim in points:
            chaos.wait(stage, done)
            if stage == "audit":
                # Its one galaxy is at work once the calibration has been through.
                chaos.wait("calibration", 10)
            time.sleep(rng.uniform(0, 0.3))
            if victim == "driver":
                chaos.kill_driver()
                killed.append((stage, done, victim))
                continue
            # Workers take some seconds to come up.
            deadline = time.monotonic() + 60
            while not (found := chaos.kill_worker(victim)) and time.monotonic() < deadline:
                if stage != "audit" and chaos.reached(stage, shards[stage]):
                    break
                time.sleep(0.02)
            if found:
                killed.append((stage, done, victim))
    finally:
        chaos.end()
    # A worker that had done its part before it could be killed is none.
    assert len(killed) >= 14, killed
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    for path, marker in chaos.finished.items():
        if path.exists():
            assert path.read_bytes() == marker, f"{path} was done again"
    assert sum(path.exists() for path in chaos.finished) > 20
    for name in ("simulations.zarr", "posterior.zarr", "percentiles.parquet", "calibration.zarr", "results.parquet"):
        assert contents(run_dir / name) == contents(finished_run.run_dir / name), name
    model = "model/model.safetensors"
    assert (run_dir / model).read_bytes() == (finished_run.run_dir / model).read_bytes()
    ours, theirs = (zarr.open_group(str(d / "audit.zarr"), mode="r") for d in (run_dir, finished_run.run_dir))
    for group in ("galaxies", "calibration"):
        for name, array in theirs[group].arrays():
            if not name.endswith("core_s"):
                np.testing.assert_array_equal(ours[group][name][...], array[...], err_msg=name)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(*arguments: str, env: dict[str, str], log: Path):
    """A server of this test's own, ended with its children."""
    with log.open("w") as file:
        process = subprocess.Popen(arguments, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass


def wait_for(condition, what: str, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come up"
        time.sleep(0.3)


def test_clusters_by_address_give_the_same_bytes(finished_run, survey, tmp_path):
    catalog, toml, _ = survey
    tools = Path(sys.executable).parent
    # A head that listens on the network asks for a token; both sides get the same one.
    env = environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(32).hex(), RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=""
    )
    dask_port, ray_port, client_port = free_port(), free_port(), free_port()
    dask_address, ray_address = f"tcp://127.0.0.1:{dask_port}", f"127.0.0.1:{ray_port}"
    ray = ["start", "--block", "--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats"]
    head = [*ray, "--head", "--port", str(ray_port), "--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    head += ["--ray-client-server-port", str(client_port)]
    # Ray wants short paths for its sockets.
    short = Path(os.environ.get("TMPDIR", "/tmp")) / f"digs-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, short, ignore_errors=True)

        def start(name: str, program: str, *arguments: str) -> None:
            stack.enter_context(started(str(tools / program), *arguments, env=env, log=tmp_path / f"{name}.log"))

        start("scheduler", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(dask_port), "--no-dashboard")
        for k in range(2):
            start(f"worker-{k}", "dask", "worker", dask_address, "--nthreads", "1", "--no-dashboard")
        start("head", "ray", *head, "--temp-dir", str(short))
        wait_for(lambda: accepts(ray_port), "Ray head")
        start("node", "ray", *ray, "--address", ray_address, "--node-ip-address", "127.0.0.2")

        run_dir = tmp_path / "run"
        finished = run(
            *("run", catalog, "-c", toml, "-o", run_dir),
            *("--dask-scheduler-address", dask_address, "--ray-address", ray_address),
            **env,
        )
        assert finished.returncode == 0, finished.stderr
        for name in ("simulations.zarr", "posterior.zarr"):
            assert contents(run_dir / name) == contents(finished_run.run_dir / name)

        # From a machine that is no node of the cluster, which sees none of its processes.
        for port, found in (
            (ray_port, "expected one of its nodes on this machine"),
            (client_port, "is its client port"),
        ):
            said, took = said_elsewhere(f"127.0.0.1:{port}", env)
            assert found in said
            assert f"ray://127.0.0.1:{10001 if port == ray_port else client_port}" in said
            assert took < 30, said
        again = ("map", catalog, "-c", toml, "-o", run_dir, "--redo")
        finished = run(*again, "--ray-address", f"ray://127.0.0.1:{client_port}", **env)
        assert finished.returncode == 0, finished.stderr
        assert contents(run_dir / "posterior.zarr") == contents(finished_run.run_dir / "posterior.zarr")
    logs = [(tmp_path / f"worker-{k}.log").read_text() for k in range(2)]
    assert all("Starting Worker" in log or "Start worker" in log for log in logs), logs


ELSEWHERE = """
import sys
from ray._private import services
from digs_survey.cluster import ray_session
from digs_survey.errors import MissingDependencyError
services.find_node_ids = set
ray_session._NODE_TIMEOUT_S = 1
try:
    ray_session.probe_ray(sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""


def said_elsewhere(address: str, env: dict[str, str]) -> tuple[str, float]:
    """Say what a machine is answered that runs no node of the cluster, and after how many seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, address], env=env, capture_output=True, text=True, timeout=120
    )
    return done.stdout, time.monotonic() - began


def accepts(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_address_where_nobody_is_is_named(survey, tmp_path, monkeypatch):
    monkeypatch.setattr("digs_survey.cluster.dask_session.CONNECT_TIMEOUT_S", 1.0)
    found = run_here(
        "simulate", "-c", survey[1], "-o", tmp_path / "run", "--dask-scheduler-address", "tcp://127.0.0.1:9"
    )
    assert found.returncode == 5
    assert "tcp://127.0.0.1:9" in found.stderr
