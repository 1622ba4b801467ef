"""How every job starts and ends."""

import sys
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.terminal import say


def run_job(job: Callable[[list[str]], int | None]) -> None:
    """Run a job on the process's arguments and exit: 0 done, 1 not all done, 2 something that the user can mend.

    What the user can mend is printed as a plain message; anything else is a fault of ours and shows its traceback.
    """
    try:
        sys.exit(job(sys.argv[1:]))
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(130)
