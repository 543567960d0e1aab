"""``digs-survey doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import psutil

from digs_survey.cluster.cores import usable_cores
from digs_survey.errors import DigsError
from digs_survey.store.locations import check_reachable, is_remote
from digs_survey.store.storage import read_bytes, remove, write_bytes
from digs_survey.store.targets import can_write

__all__ = ["Check", "run_checks"]

_PACKAGES = (
    "astro-prospector", "bagpipes", "dask", "distributed", "emcee", "numpy", "ray", "sbi", "torch", "xarray", "zarr",
)  # fmt: skip
_MIN_DISK_GIB, _MIN_MEMORY_GIB = 5.0, 4.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes
    ----------
    name : str
    status : {"ok", "optional", "fail"}
        "optional" is something missing that not every run needs.
    detail : str
        What was found.
    remedy : str
        What to do about it; empty if nothing.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def run_checks(folder: Path, dask_address: str | None = None, ray_address: str | None = None) -> Iterator[Check]:
    """Yield the findings one by one, quick ones first.

    Parameters
    ----------
    folder : Path
        Where runs would be written; its disk is looked at, or whether its object store takes and gives an object.
    dask_address, ray_address : str, optional
        Clusters to reach instead of starting embedded ones.
    """
    yield from (_package(name) for name in _PACKAGES)
    yield _machine()
    yield _guarded("object store", lambda: _store(folder)) if is_remote(folder) else _disk(folder)
    yield _device()
    for name, check in (("bc03", _bc03), ("fsps", _fsps)):
        yield _guarded(f"source {name}", check)
    yield _guarded("Dask", lambda: _dask(dask_address))
    yield _guarded("Ray", lambda: _ray(ray_address))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    # A doctor reports whatever goes wrong inside a check and goes on to the next.
    try:
        return check()
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}", "see the message")


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", f"pip install -c constraints.txt {name}")


def _machine() -> Check:
    available = psutil.virtual_memory().available / 2**30
    detail = f"{usable_cores()} cores for this process, {available:.1f} GiB of memory available"
    if available < _MIN_MEMORY_GIB:
        return Check(
            "cores and memory",
            "fail",
            detail,
            f"free at least {_MIN_MEMORY_GIB:g} GiB or use a larger machine",
        )
    return Check("cores and memory", "ok", detail)


def _disk(folder: Path) -> Check:
    existing = next(p for p in [folder.resolve(), *folder.resolve().parents] if p.exists())
    if not existing.is_dir():
        return Check("disk", "fail", f"{existing} is a file, no folder", "choose another --run-dir")
    if not can_write(existing):
        remedy = "choose another --run-dir; status, verify, export, replay and report --out read a run there"
        return Check("disk", "fail", f"{existing} cannot be written", remedy)
    free = shutil.disk_usage(existing).free / 2**30
    detail = f"{free:.1f} GiB free at {existing}"
    if free < _MIN_DISK_GIB:
        return Check("disk", "fail", detail, f"free at least {_MIN_DISK_GIB:g} GiB, or choose another --run-dir")
    return Check("disk", "ok", detail)


def _store(folder: Path) -> Check:
    remedy = "correct the URL, the credentials in the environment, or what they are allowed to do"
    probe = folder / f"doctor-{uuid4().hex}"
    try:
        check_reachable(folder)
        write_bytes(probe, b"digs-survey")
        found = read_bytes(probe)
        remove(probe)
    except DigsError as error:
        return Check("object store", "fail", str(error), remedy)
    if found != b"digs-survey":
        return Check("object store", "fail", f"{probe} gave back other bytes than it took", remedy)
    return Check("object store", "ok", f"{folder}: takes, gives and deletes objects")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", "ok", torch.cuda.get_device_name(0))
    return Check("GPU", "optional", "none seen by torch; training runs on the CPU")


def _bc03() -> Check:
    from digs_survey.config import ModelConfig
    from digs_survey.prior import Prior
    from digs_survey.spectra import WavelengthGrid
    from digs_survey.sps.prospector import ProspectorSimulator

    prior = Prior()
    grid = WavelengthGrid(4000.0 + 50.0 * _range(40))
    flux = ProspectorSimulator(ModelConfig(source="bc03"), prior, grid).spectrum(prior.from_unit_cube([0.5] * 5))
    if not (flux > 0).all():
        return Check("source bc03", "fail", "a spectrum came out non-positive", "reinstall bagpipes")
    return Check("source bc03", "ok", "Prospector predicts a spectrum from the BC03-MILES grids")


def _range(count: int):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.arange(count, dtype=float)


def _fsps() -> Check:
    from digs_survey.sps.fsps import check_fsps

    status = check_fsps()
    if not status.ok:
        return Check("source fsps", "optional", status.problem, status.remedy)
    detail = f"works, {status.libraries}"
    if status.standin:
        return Check("source fsps", "ok", f"{detail}; SPS_HOME holds a stand-in, not the FSPS data", status.remedy)
    return Check("source fsps", "ok", detail)


def _dask(address: str | None) -> Check:
    from digs_survey.cluster.dask_session import probe_dask

    return Check("Dask", "ok", probe_dask(address))


def _ray(address: str | None) -> Check:
    from digs_survey.cluster.ray_session import probe_ray

    return Check("Ray", "ok", probe_ray(address))
