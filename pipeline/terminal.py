"""What a terminal is shown."""

import re
from typing import TextIO


def printable(text: str) -> str:
    """The text with control characters, which names in files may have and terminals obey, written out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, also into a job's log file; `file` is another one than standard output."""
    print(printable(line), file=file, flush=True)
