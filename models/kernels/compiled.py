"""C sources in this folder, compiled at first use for the machine's CPU and shared by its processes.

The name of a compiled library in the cache folder contains a hash of source, compiler, flags and CPU, and a hash of
its own bytes. So a library built for something else is never found, and a damaged one is never loaded. Processes that
start at the same time may each compile the same library, which is harmless.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent
# Only SIMD pragmas, without the OpenMP runtime: a second pool of threads would compete with torch's.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fopenmp-simd")
# The first one that the compiler accepts is used. gcc avoids 512-bit vectors by default.
TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
TIMEOUT = 120


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """Return `models/kernels/NAME.c` as a loaded library, or None, after one warning, if it cannot be compiled.

    The compiler is `cc`, or the command in the environment variable CC. The cache folder is SCENEPARSE_CACHE, by
    default ~/.cache/sceneparse. If it is not writable, or writable by others than this user and root, a folder in the
    system's temporary folder is used.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    source = SOURCES / f"{name}.c"
    if shutil.which(compiler[0]) is None:
        problem = f"there is no C compiler {compiler[0]!r}; install gcc or clang, or set CC to a compiler"
    else:
        try:
            return _load(source, compiler)
        except (OSError, subprocess.SubprocessError) as error:
            problem = str(getattr(error, "stderr", None) or error).strip()
    warnings.warn(
        f"models/kernels/{source.name} could not be compiled, so slower torch code is used instead: {problem}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def in_threads(function: Callable[..., Any], *arguments: Any, count: int) -> None:
    """Call `function(*arguments, first, end)` on parts of the range 0 to `count`, one for each of torch's threads."""
    num_threads = max(1, min(torch.get_num_threads(), count))
    edges = [count * n // num_threads for n in range(num_threads + 1)]
    first, *others = pairwise(edges)
    running = [threads(num_threads - 1).submit(function, *arguments, *part) for part in others]
    function(*arguments, *first)
    for future in running:
        future.result()


class _Pools(threading.local):
    def __init__(self) -> None:
        self.by_count: dict[int, ThreadPoolExecutor] = {}


_pools = _Pools()


def threads(count: int) -> ThreadPoolExecutor:
    """Return this thread's pool of `count` more threads; calls into the library release the GIL."""
    pools = _pools.by_count
    if count not in pools:
        pools[count] = ThreadPoolExecutor(count, "native")
    return pools[count]


def _load(source: Path, compiler: list[str]) -> ctypes.CDLL:
    prefix = f"{source.stem}-{_key(source, compiler)}-"
    problem: OSError = PermissionError("no cache folder is writable; set SCENEPARSE_CACHE to a writable folder")
    for folder in _folders():
        for path in sorted(folder.glob(f"{prefix}*.so")):
            if _is_private(path) and path.name == _library_name(prefix, path):
                return ctypes.CDLL(str(path))
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = _compile(source, compiler, Path(scratch))
                path = folder / _library_name(prefix, made)
                os.replace(made, path)
            return ctypes.CDLL(str(path))
        except OSError as error:  # The folder is full, read-only, or mounted noexec: try the next one.
            problem = error
    raise problem


def _key(source: Path, compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=TIMEOUT).stdout
    command = repr((compiler, FLAGS, TARGETS)).encode()
    headers = [path.read_bytes() for path in sorted(source.parent.glob("*.h"))]
    return hashlib.sha256(b"\0".join([source.read_bytes(), *headers, version, command, _cpu()])).hexdigest()[:16]


def _cpu() -> bytes:
    """Return the properties of the CPU that determine the instructions of "native"."""
    try:
        about = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        about = []
    fields = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    lines = sorted({line for line in about if line.startswith(fields)})
    return "\n".join([platform.machine(), platform.processor(), *lines]).encode()


def _folders() -> Iterator[Path]:
    """Yield cache folders that only this user can write, in order of preference; create missing ones."""
    chosen = os.environ.get("SCENEPARSE_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "sceneparse")
    for folder in (Path(chosen).resolve(), Path(tempfile.gettempdir()) / f"sceneparse-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(folder):
                yield folder
        except OSError:
            continue


def _is_private(path: Path) -> bool:
    """Return True if `path` is not a link and only this user and root can have written it."""
    about = path.lstat()
    written_by_others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or about.st_uid not in (0, os.getuid())
    return not stat.S_ISLNK(about.st_mode) and not written_by_others


def _library_name(prefix: str, path: Path) -> str:
    return f"{prefix}{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _compile(source: Path, compiler: list[str], folder: Path) -> Path:
    made = folder / f"{source.stem}.so"
    for target in TARGETS:
        command = [*compiler, *FLAGS, *target, "-o", str(made), str(source), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if result.returncode == 0:
            made.chmod(0o700)
            return made
    raise subprocess.CalledProcessError(result.returncode, command, result.stdout, result.stderr)
