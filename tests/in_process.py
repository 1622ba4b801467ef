"""Run a script in this process, and return what a process of its own would have returned.

Starting an interpreter and importing Ray and torch takes seconds, which a script's own work seldom does in tests.
"""

import contextlib
import gc
import io
import logging
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

REPOSITORY = Path(__file__).parents[1]


def run_script(script: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS` in this process, with `typed` for its standard input.

    Args:
        script: path below the repository, such as jobs/query.py.

    Raises: any exception that a process would show as a traceback.
    """
    code: int | str | None = 0
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        with _redirected(out, err):
            try:
                runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            except SystemExit as end:
                code = end.code
        if code:
            # Actors that frames of the error hold would live on, and keep CPUs of the cluster from the next job.
            gc.collect()
        printed = [_content(file) for file in (out, err)]
    if isinstance(code, str):  # as sys.exit does with a message
        code, printed[1] = 1, f"{printed[1]}{code}\n"
    return subprocess.CompletedProcess([script, *arguments], code or 0, *printed)


@contextlib.contextmanager
def _redirected(out: TextIO, err: TextIO) -> Iterator[None]:
    """Send everything that is printed to these files: by Python, by log handlers, and by libraries past Python."""
    before = sys.stdout, sys.stderr
    kept = [os.dup(1), os.dup(2)]
    for stream in before:
        stream.flush()
    _move_log_handlers(before, (out, err))
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        out.flush()
        err.flush()
        # Those, too, that were made meanwhile.
        _move_log_handlers((out, err), before)
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _move_log_handlers(before: tuple[TextIO, TextIO], after: tuple[TextIO, TextIO]) -> None:
    """Let log handlers that write to one of these streams write to another."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        stream = vars(handler).get("stream")
        for old, new in zip(before, after, strict=True):
            if isinstance(handler, logging.StreamHandler) and stream is old:
                handler.setStream(new)


def _content(file: TextIO) -> str:
    file.seek(0)
    return file.read()
