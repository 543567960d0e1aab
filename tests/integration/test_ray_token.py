"""A Ray session on this machine asks for a token, and leaves neither it nor the demand for one behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SESSION = """
import json, os, sys, tempfile
from pathlib import Path
from digs_survey.cluster.ray_session import ray_session

def seen():
    set_now = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    files = [Path.home().joinpath(".ray", "auth_token"), *Path(tempfile.gettempdir()).glob("digs-survey-ray-*")]
    return {"set": set_now, "files": [str(path) for path in files if path.exists()]}

with ray_session():
    import ray
    ray.get(ray.remote(lambda: None).remote())
    inside = seen()
    mode = Path(inside["files"][0]).stat().st_mode & 0o777 if inside["files"] else None
print(json.dumps({"inside": inside, "mode": mode, "after": seen()}))
"""


def test_a_session_leaves_no_token(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**kept, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, "-c", SESSION], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["inside"]["set"]["RAY_AUTH_MODE"] == "token"
    (folder,) = said["inside"]["files"]
    assert said["inside"]["set"]["RAY_AUTH_TOKEN_PATH"] == f"{folder}/token"
    assert said["mode"] == 0o700
    assert said["after"] == {"set": {}, "files": []}
