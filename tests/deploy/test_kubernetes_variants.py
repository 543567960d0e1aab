"""What an overlay can add to the base: an object store, GPUs, autoscaling, a private registry, a closed network."""

from __future__ import annotations

import os

import pytest
import yaml
from kustomizations import KUSTOMIZATIONS, VERSIONS, Document, pod_specs, render, rendered, validate

COMPONENTS = sorted(path.name for path in (KUSTOMIZATIONS / "components").iterdir())


@pytest.fixture(params=[*COMPONENTS, "all"])
def with_component(request, tmp_path):
    """Documents of the base with a component, or with all of them."""
    return build(tmp_path, COMPONENTS if request.param == "all" else [request.param])


def build(folder, components) -> list[Document]:
    used = [KUSTOMIZATIONS / "components" / name for name in components]
    # Kustomize takes paths that are relative to the folder.
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "astro",
        "resources": [os.path.relpath(KUSTOMIZATIONS / "base", folder)],
        "components": [os.path.relpath(path, folder) for path in used],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder)


def one(documents: list[Document], kind: str) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_fit_strict_schemas(with_component, version):
    for document in with_component:
        validate(document, version)
        assert document["metadata"]["namespace"] == "astro"


def test_a_survey_on_an_object_store_has_no_volume_and_credentials_where_it_computes():
    documents = rendered("overlays/s3")
    assert "PersistentVolumeClaim" not in documents
    pods = list(pod_specs(list(documents.values())))
    assert not [volume for pod in pods for volume in pod.get("volumes", []) if "persistentVolumeClaim" in volume]
    secrets = {
        pod["containers"][0]["name"]: [one["secretRef"]["name"] for one in pod["containers"][0].get("envFrom", [])]
        for pod in pods
    }
    given, none = ["digs-survey-s3"], []
    assert secrets == {
        "ray-head": given,
        "ray-worker": given,
        "worker": given,
        "scheduler": none,
        "ray-job-submitter": none,
    }
    mounted = [mount["name"] for pod in pods for mount in pod["containers"][0].get("volumeMounts", [])]
    assert mounted == ["config"]


def test_ray_workers_have_a_gpu_each(tmp_path):
    cluster = one(build(tmp_path, ["gpu"]), "RayJob")["spec"]["rayClusterSpec"]
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    for bound in ("requests", "limits"):
        assert pod["containers"][0]["resources"][bound]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_the_autoscaler_alone_may_ask_the_kubernetes_api(tmp_path):
    documents = build(tmp_path, ["autoscaling"])
    cluster, binding = one(documents, "RayJob")["spec"]["rayClusterSpec"], one(documents, "RoleBinding")
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] < group["maxReplicas"]
    allowed = {(subject["name"], subject["namespace"]) for subject in binding["subjects"]}
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert allowed == {(head["serviceAccountName"], "astro")}
    assert binding["roleRef"]["name"] == one(documents, "Role")["metadata"]["name"]
    asking = [pod for pod in pod_specs(documents) if pod["automountServiceAccountToken"]]
    assert asking == [head]
    assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("others", [[], ["autoscaling"]])
def test_every_pod_may_fetch_from_a_private_registry(tmp_path, others):
    documents = build(tmp_path, [*others, "private-registry"])
    can = {
        document["metadata"]["name"]
        for document in documents
        if document["kind"] == "ServiceAccount" and document["imagePullSecrets"] == [{"name": "digs-survey-registry"}]
    }
    assert {pod["serviceAccountName"] for pod in pod_specs(documents)} <= can


def test_the_network_is_closed_to_other_namespaces(tmp_path):
    policy = one(build(tmp_path, ["network-policy"]), "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert all("podSelector" in source or source["namespaceSelector"]["matchExpressions"] for source in rule["from"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_for_data_has_the_volume_and_is_confined(version):
    pod = yaml.safe_load((KUSTOMIZATIONS / "data-pod.yaml").read_text(encoding="utf-8"))
    validate(pod, version)
    base = next(pod_specs(rendered("base")["DaskCluster"]))
    assert pod["spec"]["securityContext"] == base["securityContext"]
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == base["containers"][0]["securityContext"]
    assert container["image"] == base["containers"][0]["image"]
    assert pod["spec"]["volumes"] == rendered("base")["DaskCluster"]["spec"]["worker"]["spec"]["volumes"]
