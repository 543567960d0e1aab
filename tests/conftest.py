"""Set what must be set before numerical libraries are imported, and share what is slow to make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["MPLBACKEND"] = "Agg"

STANDIN_INPUTS = Path(__file__).resolve().parents[2] / "shared" / "sps_home"

BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope``, hand out a file as a whole only if its tests share a fixture of the file.

    All other tests go one by one, after such files, to whichever worker is free: no fixture is made twice, no worker
    waits for what the other builds, and none waits at the end. (Marks of xdist's loadgroup do not reach pytest 9.2, and
    worksteal splits any file.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if _shares_a_fixture(config.rootpath / file) else nodeid

    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


@cache
def _shares_a_fixture(file: Path) -> bool:
    text = file.read_text()
    return 'scope="module"' in text or "build_once" in text


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """``build_once(name, build)``: a folder that ``build(folder)`` fills once for all workers of the session.

    Tests read it; one that changes files takes a copy. The first worker that asks builds, and others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        made, complete = shared / name, shared / f"{name}.complete"
        with FileLock(shared / f"{name}.lock"):
            if not complete.exists():
                # What a build that failed has left.
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                build(made)
                complete.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def sps_home(build_once: BuildOnce) -> Path:
    """Folder with FSPS data: the user's own, else a stand-in built from inputs beside the repository."""
    if home := os.environ.get("SPS_HOME"):
        return Path(home)
    builder = STANDIN_INPUTS / "build_sps_home.py"
    if not builder.is_file():
        pytest.skip("no FSPS data: SPS_HOME is not set and there are no stand-in inputs beside the repository")

    def build(folder: Path) -> None:
        command = [sys.executable, builder, folder / "sps_home"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    return build_once("fsps", build) / "sps_home"


class SharedRay:
    """The Ray session that the tests of this process share; it starts when one needs it."""

    def __init__(self) -> None:
        self._session = ExitStack()

    def open(self) -> int:
        """Return the cores of the session, which is started unless it is open."""
        import ray

        from digs_survey.cluster.ray_session import ray_session

        if not ray.is_initialized():
            self._session.close()
            self._session.enter_context(ray_session())
        return int(ray.cluster_resources()["CPU"])

    def close(self) -> None:
        """End the session, so that a test can start Ray in its own way."""
        self._session.close()


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """Open it for a fixture that needs Ray; close it for a test that starts Ray in its own way."""
    shared = SharedRay()
    yield shared
    shared.close()


@pytest.fixture
def ray_cores(shared_ray: SharedRay) -> int:
    """Cores of the Ray session that is open while the test runs, and stays open for others."""
    return shared_ray.open()
