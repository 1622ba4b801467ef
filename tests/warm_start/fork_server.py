"""Import what Ray's workers import, and fork one for each command that sitecustomize.py passes on."""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

# What workers of this project import that is neither its own nor Ray's.
MODULES = (
    *("torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "torch.utils.data", "pandas"),
    *("pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet", "s3fs", "aiobotocore.session", "obstore", "safetensors"),
    *("cv2", "simplejpeg", "PIL.Image", "matplotlib.figure", "tensorboard", "jinja2", "pydantic_settings", "yaml"),
    *("requests", "jsonschema", "grpc", "google.protobuf.json_format", "tqdm", "psutil", "click"),
)


def serve(path: str, notes: Path) -> None:
    """Fork for each command that comes; return in the fork."""
    with socket.socket(socket.AF_UNIX) as server:
        # A client that finds the socket can connect.
        server.bind(f"{path}.new")
        server.listen(64)
        os.rename(f"{path}.new", path)
        while True:
            channel, _ = server.accept()
            with channel:
                _, files, *_ = socket.recv_fds(channel, 1, 3)
                command = json.loads(b"".join(iter(lambda channel=channel: channel.recv(65536), b"")))
            worker = os.fork()
            if worker == 0:
                return become(command, files)
            for file in files:
                os.close(file)
            note = notes / command["raylet"] / str(worker)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()


def become(command: dict[str, Any], files: list[int]) -> None:
    """Turn into the process that Ray has started: its output, environment, folder, priority and arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # a worker has a group of its own, which Ray ends with it
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    os.nice(command["niceness"] - os.nice(0))
    np.random.seed()  # as a new process would have it, and not as the fork before
    sys.argv = command["arguments"]
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [os.path.dirname(sys.argv[0]), *folders, *(path for path in sys.path[1:] if path not in folders)]


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a worker ended
    gc.collect()
    gc.freeze()
    serve(sys.argv[1], Path(sys.argv[2]))
    runpy.run_path(sys.argv[0], run_name="__main__")
