"""Runs cases of a target in this process, and tells what each of them breaks."""

import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.fuzz.targets import Target

SECONDS = 10  # of CPU time that a case may take
MEGABYTES = 500  # by which a case may raise the process's peak
KEPT = 2000  # cases that others are made of
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python itself does


class Find(Exception):
    """A case that broke the contract; `name` is the same for those that broke it in the same place."""

    def __init__(self, name: str, report: str) -> None:
        super().__init__(report)
        self.name = re.sub(r"\W+", "-", name)[:120].strip("-")


class Cases:
    """Cases made of a target's seeds, and of those cases that had an outcome of their own."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._seed = target, seed
        self._kept = target.seeds()
        self._num_seeds = len(self._kept)
        self._seen: set[str] = set()
        self.run = 0

    @property
    def num_outcomes(self) -> int:
        return len(self._seen)

    def next(self) -> bytes:
        """The seeds themselves, then what is made of them."""
        number, self.run = self.run, self.run + 1
        if number < self._num_seeds:
            return self._kept[number]
        rng = random.Random(f"{self._seed} {number}")
        content = rng.choice(self._kept)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = self._target.mutated(content, rng, self._kept)
        return content

    def check(self, content: bytes) -> str:
        """The case's outcome. Raises Find."""
        outcome = checked(self._target.check, content)
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+", "_", outcome)[:150]
        if kind not in self._seen:
            self._seen.add(kind)
            if len(self._kept) < KEPT:
                self._kept.append(content)
        return outcome


def checked(check: Callable[[bytes], str], content: bytes) -> str:
    """Return the result of `check`. Raises Find if it crashes, prints, or takes too much time or memory."""
    memory, seconds = _peak_megabytes(), time.process_time()
    with _printed() as printed:
        try:
            outcome = check(content)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if re.search(r"/(pipeline|models)/", frame.filename)] or frames
            name = f"{type(error).__name__} {os.path.basename(ours[-1].filename)} {ours[-1].name} {frames[-1].name}"
            raise Find(name, traceback.format_exc(limit=-25)) from error
        text = printed()
    if text:
        raise Find(f"printed {text[:60]}", text)
    if (taken := time.process_time() - seconds) > SECONDS:
        raise Find(f"slow {outcome[:60]}", f"{taken:.1f} s")
    if (more := _peak_megabytes() - memory) > MEGABYTES:
        raise Find(f"memory {outcome[:60]}", f"{more:.0f} MB")
    return outcome


@contextmanager
def _printed() -> Iterator[Callable[[], str]]:
    """Capture standard output and error, including those of C libraries, and Python's warnings."""
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for kind in HIDDEN:
            warnings.simplefilter("ignore", kind)
        before = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            sys.stdout.flush()
            lines = [f"{one.category.__name__}: {one.message}\n" for one in warned]
            return "".join(lines) + os.pread(file.fileno(), 100_000, 0).decode(errors="replace")

        sys.stdout.flush()
        try:
            yield text
        finally:
            for number, kept in enumerate(before, start=1):
                os.dup2(kept, number)
                os.close(kept)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
