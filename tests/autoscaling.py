"""Resource requests of the two jobs, and the nodes that Ray's autoscaler starts for them if there are none."""

from collections import Counter
from typing import Any

from pipeline.cluster.connection import Resources
from pipeline.cluster.sizing import DECODE_CPUS, size_actor_pool
from pipeline.config.jobs import SegmentConfig
from pipeline.config.training import WorkersConfig


def segmentation_requests(config: dict[str, Any], predictors: int) -> list[dict[str, float]]:
    """Return the request of each actor and task that labels on GPUs, with stages sized for the largest cluster."""
    types = config["available_node_types"].values()
    most = {name: sum(one["max_workers"] * one["resources"].get(name, 0) for one in types) for name in ("CPU", "GPU")}
    empty = Resources((), allowed_cpus=most["CPU"], allowed_gpus=most["GPU"])
    job = SegmentConfig(input=["photos"], output="labels", checkpoint="best", gpu=True, predictors=predictors)
    stages = size_actor_pool(job, empty)
    return [
        *[{"CPU": stages.predictor_cpus, "GPU": 1}] * stages.predictors,
        *[{"CPU": DECODE_CPUS}] * stages.decode_tasks,
        *[{"CPU": 1}] * stages.write_tasks,
    ]


def training_requests(workers: int) -> list[dict[str, float]]:
    """Return the requests of training workers with one GPU each, and of the tasks that decode for them."""
    each = WorkersConfig(count=(workers,), gpu=True)
    return [*[{"CPU": each.cpus, "GPU": 1}] * workers, *[{"CPU": 1}] * workers * each.ingest_cpus]


def launched_for(config: dict[str, Any], requests: list[dict[str, float]]) -> Counter[str]:
    """Nodes by type that the autoscaler would start at once; fails where a request can never be met.

    Args:
        config: as the autoscaler has it, of cluster.yaml or of a RayCluster.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    cluster = AutoscalingConfig(config, skip_content_hash=True)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=cluster.get_node_type_configs(),
            max_num_nodes=cluster.get_max_num_nodes(),
            resource_requests=[
                ResourceRequestByCount(request=ResourceRequestUtil.make(one), count=1) for one in requests
            ],
        )
    )
    assert not reply.infeasible_resource_requests
    return Counter({one.instance_type: one.count for one in reply.to_launch})
