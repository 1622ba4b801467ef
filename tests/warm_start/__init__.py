"""Start Ray's workers by forking a process that has already imported torch, pandas and other libraries.

On a slow core, a training worker spends about 15 seconds on imports, and a run of all tests starts several hundred
workers. On a node whose environment has `warm_start()`, `sitecustomize.py` in this folder passes a worker's command to
`fork_server.py`, which forks, takes over the environment, folder and output that Ray gave the worker, and runs the
command: Ray's own code from its first line. Ray and this project are imported after the fork, because they read the
environment while they are imported. A cluster sees one difference, the parent of a worker's process: use `workers_of`
in place of a raylet's children.
"""

import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path

import psutil

from pipeline.demo.server_process import ServerProcess
from tests.warm_start.sitecustomize import SOCKET

FOLDER = Path(__file__).parent


class _ForkServer:
    """The process that forks, and its notes of which raylet each worker is for."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        folder = Path(self._folder.name)
        self.notes = folder / "workers"
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]),
            SOCKET: str(folder / "socket"),
        }
        self._process = ServerProcess(
            name="fork server",
            command=[sys.executable, str(FOLDER / "fork_server.py"), self.environment[SOCKET], str(self.notes)],
            url="",
            log=folder / "log",
            # OpenMP reads it as torch is imported, before Ray sets it for a worker; most workers get one CPU.
            environment={"OMP_NUM_THREADS": "1"},
        )
        self._process.start()  # ends with this process


@functools.cache
def _fork_server() -> _ForkServer:
    return _ForkServer()


def warm_start() -> dict[str, str]:
    """Return the environment variables of a node whose workers are forked."""
    return _fork_server().environment


def workers_of(raylet: int) -> list[psutil.Process]:
    """Return the processes that a raylet, by its process id, has started, and theirs; none if it is gone."""
    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started += psutil.Process(raylet).children(recursive=True)
    for note in (_fork_server().notes / str(raylet)).glob("*"):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = psutil.Process(int(note.name))
            started += [worker, *worker.children(recursive=True)]
    return started
