"""Node provider for Ray clusters on AWS: spot instances with a fallback to on-demand ones. Used by cluster.yaml.

After AWS refuses a launch, Ray 2.60's autoscaler requests the same node type again as long as there is no spot
capacity, and never tries another type that would also be suitable.

This module stands alone: the cluster's head imports it without the rest of this package. It uses a private API of Ray,
verified on 2.60; tests/pipeline/cluster/test_ray_internals.py has a canary test.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# Launch errors after which the same instance type may still be available on demand.
NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}


class SpotFirst(AWSNodeProvider):
    """Ray's EC2 node provider with a fallback to on-demand instances if all zones refuse spot instances."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` instances and return them by id. Raises: NodeLaunchException."""
        try:
            return super()._create_node(node_config, dict(tags), count)  # a copy, because Ray modifies the tags
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in NO_SPOT:
                raise
            logger.warning("No spot %s (%s): launching it on demand", node_config["InstanceType"], error.category)
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super()._create_node(on_demand, dict(tags), count)
