"""The batch script is sound bash, calls Ray with options that Ray has, and brings up Dask for the survey.

Slurm's own commands and Ray are replaced by small programs (a real ``ray symmetric-run`` ends every Ray on
the machine); Dask and the command line's parser are the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import parse, parse_digs_survey
from kustomizations import ROOT

SCRIPT = ROOT / "deploy" / "slurm" / "digs-survey.sbatch"
SURVEY = ["sdss.zarr", "quick", "runs/sdss", "--set", "train.epochs=3"]

SRUN = '#!/bin/bash\nwhile [[ ${1:-} == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho 127.0.0.1\n"
RAY = """#!/bin/bash
printf '%s\\0' ray "$@" > "$RECORD/ray"
[[ -z ${RAY_FAILS:-} ]] || exit 0
while [[ $1 != -- ]]; do shift; done
shift
[[ -n ${RAY_WAITS:-} ]] || exec "$@"
# As on two nodes: the other one goes on until it is ended, or for a minute after the head has gone.
bash -c 'exec -a "ray start --address $0" sleep 60' "127.0.0.1:$DIGS_SURVEY_RAY_PORT" &
"$@"
code=$?
wait
exit "$code"
"""
DIGS_SURVEY = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path

answer = {{"arguments": sys.argv[1:]}}
if "SURVEY_FAILS" in os.environ:
    sys.exit(6)
from distributed import Client

with Client(sys.argv[sys.argv.index("--dask-scheduler-address") + 1], timeout="60s") as client:
    client.wait_for_workers(2, timeout=60)
    answer["threads"] = sorted(client.nthreads().values())
Path(os.environ["RECORD"], "survey").write_text(json.dumps(answer))
"""


@pytest.fixture
def job(tmp_path):
    """Run the script as the only node of a job would; gives what it printed and the folder of records."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ray", RAY), ("digs-survey", DIGS_SURVEY)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    (programs / "activate").write_text(f"export PATH='{path}'\n", encoding="utf-8")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        slurm = {
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "DIGS_SURVEY_VENV": str(tmp_path / "venv"),
            "DIGS_SURVEY_DASK_PORT": str(port),
            "RECORD": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "node[1]",
            "SLURM_CPUS_PER_TASK": "2",
        }
        return subprocess.run(
            ["bash", SCRIPT, *arguments],
            env={**os.environ, **slurm, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run, tmp_path, port


def ray_command(folder: Path) -> list[str]:
    return (folder / "ray").read_text(encoding="utf-8").split("\0")[:-1]


def test_shellcheck_finds_nothing():
    own = Path(sys.executable).parent / "shellcheck"
    program = str(own) if own.is_file() else shutil.which("shellcheck")
    assert program, "no shellcheck; pip install -c constraints.txt '.[dev]' brings it"
    done = subprocess.run([program, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_survey_finds_dask_and_is_called_with_its_own_options(job):
    run, folder, port = job
    done = run(*SURVEY)
    assert done.returncode == 0, done.stderr
    answer = json.loads((folder / "survey").read_text(encoding="utf-8"))
    assert answer["threads"] == [1, 1]
    values = parse_digs_survey(["digs-survey", *answer["arguments"]])
    given = {str(v) for v in values.values() if isinstance(v, str)}
    assert given >= {"sdss.zarr", "quick", "runs/sdss", f"tcp://127.0.0.1:{port}", "127.0.0.1:6379"}
    assert ["train.epochs=3"] in [list(v) for v in values.values() if isinstance(v, list | tuple)]
    assert not list(folder.glob(".digs-survey-*"))


def test_ray_is_called_with_options_that_it_has(job):
    from ray.scripts import scripts, symmetric_run

    run, folder, _ = job
    done = run(*SURVEY, SURVEY_FAILS="1")
    assert done.returncode == 6, done.stderr

    program, verb, *arguments = ray_command(folder)
    assert (program, verb) == ("ray", "symmetric-run")
    assert scripts.cli.commands[verb] is symmetric_run.symmetric_run
    start = symmetric_run.curate_and_validate_ray_start_args(arguments[: arguments.index("--")])
    assert parse(scripts.start, start)["num_cpus"] == "2"
    own = symmetric_run.symmetric_run.make_context("symmetric-run", arguments, resilient_parsing=True).params
    assert own["address"] == "127.0.0.1:6379"
    assert own["min_nodes"] == 1


@pytest.mark.parametrize("code", [0, 6])
def test_other_nodes_do_not_wait_for_a_head_that_has_ended(job, code):
    run, _, port = job
    began = time.monotonic()
    fails = {"SURVEY_FAILS": "1"} if code else {}
    two = {
        "SLURM_JOB_NUM_NODES": "2",
        "RAY_WAITS": "1",
        "DIGS_SURVEY_RAY_PORT": str(port - 1),
    }
    done = run(*SURVEY, **two, **fails)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - began < 55


def test_ray_that_never_starts_is_a_failure(job):
    run, _, _ = job
    done = run(*SURVEY, RAY_FAILS="1")
    assert done.returncode == 1
    assert "Ray did not start" in done.stderr


def test_too_few_arguments_are_explained(job):
    run, _, _ = job
    done = run("sdss.zarr")
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
