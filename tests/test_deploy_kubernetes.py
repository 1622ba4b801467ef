"""The manifests of deploy/kubernetes, checked without a Kubernetes cluster."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.config.jobs import SegmentConfig, TrainConfig
from pipeline.config.loading import load_settings
from tests.autoscaling import launched_for, segmentation_requests, training_requests
from tests.conftest import REPOSITORY
from tests.kuberay import SCHEMAS

FILES = sorted((REPOSITORY / "deploy/kubernetes").glob("*.yaml"))
MANIFESTS = {
    (path.stem, one["kind"], one["metadata"]["name"]): one
    for path in FILES
    for one in yaml.safe_load_all(path.read_text())
}
CLUSTER = MANIFESTS["cluster", "RayCluster", "sceneparse"]
JOBS = {file: one for (file, kind, _), one in MANIFESTS.items() if kind == "RayJob"}
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
OBJECT_STORE = 0.3  # of a node's memory, by default
UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, by a name for it."""
    for group in GROUPS:
        yield group.get("groupName", "head"), group["template"]["spec"]
    for name, job in JOBS.items():
        yield f"{name} submitter", job["spec"]["submitterPodTemplate"]["spec"]


def size(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The cluster as Ray's autoscaler reads it from Kubernetes."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr(CLUSTER)


@pytest.mark.parametrize(("file", "kind", "name"), MANIFESTS)
def test_manifest_has_the_shape_of_its_kind(file: str, kind: str, name: str) -> None:
    manifest = MANIFESTS[file, kind, name]
    if kind in SCHEMAS:
        jsonschema.validate(manifest, SCHEMAS[kind])
    else:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("name", "spec"), list(pods()), ids=[name for name, _ in pods()])
def test_pod_has_kubernetes_own_shape(name: str, spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.replace(" ", "-")}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_shapes_are_checked() -> None:
    group = {**CLUSTER["spec"]["workerGroupSpecs"][0], "minReplica": 0}
    wrong = {**CLUSTER, "spec": {**CLUSTER["spec"], "workerGroupSpecs": [group]}}
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, SCHEMAS["RayCluster"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"nam": "a"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_no_container_runs_as_root_or_gains_rights() -> None:
    options = CLUSTER["spec"]["autoscalerOptions"]
    for name, container in [*((name, one) for name, pod in pods() for one in pod["containers"]), ("scaler", options)]:
        rights = container["securityContext"]
        assert rights["runAsNonRoot"] is True, name
        assert rights["allowPrivilegeEscalation"] is False, name
        assert rights["capabilities"] == {"drop": ["ALL"]}, name
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert all(pod["securityContext"]["runAsUser"] == 1000 for _, pod in pods())


def test_requests_are_limits_so_that_no_pod_is_evicted_first() -> None:
    containers = [one for _, pod in pods() for one in pod["containers"]] + [CLUSTER["spec"]["autoscalerOptions"]]
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_shared_memory_holds_the_object_store_and_scratch_fits_the_disk() -> None:
    for group in GROUPS:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one["emptyDir"] for one in spec["volumes"]}
        shared = volumes[mounts["/dev/shm"]]
        limits = container["resources"]["limits"]
        assert shared["medium"] == "Memory"
        assert OBJECT_STORE * size(limits["memory"]) <= size(shared["sizeLimit"]) < 0.5 * size(limits["memory"])
        assert size(volumes[mounts["/mnt/scratch"]]["sizeLimit"]) < size(limits["ephemeral-storage"])
        assert group["rayStartParams"]["object-spilling-directory"].startswith("/mnt/scratch/")


def test_only_who_has_the_secrets_token_gets_in_and_from_nearby() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert CLUSTER["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "Secret" not in {kind for _, kind, _ in MANIFESTS}, "the token would be in the repository"
    network = MANIFESTS["cluster", "NetworkPolicy", "ray"]["spec"]
    assert network["podSelector"]["matchLabels"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert not any("ipBlock" in source for rule in network["ingress"] for source in rule["from"])


def test_pods_have_a_role_and_no_keys() -> None:
    for group in GROUPS:
        account = MANIFESTS["cluster", "ServiceAccount", group["template"]["spec"]["serviceAccountName"]]
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    assert not any("env" in one for _, pod in pods() for one in pod["containers"])


def test_only_the_head_has_a_way_to_kubernetes() -> None:
    """Its autoscaler needs one. A worker could otherwise make pods: code of a job runs on it."""
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]
    for name, pod in pods():
        if name != "head":
            assert pod["automountServiceAccountToken"] is False, name
            assert pod.get("serviceAccountName") != head["serviceAccountName"], name
    assert MANIFESTS["cluster", "ServiceAccount", "sceneparse-worker"]["automountServiceAccountToken"] is False


def test_workers_start_from_none_by_autoscaler_v2_and_never_again_in_the_same_pod(config: dict[str, Any]) -> None:
    assert CLUSTER["spec"]["enableInTreeAutoscaling"] is True
    assert CLUSTER["spec"]["autoscalerOptions"]["version"] == "v2"
    assert all(group["replicas"] == group["minReplicas"] == 0 for group in CLUSTER["spec"]["workerGroupSpecs"])
    assert all(pod["restartPolicy"] == "Never" for _, pod in pods())
    assert config["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


def test_autoscaler_meets_all_that_a_segmentation_asks_for(config: dict[str, Any]) -> None:
    started = launched_for(config, segmentation_requests(config, predictors=8))
    assert set(started) == {"gpu", "cpu"}
    assert started["gpu"] == 8


def test_autoscaler_meets_all_that_a_training_asks_for(config: dict[str, Any]) -> None:
    assert launched_for(config, training_requests(workers=8))["gpu"] == 8


def test_jobs_are_commands_that_the_jobs_take() -> None:
    for name, settings, module in (
        ("train", TrainConfig, "jobs.train"),
        ("segment", SegmentConfig, "jobs.segment_bucket"),
    ):
        job = JOBS[name]
        command = job["spec"]["entrypoint"].replace("/app/", f"{REPOSITORY}/")
        assert command.startswith(f"python -m {module} ")
        load_settings(settings, shlex.split(command)[3:], prog=module)
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
        assert job["metadata"]["namespace"] == CLUSTER["metadata"]["namespace"]


def test_versions_and_images_agree() -> None:
    assert len({one["image"] for _, pod in pods() for one in pod["containers"]}) == 1
    (pinned,) = re.findall(r"^ray==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert CLUSTER["spec"]["rayVersion"] == pinned
