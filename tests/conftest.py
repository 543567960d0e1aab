"""Set what must be set before numerical libraries are imported, and share what is slow to make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["MPLBACKEND"] = "Agg"

STANDIN_INPUTS = Path(__file__).resolve().parents[2] / "shared" / "sps_home"


@pytest.fixture(scope="session")
def sps_home(tmp_path_factory) -> Path:
    """Folder with FSPS data: the user's own, else a stand-in built from inputs beside the repository."""
    if home := os.environ.get("SPS_HOME"):
        return Path(home)
    builder = STANDIN_INPUTS / "build_sps_home.py"
    if not builder.is_file():
        pytest.skip("no FSPS data: SPS_HOME is not set and there are no stand-in inputs beside the repository")
    folder = tmp_path_factory.mktemp("fsps") / "sps_home"
    subprocess.run([sys.executable, builder, folder], check=True, capture_output=True, timeout=300)
    return folder
