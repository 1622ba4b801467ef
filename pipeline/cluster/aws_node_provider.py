"""The machines of a Ray cluster on AWS: spot where there is any, on demand otherwise. Named in cluster.yaml.

Ray 2.60's autoscaler learns nothing from a launch that Amazon refused: it asks for the same type of node again, for as
long as there is no spot capacity, and another type that would do as well is never tried.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# Refusals after which the same machine may still be had on demand.
NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}


class SpotFirst(AWSNodeProvider):
    """Ray's own provider of EC2 instances, which turns to on-demand ones when all zones refuse spot."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` instances, by id. Raises NodeLaunchException."""
        try:
            return super()._create_node(node_config, dict(tags), count)  # which alters the tags
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in NO_SPOT:
                raise
            logger.warning("No spot %s (%s): taking it on demand", node_config["InstanceType"], error.category)
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super()._create_node(on_demand, dict(tags), count)
