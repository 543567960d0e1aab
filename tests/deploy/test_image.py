"""The Containerfile builds from pinned things, runs as the pods' user, and copies what the package needs."""

from __future__ import annotations

import re
import shlex
import tomllib
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import PurePosixPath

import pytest
from kustomizations import ROOT, pinned, pod_specs, rendered
from packaging.requirements import Requirement

CONTAINERFILE = (ROOT / "deploy" / "image" / "Containerfile").read_text(encoding="utf-8")
EXACT_BASE = re.compile(r"[\w./-]+/python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}")

PLANTED = [
    (r"@sha256:\w+", "", "digest"),
    (r"python:[^@]+", "python:latest", "FROM"),
    (r"USER 10001:10001", "USER root", "USER"),
    (r"USER 10001:10001\n", "", "USER"),
    (r'--constraint constraints.txt "\.\[s3\]"', '".[s3]"', "constraints"),
    (r"COPY catalogs catalogs", "ADD https://example.org/catalogs.tar catalogs", "ADD"),
    (r"COPY digs_survey digs_survey", "COPY digs_survye digs_survey", "digs_survye"),
    (r"COPY catalogs catalogs", "COPY tests tests", "tests"),
]


def instructions(text: str) -> list[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    steps = (step.partition(" ") for step in joined.splitlines() if step)
    return [(word.upper(), rest.strip()) for word, _, rest in steps]


def in_build_context(path: str) -> bool:
    """Whether ``path`` exists and .dockerignore lets it in; the last pattern that fits decides."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    excluded = False
    for pattern in patterns:
        if pattern and not pattern.startswith("#") and fnmatch(path, pattern.removeprefix("!")):
            excluded = not pattern.startswith("!")
    return not excluded and (ROOT / path).exists()


def problems(text: str) -> list[str]:
    found = []
    steps = instructions(text)
    bases = [rest for word, rest in steps if word == "FROM"]
    if len(bases) != 1 or not EXACT_BASE.fullmatch(bases[0]):
        found.append(f"FROM {bases}: expected one exact tag with its digest")
    users = [rest for word, rest in steps if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append(f"USER {users}: expected a number above 0, which runAsNonRoot can check")
    for word, rest in steps:
        if word == "ADD":
            found.append(f"ADD {rest}: expected COPY")
        if word == "COPY":
            missing = [path for path in rest.split()[:-1] if not in_build_context(path)]
            found += [f"COPY {path}: not in the build context" for path in missing]
        if word == "RUN":
            found += [
                f"{command.strip()}: expected --constraint constraints.txt"
                for command in rest.split("&&")
                if shlex.split(command)[:2] == ["pip", "install"] and "--constraint constraints.txt" not in command
            ]
    return found


def test_nothing_is_wrong():
    assert problems(CONTAINERFILE) == []


@pytest.mark.parametrize(("right", "wrong", "named"), PLANTED)
def test_planted_mistake_is_named(right, wrong, named):
    text = re.sub(right, wrong, CONTAINERFILE)
    assert text != CONTAINERFILE
    assert any(named in problem for problem in problems(text))


def test_everything_that_the_package_is_built_from_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    copied = {
        str(PurePosixPath(path))
        for word, rest in instructions(CONTAINERFILE)
        if word == "COPY"
        for path in rest.split()[:-1]
    }
    assert copied == needed


def test_user_is_the_one_that_the_pods_run_as():
    (user,) = (rest for word, rest in instructions(CONTAINERFILE) if word == "USER")
    asked = {
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        for pod in pod_specs(list(rendered("base").values()))
    }
    assert asked == {user}


def test_whatever_the_image_installs_beyond_the_package_is_pinned():
    assert "+" not in pinned("torch"), "a local version would shut out the CUDA build"
    wanted = [Requirement(text) for text in requires("ray") or []]
    for extra in (r for r in wanted if r.marker and r.marker.evaluate({"extra": "default"})):
        assert pinned(extra.name)
