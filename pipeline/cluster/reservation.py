"""Reservation of CPUs and GPUs that elastic training must not take for its workers.

Elastic training takes as many workers as the cluster can hold, up to the requested maximum. If no CPU is left, the
tasks that load its batches wait for a CPU while training waits for them.
"""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.cluster.ray_internals import Reservation

RENEW_EVERY, EXPIRES_AFTER = 20.0, 90.0  # seconds; the reservation of a killed driver expires soon


@contextmanager
def reserve_resources(bundles: Sequence[dict[str, float]]) -> Iterator[None]:
    """Keep elastic training that starts in the `with` block from taking these CPUs and GPUs.

    Args:
        bundles: resources that must each be on one node, such as {"CPU": 1.0, "GPU": 1.0}.
    """
    reservation = Reservation(f"beside-training-{secrets.token_hex(4)}", bundles)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_EVERY):
            reservation.renew(EXPIRES_AFTER)

    reservation.renew(EXPIRES_AFTER)
    thread = threading.Thread(target=renew, daemon=True, name="reserve-resources")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        reservation.cancel()
