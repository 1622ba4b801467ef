"""Pass the command of a Ray worker to fork_server.py.

Python imports a module of this name whenever it starts, here in every process of a cluster, so it imports little.
"""

import os
import sys

SOCKET = "WARM_START_SOCKET"
PROGRAMS = ("/ray/_private/workers/default_worker.py", "/ray/_private/workers/setup_worker.py")


def hand_over() -> None:
    """Let a fork run this process's command, and end; return, to run it here, if the server is not ready yet."""
    import array
    import json
    import socket

    command = {
        "arguments": sys.orig_argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.nice(0),
        "raylet": os.environ["RAY_RAYLET_PID"],
    }
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(os.environ[SOCKET])
        except OSError:
            return
        files = array.array("i", [0, 1, 2])
        channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        channel.sendall(json.dumps(command).encode())
    os._exit(0)


if SOCKET in os.environ and len(sys.orig_argv) > 1 and sys.orig_argv[1].endswith(PROGRAMS):
    hand_over()
