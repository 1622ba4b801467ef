"""Isolation of images that crash their worker, so that they become error rows like other failures.

Ray reruns the work of a crashed worker indefinitely. Therefore each block reports to the run's progress actor when
it starts. A block whose worker crashed is retried image by image and reports each image before working on it. If
workers keep crashing at the same image, that image is the cause.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.segment.image_rows import Image, ListedImage

# Number of crashes after which an image is given up. More node losses are tolerated, because a node may be lost for
# unrelated reasons while a scene takes hours. They count nevertheless: a container that runs out of memory takes its
# node down with the process.
PROCESS_DEATHS, NODE_LOSSES = 2, 5


class AttemptPlan(NamedTuple):
    """Instructions for a block that starts."""

    one_by_one: bool  # process the images one at a time and report each of them
    given_up: list[bytes]  # ids of the images that must not be tried again


class CrashLedger:
    """Record of the nodes that each block ran on and the images that crashed; the progress actor's side.

    Args:
        is_alive: takes a node's id and returns whether the node is alive.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._begun: defaultdict[str, list[str]] = defaultdict(list)  # block -> nodes where it started
        self._at: dict[str, bytes] = {}  # block -> current image, for one-by-one blocks
        self._deaths: defaultdict[bytes, list[str]] = defaultdict(list)  # image -> nodes of the crashes

    def begin(self, block: str, image_ids: Sequence[bytes], node: str) -> AttemptPlan:
        nodes = self._begun[block]
        if block in self._at:
            self._deaths[self._at.pop(block)].append(nodes[-1])
        # The first loss of a node says little about the images.
        one_by_one = len(nodes) > 1 or (len(nodes) == 1 and self._is_alive(nodes[-1]))
        nodes.append(node)
        return AttemptPlan(one_by_one, [image for image in image_ids if self._is_given_up(image)])

    def enter(self, block: str, image_id: bytes) -> None:
        self._at[block] = image_id

    def leave(self, block: str) -> None:
        self._at.pop(block, None)

    def end(self, block: str) -> None:
        self._begun.pop(block, None)

    def _is_given_up(self, image: bytes) -> bool:
        nodes = self._deaths.get(image, [])
        # Evaluated again on each call, because a lost node is detected later than the loss of its process.
        return len(nodes) >= NODE_LOSSES or sum(map(self._is_alive, nodes)) >= PROCESS_DEATHS


class BlockAttempt:
    """One attempt at a block of images; the worker's side.

    Args:
        stage: 'decode' or 'predict'.
        progress_actor: the run's; None to report nothing and to ignore earlier attempts.
    """

    def __init__(self, stage: str, images: Sequence[ListedImage], progress_actor: Any) -> None:
        self.one_by_one = False
        self._stage = stage
        self._given_up: frozenset[bytes] = frozenset()
        self._progress_actor = progress_actor
        if progress_actor is None:
            return
        import ray

        ids = [image.image_id for image in images]
        self._block = f"{stage} {hashlib.blake2b(b''.join(sorted(ids)), digest_size=16).hexdigest()}"
        plan = ray.get(progress_actor.begin.remote(self._block, ids, ray.get_runtime_context().get_node_id()))
        self.one_by_one, self._given_up = plan.one_by_one, frozenset(plan.given_up)
        if self.one_by_one:
            progress_actor.log.remote(f"Lost a worker with {len(images):,} images to {stage}; retrying them one by one")

    def without_given_up(self, images: Sequence[Image]) -> list[Image]:
        """Return the images, with an error for those that must not be tried again."""
        message = f"the worker crashed each time it tried to {self._stage} this image; most likely it ran out of memory"
        return [
            image.failed(self._stage, "Crashed", message)
            if image.image_id in self._given_up and image.error_type is None
            else image
            for image in images
        ]

    @contextmanager
    def at(self, image_id: bytes) -> Iterator[None]:
        """Report that the block now works on this image alone; report nothing unless images go one by one."""
        if not self.one_by_one:
            yield
            return
        import ray

        ray.get(self._progress_actor.enter.remote(self._block, image_id))
        try:
            yield
        finally:
            ray.get(self._progress_actor.leave.remote(self._block))

    def end(self) -> None:
        """Report that the block is complete."""
        if self._progress_actor is not None:
            self._progress_actor.end.remote(self._block)
