"""How every job starts and ends, and what a terminal is shown."""

import re
import sys
from collections.abc import Callable
from typing import TextIO

from pipeline.errors import UserError


def printable(text: str) -> str:
    """The text with control characters, which names in files may have and terminals obey, written out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def log(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, also into a job's log file; `file` is another one than standard output."""
    print(printable(line), file=file, flush=True)


def duration(seconds: float) -> str:
    """`3725` -> `1:02:05`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def run_job(job: Callable[[list[str]], int | None]) -> None:
    """Run a job on the process's arguments and exit: 0 done, 1 not all done, 2 something that the user can mend.

    What the user can mend is printed as a plain message; anything else is a fault of ours and shows its traceback.
    """
    try:
        sys.exit(job(sys.argv[1:]))
    except UserError as error:
        log(f"error: {error}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(130)
