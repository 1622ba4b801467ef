"""Keeps CPUs and GPUs free of an elastic training's workers, for what works beside them.

An elastic training takes as many workers as the cluster holds, up to the most that is asked for. Where nothing is left,
the tasks that make its batches wait for a CPU, and it waits for them.
"""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

# By which Ray Data and Ray Train agree on who gets what; there is no public way to take part in that.
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

RENEW_EVERY, EXPIRES_AFTER = 20.0, 90.0  # seconds; what a killed driver asked for does not hold nodes for long


@contextmanager
def reserve_resources(bundles: Sequence[dict[str, float]]) -> Iterator[None]:
    """While the block runs, elastic trainings that begin in it count without these CPUs and GPUs.

    Args:
        bundles: each is of one node, as in {"CPU": 1.0, "GPU": 1.0}.
    """
    coordinator: Any = get_or_create_autoscaling_coordinator()
    name, ended = f"beside-training-{secrets.token_hex(4)}", threading.Event()

    def request() -> None:
        # As important as training itself; of equals the first one counts.
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
