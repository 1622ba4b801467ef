"""Let a shell's `python jobs/NAME.py ...` run in the test's own process, which is connected to Ray and has torch.

A command of the documentation is typed into a real shell. The `python` that the shell finds is a small program that
sends a job's arguments and working folder here, and prints what comes back; any other program runs as it is. A job
in a process of its own would take seconds to import what it needs, and so would its workers on the cluster.
"""

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

# Without site-packages it starts in a few milliseconds.
PROGRAM = """\
#!{python} -ISs
import json, os, socket, sys
if not (len(sys.argv) > 1 and sys.argv[1].startswith("jobs/")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect({address!r})
    channel.sendall(json.dumps([os.getcwd(), *sys.argv[1:]]).encode())
    channel.shutdown(socket.SHUT_WR)
    code, out, err = json.loads(b"".join(iter(lambda: channel.recv(65536), b"")))
sys.stdout.write(out)
sys.stdout.flush()
sys.stderr.write(err)
sys.exit(code)
"""


class PythonShim:
    """A folder of programs like that of a virtual environment, whose `python` sends jobs to this process."""

    def __init__(self, folder: Path, address: str, run: Run) -> None:
        self._run = run
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        folder.mkdir(parents=True)
        for program in Path(sys.executable).parent.iterdir():
            if not program.name.startswith("python"):
                (folder / program.name).symlink_to(program)
        for name in ("python", "python3"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)

    def close(self) -> None:
        self._listener.close()

    def shell(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in `folder` to its end, and in this process the jobs that it starts there."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
            try:
                self._serve(process, environment)
            finally:
                process.kill()
                process.wait()
            printed = []
            for file in (out, err):
                file.seek(0)
                printed.append(file.read())
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    def _serve(self, process: "subprocess.Popen[bytes]", environment: Mapping[str, str]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while process.poll() is None:
                if selector.select(timeout=0.02):
                    channel, _ = self._listener.accept()
                    with channel:
                        request = b"".join(iter(lambda channel=channel: channel.recv(65536), b""))
                        channel.sendall(json.dumps(self._answer(json.loads(request), environment)).encode())

    def _answer(self, request: list[str], environment: Mapping[str, str]) -> list[Any]:
        folder, script, *arguments = request
        with _as_if_there(folder, environment):
            done = self._run(script, *arguments)
        return [done.returncode, done.stdout, done.stderr]


@contextlib.contextmanager
def _as_if_there(folder: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Change to the folder and the environment of the shell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
