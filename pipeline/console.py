"""Start, end and terminal output of every job."""

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from pipeline.errors import UserError

START_OVER = "Run the same command again; it starts from the beginning."  # what to do after an interruption


def printable(text: str) -> str:
    """Return the text with control characters escaped: file names may contain them, and terminals obey them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def log(line: str, file: TextIO | None = None) -> None:
    """Print a line to `file` (default: standard output) and flush it, so that job logs show it at once."""
    print(printable(line), file=file, flush=True)


def warn_deprecated(option: str, instead: str) -> None:
    """Print to stderr that the next release removes a spelling of an option, and its replacement."""
    log(f"note: {option} is deprecated; use {instead}", sys.stderr)


def duration(seconds: float) -> str:
    """Format seconds as h:mm:ss: `3725` -> `1:02:05`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


@contextmanager
def when_interrupted(message: str) -> Iterator[None]:
    """Let `run_job` print the message if the `with` block is interrupted: what is saved, and what to do next."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(message)
        raise


def run_job(job: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """Run a job with `argv` (default: the command line's arguments) and exit with its code.

    Exit codes: 0 success; 1 incomplete output or problems found; 2 an error that the user can fix; 130 interrupted by
    Ctrl-C; 143 stopped by SIGTERM. A UserError is printed to stderr as a plain message; any other exception is a bug
    and shows its traceback.
    """
    received = [signal.SIGINT]

    def interrupt(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    try:
        _check_models_not_shadowed()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)  # which `ray job stop` sends
        sys.exit(job(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        log(f"error: {error}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        # In a terminal, the cursor is behind a progress bar or the echo of Ctrl-C.
        start = "\n" if sys.stderr.isatty() else ""
        message = getattr(error, "__notes__", [START_OVER])[-1]
        log(f"{start}Interrupted. {message}", sys.stderr)
        sys.exit(128 + received[-1])


def _check_models_not_shadowed() -> None:
    """Raise UserError if Python finds another package named `models` first; the name is a common one."""
    own = Path(__file__).parents[1] / "models" / "__init__.py"
    found = find_spec("models")
    if found is None or found.origin is None or not own.samefile(found.origin):
        raise UserError(
            f"the package 'models' in {found and found.origin} shadows Sceneparse's own in {own.parent}; run in "
            "another folder or environment, or uninstall the other package"
        )
