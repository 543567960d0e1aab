"""Render the kustomizations under deploy/kubernetes and hold the result against strict schemas."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from packaging.utils import canonicalize_name
from schemas.from_crd import strict_schema

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZATIONS = ROOT / "deploy" / "kubernetes"
FOLDERS = ("base", *sorted(f"overlays/{path.name}" for path in (KUSTOMIZATIONS / "overlays").iterdir()))
VERSIONS = (kubernetes_validate.utils.all_versions()[0], kubernetes_validate.latest_version())

Document = dict[str, Any]


def renderers() -> list[list[str]]:
    """Return every distinct renderer at hand: this environment's (dev brings kubectl), then PATH's."""
    candidates = [
        (str(Path(sys.executable).parent / "kubectl"), "kustomize"),
        (shutil.which("kustomize"), "build"),
        (shutil.which("kubectl"), "kustomize"),
    ]
    found = {
        Path(program).resolve(): [program, verb]
        for program, verb in reversed(candidates)
        if program and Path(program).is_file()
    }
    if not found:
        raise FileNotFoundError("no kubectl, no kustomize; pip install -c constraints.txt '.[dev]' brings kubectl")
    return list(found.values())[::-1]


def render(folder: Path, renderer: list[str] | None = None) -> list[Document]:
    """Return the documents that ``kubectl apply -k folder`` would send."""
    command = [*(renderer or renderers()[0]), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(folder: str) -> dict[str, Document]:
    """Return the documents of one of FOLDERS by their kind, of which each has one."""
    documents = render(KUSTOMIZATIONS / folder)
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def validate(document: Document, version: str) -> None:
    """Raise a ``jsonschema.ValidationError`` for an unknown field, a wrong type or a missing field.

    Custom resources are held against the definition that their operator installs, and their pods against Kubernetes of
    the version.
    """
    kind = document["kind"]
    if kind not in _DEFINITIONS:
        kubernetes_validate.validate(document, version, strict=True)
        return
    _custom_validator(kind).validate(document)
    for spec in pod_specs(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, version, strict=True)


def _ray_job() -> Document:
    packed = Path(__file__).parent / "schemas" / "rayjob.json.gz"
    schema: Document = json.loads(gzip.decompress(packed.read_bytes()))
    return schema


def _dask_cluster() -> Document:
    chart = files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator"
    return strict_schema(yaml.safe_load((chart / "crds/daskcluster.yaml").read_text(encoding="utf-8")), "v1")


_DEFINITIONS = {"RayJob": _ray_job, "DaskCluster": _dask_cluster}


@cache
def _custom_validator(kind: str) -> Draft202012Validator:
    schema = _DEFINITIONS[kind]()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def pod_specs(value: Any) -> Iterator[Document]:
    """Yield every pod specification anywhere inside ``value``."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pod_specs(item)
    elif isinstance(value, list):
        for item in value:
            yield from pod_specs(item)


def pinned(package: str) -> str:
    """Return the version of ``package`` in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if equals and canonicalize_name(name.strip()) == canonicalize_name(package):
            return version.strip()
    raise LookupError(f"constraints.txt does not pin {package}")
