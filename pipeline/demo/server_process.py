"""Server processes that never outlive the process that started them.

Each server runs under a small guard process: this file, run as a script. The guard holds one end of a pipe and
stops the server when the other end closes. The operating system closes it when the owner ends, even by SIGKILL.
This does not depend on an exit handler, or on Linux's parent-death signal, which would also fire when only the
thread that started the server ends.

This module imports only the standard library, because the guard starts without site-packages.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
# Below the ephemeral ports of Linux and macOS, so that a restarted server finds its port free, and above the
# ports of Ray's workers.
PORTS = range(20_000, 32_768)
SECONDS_TO_END_IN_PEACE = 5.0


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports of the loopback interface. Raises RuntimeError if there are too few."""
    with contextlib.ExitStack() as held_until_all_are_found:
        found: list[int] = []
        # Not the global generator, because processes with the same seed would all choose the same ports.
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if len(found) == count:
                return found
            probe = held_until_all_are_found.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                found.append(port)
    raise RuntimeError(f"fewer than {count} free ports on {LOOPBACK} between {PORTS.start} and {PORTS.stop - 1}")


class ServerProcess:
    """HTTP server in a process that can be started, stopped or killed, and started again.

    Args:
        name: name in error messages.
        command: program and arguments.
        url: address that answers a GET once the server is ready.
        log: file to which the server's output is appended.
        environment: added to this process's environment variables.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        url: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.url = url
        self.log = log
        self.environment = dict(environment or {})
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and return immediately; call `wait_until_it_answers` next."""
        if self._guard is not None:
            raise RuntimeError(f"{self.name} is already started")
        with self.log.open("ab") as output:
            self._guard = subprocess.Popen(
                # -I and -S keep this folder and site-packages off the path, so the guard is ready in 50 ms.
                [sys.executable, "-I", "-S", __file__, *self.command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                bufsize=0,
                env={**os.environ, **self.environment},
                # Ctrl-C in a terminal must reach only the owner, which then stops the server itself.
                start_new_session=True,
            )

    def wait_until_it_answers(self, seconds: float = 30.0) -> None:
        """Wait until the server answers a GET of `url`.

        Raises:
            RuntimeError: the process ended, or did not answer within `seconds`. The message contains its last
                output.
        """
        deadline = time.monotonic() + seconds
        while True:
            answered = _answers(self.url)
            # Checked after the request: if the process has ended, the answer came from another server.
            status = self._guard.poll() if self._guard else None
            if self._guard is None or status is not None:
                raise RuntimeError(self._failure(f"ended with status {status} before it answered"))
            if answered:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(self._failure(f"did not answer within {seconds:g} s"))
            time.sleep(0.03)

    def stop(self) -> None:
        """Stop the process (SIGTERM, then SIGKILL) and wait until it has ended. No effect if already stopped."""
        self._end(b"")

    def kill(self) -> None:
        """Kill the process with SIGKILL, like a crash or the OOM killer, and wait until it has ended."""
        self._end(b"k")

    def _end(self, request: bytes) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        # A broken pipe means that the server has already ended.
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write(request)
        guard.stdin.close()
        guard.wait()

    def _failure(self, what: str) -> str:
        output = self.log.read_text(errors="replace")[-3000:].strip() if self.log.exists() else ""
        return f"{self.name} {what} at {self.url}. Its last output ({self.log}):\n{output or '(none)'}"


def _answers(url: str) -> bool:
    """Return True if an HTTP server answers a GET of `url` with any status. Never uses an HTTP proxy."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=5)
    try:
        connection.request("GET", address.path or "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _guard(command: Sequence[str]) -> int:
    """Run `command` until it ends or standard input closes, and return its exit status as a shell would."""
    # A separate process group, so that the server's child processes end with it.
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_owner() -> None:
        # os.read instead of sys.stdin, because the interpreter aborts at exit if a thread holds sys.stdin's lock.
        if not os.read(0, 1):
            _signal_group(server, signal.SIGTERM)
            time.sleep(SECONDS_TO_END_IN_PEACE)
        _signal_group(server, signal.SIGKILL)

    threading.Thread(target=end_with_owner, daemon=True).start()
    status = server.wait()
    return status if status >= 0 else 128 - status


def _signal_group(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Only before the server has been waited for: afterwards, its id may belong to another process.
    if server.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
