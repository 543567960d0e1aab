"""The kustomizations render, are what the operators understand, and run what the command line offers."""

from __future__ import annotations

import copy
import shlex
import shutil

import pytest
from command_line import parse, parse_digs_survey
from jsonschema import ValidationError
from kustomizations import (
    FOLDERS,
    KUSTOMIZATIONS,
    VERSIONS,
    pinned,
    pod_specs,
    render,
    rendered,
    renderers,
    validate,
)

from digs_survey import __version__
from digs_survey.config import load_config

ON_A_VOLUME = tuple(folder for folder in FOLDERS if folder != "overlays/s3")
TYPOS = [
    ("rayjob.yaml", "shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
    ("rayjob.yaml", "rayStartParams", "rayStartParam"),
    ("rayjob.yaml", "mode: token", "mode: tokens"),
    ("rayjob.yaml", "groupName: workers", "group: workers"),
    ("rayjob.yaml", "image: digs-survey", "imgae: digs-survey"),
    ("rayjob.yaml", "containerPort: 8265", 'containerPort: "8265"'),
    ("rayjob.yaml", "allowPrivilegeEscalation", "allowPrivilegesEscalation"),
    ("daskcluster.yaml", "replicas: 4", "replica: 4"),
    ("daskcluster.yaml", "targetPort: tcp-comm", "targetport: tcp-comm"),
    ("daskcluster.yaml", "mountPath: /data", "mountpath: /data"),
    ("daskcluster.yaml", "fsGroupChangePolicy", "fsGroupPolicy"),
    ("storage.yaml", "accessModes", "accessMode"),
    ("serviceaccount.yaml", "automountServiceAccountToken", "automountToken"),
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_renderer_gives_the_same_documents(folder):
    first, *others = (render(KUSTOMIZATIONS / folder, renderer) for renderer in renderers())
    assert {document["kind"] for document in first} >= {"RayJob", "DaskCluster", "ConfigMap"}
    for other in others:
        assert other == first


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_documents_fit_strict_schemas(folder, version):
    for document in rendered(folder).values():
        validate(document, version)


@pytest.mark.parametrize(("file", "right", "wrong"), TYPOS)
def test_planted_typo_is_refused(tmp_path, file, right, wrong):
    base = shutil.copytree(KUSTOMIZATIONS / "base", tmp_path / "base")
    text = (base / file).read_text(encoding="utf-8")
    assert right in text
    (base / file).write_text(text.replace(right, wrong), encoding="utf-8")

    def validate_all() -> None:
        for document in render(base):
            validate(document, VERSIONS[1])

    with pytest.raises(ValidationError):
        validate_all()


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_confined(folder):
    pods = list(pod_specs(list(rendered(folder).values())))
    assert len(pods) == 5
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["fsGroup"] == security["runAsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            for bound in ("requests", "limits"):
                assert set(container["resources"][bound]) >= {"cpu", "memory"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_image_of_this_version_everywhere(folder):
    images = {c["image"] for pod in pod_specs(list(rendered(folder).values())) for c in pod["containers"]}
    (image,) = images
    assert image.rpartition(":")[2] == __version__


def test_ray_version_is_the_pinned_one():
    assert rendered("base")["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")


def test_survey_is_a_laptops_toml(tmp_path):
    (name, text), *others = rendered("base")["ConfigMap"]["data"].items()
    assert not others
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_config(tmp_path / name) == load_config(KUSTOMIZATIONS / "base" / name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_entrypoint_is_what_the_command_line_offers(folder):
    documents = rendered(folder)
    values = parse_digs_survey(shlex.split(documents["RayJob"]["spec"]["entrypoint"]))
    given = {str(value) for value in values.values() if value}

    (config_map,) = documents["ConfigMap"]["data"]
    scheduler = documents["DaskCluster"]["metadata"]["name"] + "-scheduler"
    ports = {p["name"]: p["port"] for p in documents["DaskCluster"]["spec"]["scheduler"]["service"]["ports"]}
    assert f"/etc/digs-survey/{config_map}" in given
    assert f"tcp://{scheduler}:{ports['tcp-comm']}" in given
    assert "auto" in given
    assert ("/data/catalog.zarr" if folder in ON_A_VOLUME else "s3://BUCKET/catalog.zarr") in given


@pytest.mark.parametrize("folder", ON_A_VOLUME)
def test_whoever_computes_sees_the_same_storage(folder):
    documents = rendered(folder)
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    for spec in (
        cluster["headGroupSpec"]["template"]["spec"],
        cluster["workerGroupSpecs"][0]["template"]["spec"],
        documents["DaskCluster"]["spec"]["worker"]["spec"],
    ):
        volumes = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in spec["volumes"]}
        mounted = {volumes[m["name"]]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        assert mounted[claim["metadata"]["name"]] == "/data"


@pytest.mark.parametrize("folder", FOLDERS)
def test_prometheus_finds_the_metrics_of_every_ray_pod(folder):
    cluster = rendered(folder)["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        annotations = group["template"]["metadata"]["annotations"]
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        exported = group["rayStartParams"]["metrics-export-port"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/path"] == "/metrics"
        assert annotations["prometheus.io/port"] == exported == str(ports["metrics"])


def test_dask_arguments_are_what_dask_offers():
    from distributed.cli import dask_scheduler, dask_worker

    spec = rendered("base")["DaskCluster"]["spec"]
    for part, command in (("scheduler", dask_scheduler.main), ("worker", dask_worker.main)):
        dask, verb, *arguments = spec[part]["spec"]["containers"][0]["args"]
        assert (dask, verb) == ("dask", part)
        parse(command, arguments)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_the_dask_operator_makes_of_the_cluster_is_valid(folder, version):
    """By the operator's own functions: the scheduler's deployment and service, and a worker."""
    from dask_kubernetes.operator.controller import controller

    cluster = rendered(folder)["DaskCluster"]
    metadata, spec = cluster["metadata"], copy.deepcopy(cluster["spec"])
    name, labels = metadata["name"], metadata.get("labels", {})
    namespace = metadata.get("namespace", "default")
    scheduler, worker = spec["scheduler"], spec["worker"]
    group = controller.build_default_worker_group_spec(name, worker, {}, labels)
    deployment = controller.build_scheduler_deployment_spec(name, scheduler["spec"], {}, labels)
    service = controller.build_scheduler_service_spec(name, scheduler["service"], {}, labels)
    pods = controller.build_worker_deployment_spec(
        group["metadata"]["name"], namespace, name, "0123456789", worker["spec"], {}, labels
    )
    for made in (deployment, service, pods):
        validate(made, version)

    # The service finds the scheduler's pods, and workers find the service.
    found = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= found.items()
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    host, _, port = environment["DASK_SCHEDULER_ADDRESS"].removeprefix("tcp://").partition(":")
    assert host.split(".")[0] == service["metadata"]["name"]
    assert int(port) in {one["port"] for one in service["spec"]["ports"]}
    assert "$(DASK_WORKER_NAME)" in container["args"]
    assert environment["DASK_WORKER_NAME"] == pods["metadata"]["name"]


def test_overlay_changes_what_a_cluster_differs_in():
    base, cluster = rendered("base"), rendered("overlays/cluster")
    namespace = cluster["Namespace"]["metadata"]["name"]
    used = {d["metadata"].get("namespace") for kind, d in cluster.items() if kind != "Namespace"}
    assert used == {namespace}
    assert "storageClassName" not in base["PersistentVolumeClaim"]["spec"]
    assert cluster["PersistentVolumeClaim"]["spec"]["storageClassName"]
    workers = [d["DaskCluster"]["spec"]["worker"]["replicas"] for d in (base, cluster)]
    assert workers[0] < workers[1]
    for documents in (base, cluster):
        group = documents["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
