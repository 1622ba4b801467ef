"""jobs/segment_bucket.py on machines whose clocks are wrong: the driver's, and those of all that write.

    python -m tests.skewed_clock MINUTES_AHEAD [options of the job]

Everything that an output keeps of a clock is wrong then, and nothing that Ray and storage go by.
"""

import sys
from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo
from typing import Any

from ray.data.block import Block

from jobs import segment_bucket
from pipeline.console import run_job
from pipeline.output import lease
from pipeline.segment import run, write_stage
from pipeline.segment.write_stage import PartSink, WrittenPart


def clock(minutes_ahead: int) -> type:
    """Return a stand-in for the class datetime, of which these modules use `now` alone."""

    class Clock:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return datetime.now(zone) + timedelta(minutes=minutes_ahead)

    return Clock


class SkewedSink(PartSink):
    minutes_ahead = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ahead = SkewedSink.minutes_ahead  # of the driver's process, for those of workers

    def write(self, blocks: Iterable[Block], ctx: object) -> list[WrittenPart]:
        write_stage.datetime = clock(self._ahead)  # type: ignore[misc]
        try:
            return super().write(blocks, ctx)
        finally:
            write_stage.datetime = datetime  # type: ignore[misc]


def main(argv: list[str]) -> int | None:
    minutes_ahead, *options = argv
    SkewedSink.minutes_ahead = int(minutes_ahead)
    lease.datetime = run.datetime = clock(int(minutes_ahead))  # type: ignore[misc]
    run.PartSink = SkewedSink  # type: ignore[misc]
    return segment_bucket.main(options)


if __name__ == "__main__":
    # Workers import these classes by the module's name.
    from tests import skewed_clock

    sys.argv[0] = "jobs/segment_bucket.py"
    run_job(skewed_clock.main)
