"""Shapes of KubeRay's resources, as far as deploy/kubernetes uses them.

Written down by hand from KubeRay's API reference (ray.io/v1 of KubeRay 1.6), since its own definitions come with no
package. Pods inside are Kubernetes' own, which the package kubernetes-validate checks by Kubernetes' schemas.
"""

from typing import Any

STRING, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD = {"type": "object", "required": ["spec"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object that has these keys and no others."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_AUTOSCALER = _object(
    [],
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Conservative", "Aggressive"]},
    image=STRING,
    imagePullPolicy=STRING,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
    resources={"type": "object"},
    securityContext={"type": "object"},
)
_HEAD = _object(
    ["template"],
    template=POD,
    rayStartParams=STRINGS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress=FLAG,
    resources=STRINGS,
    labels=STRINGS,
)
_WORKERS = _object(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=STRINGS,
    resources=STRINGS,
    labels=STRINGS,
    template=POD,
)
_CLUSTER = _object(
    ["headGroupSpec"],
    rayVersion=STRING,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_AUTOSCALER,
    authOptions=_object([], mode={"enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    suspend=FLAG,
)
_JOB = _object(
    ["entrypoint"],
    entrypoint=STRING,
    clusterSelector=STRINGS,
    rayClusterSpec=_CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=POD,
    submitterConfig=_object([], backoffLimit=COUNT),
    runtimeEnvYAML=STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=STRING,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    suspend=FLAG,
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A resource of that kind."""
    metadata = _object(["name", "namespace"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
    required = ["apiVersion", "kind", "metadata", "spec"]
    return _object(required, apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=metadata, spec=spec)


SCHEMAS = {"RayCluster": _resource("RayCluster", _CLUSTER), "RayJob": _resource("RayJob", _JOB)}
