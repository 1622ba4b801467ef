"""Reservation of CPUs and GPUs that elastic training must not take for its workers.

Elastic training takes as many workers as the cluster can hold, up to the requested maximum. If no CPU is left, the
tasks that load its batches wait for a CPU while training waits for them.
"""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

# Ray Data and Ray Train share resources through this coordinator. It has no public API.
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

RENEW_EVERY, EXPIRES_AFTER = 20.0, 90.0  # seconds; the reservation of a killed driver expires soon


@contextmanager
def reserve_resources(bundles: Sequence[dict[str, float]]) -> Iterator[None]:
    """Keep elastic training that starts in the `with` block from taking these CPUs and GPUs.

    Args:
        bundles: resources that must each be on one node, such as {"CPU": 1.0, "GPU": 1.0}.
    """
    coordinator: Any = get_or_create_autoscaling_coordinator()
    name, ended = f"beside-training-{secrets.token_hex(4)}", threading.Event()

    def request() -> None:
        # The priority of training itself. Among equal priorities the first request wins.
        high = ResourceRequestPriority.HIGH
        ray.get(coordinator.request_resources.remote(name, list(bundles), EXPIRES_AFTER, priority=high))

    def renew() -> None:
        while not ended.wait(RENEW_EVERY):
            request()

    request()
    thread = threading.Thread(target=renew, daemon=True, name="reserve-resources")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        ray.get(coordinator.cancel_request.remote(name))
