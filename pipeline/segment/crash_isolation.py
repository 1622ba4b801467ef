"""Images that kill the process that works on them: found among those of their block, and made rows like other failures.

Ray gives the work of a process that died to another one, without end. So a block tells the run's board that it begins.
One whose process died begins again image by image, and tells each; what dies at the same image again has found it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.output.errors import failure

# An image is given up after so many deaths at it. A node may have gone for reasons of its own, and a scene may take
# hours; but where a container's memory ends, the node goes with the process.
PROCESS_DEATHS, NODE_LOSSES = 2, 5


class AttemptPlan(NamedTuple):
    """What a block that begins is told."""

    one_by_one: bool  # whether its images are to be worked on, and told, one after the other
    given_up: list[bytes]  # ids of its images that are not to be tried again


class CrashLedger:
    """The board's part: which blocks are at work where, and at which image.

    Args:
        is_alive: whether a node lives, by its id.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._begun: defaultdict[str, list[str]] = defaultdict(list)  # block -> nodes where it began
        self._at: dict[str, bytes] = {}  # block -> image, of blocks that go one by one
        self._deaths: defaultdict[bytes, list[str]] = defaultdict(list)  # image -> nodes where something died at it

    def begin(self, block: str, image_ids: Sequence[bytes], node: str) -> AttemptPlan:
        nodes = self._begun[block]
        if block in self._at:
            self._deaths[self._at.pop(block)].append(nodes[-1])
        # A node that is lost says little of the images, the first time.
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
        # Judged anew each time: that a node is lost is known later than that the process is.
        return len(nodes) >= NODE_LOSSES or sum(map(self._is_alive, nodes)) >= PROCESS_DEATHS


class BlockAttempt:
    """The worker's part, for one block of rows.

    Args:
        stage: what is done with them: 'decode' or 'predict'.
        board: of the run; None: nobody is told, and nothing is known of earlier trials.
    """

    def __init__(self, stage: str, rows: Sequence[dict[str, Any]], progress_actor: Any) -> None:
        self.one_by_one = False
        self._progress_actor = progress_actor
        if progress_actor is None:
            return
        import ray

        ids = [row["image_id"] for row in rows]
        self._block = f"{stage} {hashlib.blake2b(b''.join(sorted(ids)), digest_size=16).hexdigest()}"
        self.one_by_one, given_up = ray.get(
            progress_actor.begin.remote(self._block, ids, ray.get_runtime_context().get_node_id())
        )
        if self.one_by_one:
            progress_actor.log.remote(
                f"a process with {len(rows):,} images to {stage} was lost; they begin again, one by one"
            )
        for row in rows:
            if row["image_id"] in given_up and row["error_type"] is None:
                row |= failure(stage, "Crashed", f"each process that was to {stage} it died; has it enough memory?")

    @contextmanager
    def at(self, image_id: bytes) -> Iterator[None]:
        """The block's work is on this image alone; nobody is told unless the images go one by one."""
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
        """The block is done."""
        if self._progress_actor is not None:
            self._progress_actor.end.remote(self._block)
