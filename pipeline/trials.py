"""Images that kill the process that works on them: found among those of their block, and made rows like other failures.

Ray gives the work of a process that died to another one, without end. So a block tells the run's board that it begins;
one that begins again goes image by image and tells each; and what dies at the same image again has found its image.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.failures import failure

# An image is given up after so many deaths at it. A node may have gone for reasons of its own, and a scene may take
# hours; but where a container's memory ends, the node goes with the process.
PROCESS_DEATHS, NODE_LOSSES = 2, 5


class Begun(NamedTuple):
    """What a block that begins is told."""

    before: int  # how often it began before
    given_up: list[bytes]  # ids of its images that are not to be tried again


class Trials:
    """The board's part: which blocks are at work, at which image."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._at: dict[str, tuple[bytes, str]] = {}  # block -> image and node, of blocks that go image by image
        self._deaths: Counter[tuple[bytes, bool]] = Counter()  # image, whether its node was lost -> how often

    def begin(self, block: str, image_ids: Sequence[bytes], is_alive: Callable[[str], bool]) -> Begun:
        before = self._begun[block]
        self._begun[block] += 1
        if block in self._at:
            image, node = self._at.pop(block)
            self._deaths[image, not is_alive(node)] += 1
        return Begun(before, [image for image in image_ids if self._is_given_up(image)])

    def enter(self, block: str, image_id: bytes, node: str) -> None:
        self._at[block] = image_id, node

    def leave(self, block: str) -> None:
        self._at.pop(block, None)

    def end(self, block: str) -> None:
        self._begun.pop(block, None)

    def _is_given_up(self, image: bytes) -> bool:
        return self._deaths[image, False] >= PROCESS_DEATHS or self._deaths[image, True] >= NODE_LOSSES


class Trial:
    """The worker's part, for one block of rows.

    Args:
        stage: what is done with them: 'decode' or 'predict'.
        board: of the run; None: nobody is told, and nothing is known of earlier trials.
    """

    def __init__(self, stage: str, rows: Sequence[dict[str, Any]], board: Any) -> None:
        self.one_by_one = False
        self._board = board
        if board is None:
            return
        import ray

        ids = [row["image_id"] for row in rows]
        self._block = f"{stage} {hashlib.blake2b(b''.join(sorted(ids)), digest_size=16).hexdigest()}"
        self._node = ray.get_runtime_context().get_node_id()
        begun = ray.get(board.begin.remote(self._block, ids))
        self.one_by_one = begun.before > 0
        if begun.before:
            board.say.remote(
                f"a process was lost that had {len(rows):,} images to {stage}; one by one they begin again"
            )
        for row in rows:
            if row["image_id"] in begun.given_up and row["error_type"] is None:
                row |= failure(
                    stage, "Crashed", f"every process that was to {stage} it died; its memory may have ended"
                )

    @contextmanager
    def at(self, image_id: bytes) -> Iterator[None]:
        """The block's work is on this image alone; nobody is told unless the images go one by one."""
        if not self.one_by_one:
            yield
            return
        import ray

        ray.get(self._board.enter.remote(self._block, image_id, self._node))
        try:
            yield
        finally:
            ray.get(self._board.leave.remote(self._block))

    def end(self) -> None:
        """The block is done."""
        if self._board is not None:
            self._board.end.remote(self._block)
