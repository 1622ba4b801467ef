"""Memory and CPU time of the processes of a command while it runs."""

import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil

GIB = 2**30


class Held(NamedTuple):
    """Memory and CPU time of one process."""

    name: str
    gib: float  # not shared with other processes
    shared_gib: float
    cpu_seconds: float


class Sample(NamedTuple):
    time: float
    processes: dict[int, Held]  # by process id

    @property
    def gib(self) -> float:
        return sum(process.gib for process in self.processes.values())


def watch(pid: int, samples: list[Sample], every: float = 10.0) -> None:
    """Sample a process and all its descendants every `every` seconds until it ends.

    Reading the unshared memory takes up to 30 ms per process, and Ray has twenty processes: sampling every second
    would distort the measurement.
    """
    root = psutil.Process(pid)
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        sample = Sample(time.time(), {})
        try:
            for process in [root, *root.children(recursive=True)]:
                try:
                    memory, spent = process.memory_full_info(), process.cpu_times()
                    held = Held(_name(process), memory.uss / GIB, memory.shared / GIB, spent.user + spent.system)
                    sample.processes[process.pid] = held
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
        except psutil.NoSuchProcess:
            return
        samples.append(sample)
        due = time.time() + every
        while time.time() < due and root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)


def _name(process: psutil.Process) -> str:
    """Return a name such as `ray::Board` or `gcs_server`; for Python, the script that it runs."""
    arguments = process.cmdline() or [process.name()]
    is_script = len(arguments) > 1 and Path(arguments[0]).name.startswith("python")
    script = next((argument for argument in arguments[1:] if argument.endswith(".py")), "python")
    return Path(script if is_script else arguments[0].split(" ")[0]).name


def cpu_seconds_per_image(samples: list[Sample], low: list[float], high: list[float]) -> dict[str, float]:
    """Return CPU s per image by process name, between two marks [time, images labeled]; omits negligible processes."""
    within = [sample for sample in samples if low[0] <= sample.time <= high[0]]
    if len(within) < 2:
        return {}
    first, last = within[0], within[-1]
    # The samples cover slightly less than the time between the marks.
    images = (high[1] - low[1]) * (last.time - first.time) / (high[0] - low[0])
    spent: defaultdict[str, float] = defaultdict(float)
    for pid, process in last.processes.items():
        before = first.processes[pid].cpu_seconds if pid in first.processes else 0.0
        spent[process.name] += (process.cpu_seconds - before) / images
    return {name: round(seconds, 4) for name, seconds in spent.items() if seconds >= 0.0005}
