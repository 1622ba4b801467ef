"""Notices that a node is about to be preempted."""

import ray.train

from pipeline.train.worker_group import WorkerGroup


class PreemptionNotices:
    """Notices of the cloud, passed on by Ray Train, that nodes of the run are about to be preempted."""

    def __init__(self, workers: WorkerGroup) -> None:
        self._workers = workers
        self._known_nodes: set[str] = set()

    def has_new(self) -> bool:
        """Return True, once per node, if a node is about to be preempted, so that a checkpoint is due immediately."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        is_new = not nodes <= self._known_nodes
        self._known_nodes |= nodes
        if is_new:
            self._workers.log("A node is about to be preempted: writing a checkpoint now")
        return is_new
