"""Checks of a node's disk space, shared memory and open-file limit."""

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster import ray_internals
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult, size, spread

SHARED_MEMORY = "/dev/shm"
# Ray does not spill objects to a disk that is fuller than this, and tasks that need to spill fail.
FULL, NEARLY_FULL = 0.95, 0.85
FEW_FILES, TOO_FEW_FILES = 8192, 1024


@dataclass(frozen=True)
class Disk:
    """File system that Ray writes to; sizes in bytes."""

    path: str
    use: str
    total: int
    free: int

    @property
    def used(self) -> float:
        return 1 - self.free / self.total if self.total else 1.0


@dataclass(frozen=True)
class Machine:
    """Measurements of a node; sizes in bytes."""

    disks: tuple[Disk, ...]
    shared_memory: int | None  # size of /dev/shm; None if it does not exist
    store_folder: str | None  # of the object store; None if the raylet's options do not show it
    open_files: int


def measure_machine() -> Machine:
    """Measure the node on which this process, a Ray worker, runs."""
    options = ray_internals.raylet_options()
    logs = ray_internals.temporary_folder()
    spill = options.get("fallback_directory", logs)
    if Path(spill).is_relative_to(logs):
        disks = [_disk(logs, "logs and spilled objects")]
    else:
        disks = [_disk(logs, "logs"), _disk(spill, "spilled objects")]
    return Machine(
        disks=tuple(disks),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if os.path.isdir(SHARED_MEMORY) else None,
        store_folder=options.get("plasma_directory"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _disk(path: str, use: str) -> Disk:
    usage = shutil.disk_usage(path)
    return Disk(path, use, usage.total, usage.free)


def judge_disks(machines: dict[str, Machine]) -> list[CheckResult]:
    """Judge, by node, the disks where Ray spills objects and writes logs."""
    findings = []
    for name, machine in machines.items():
        for disk in machine.disks:
            message = f"{disk.path} ({disk.use}) has {size(disk.free)} free and is {disk.used:.0%} full"
            if disk.used >= FULL:
                findings.append(
                    CheckResult(
                        FAIL, f"{message}; Ray stops spilling at {FULL:.0%}: free space or use a larger disk", name
                    )
                )
            elif disk.used >= NEARLY_FULL:
                findings.append(
                    CheckResult(
                        WARN, f"{message}; Ray stops spilling at {FULL:.0%}: free space before a long run", name
                    )
                )
    least = min((disk for machine in machines.values() for disk in machine.disks), key=lambda disk: disk.free)
    return findings or [CheckResult(OK, f"at least {size(least.free)} free where Ray spills and logs ({least.path})")]


def judge_shared_memory(machines: dict[str, Machine], stores: dict[str, int]) -> list[CheckResult]:
    """Compare the size of /dev/shm with that of the object store, by node; sizes in bytes."""
    findings = []
    remedy = "give the container more (docker run --shm-size, or an emptyDir of medium Memory at /dev/shm), restart Ray"
    for name, machine in machines.items():
        shared, store = machine.shared_memory, stores[name]
        if machine.store_folder is not None and not machine.store_folder.startswith(SHARED_MEMORY):
            message = f"the object store ({size(store)}) is on a disk, in {machine.store_folder}, which is slow"
            has = f"{SHARED_MEMORY} has {size(shared)}" if shared is not None else f"there is no {SHARED_MEMORY}"
            findings.append(CheckResult(WARN, f"{message}; {has}: {remedy}", name))
        elif shared is not None and shared < store:
            message = (
                f"{SHARED_MEMORY} has {size(shared)} for an object store of {size(store)}; a process that writes more"
            )
            findings.append(CheckResult(FAIL, f"{message} is killed: {remedy}", name))
    message = f"object stores of {spread(stores.values(), size)}"
    sizes = [machine.shared_memory for machine in machines.values() if machine.shared_memory is not None]
    return findings or [CheckResult(OK, f"{message} in {SHARED_MEMORY} of {spread(sizes, size)}" if sizes else message)]


def judge_open_files(machines: dict[str, Machine]) -> list[CheckResult]:
    """Judge `ulimit -n` by node."""
    findings = []
    for name, machine in machines.items():
        message = f"the limit of open files (ulimit -n) is {machine.open_files:,}"
        remedy = "raise it to 65536 before ray start (ulimit -n 65536; docker run --ulimit nofile=65536)"
        if machine.open_files < TOO_FEW_FILES:
            findings.append(CheckResult(FAIL, f"{message}, too low for Ray's connections; {remedy}", name))
        elif machine.open_files < FEW_FILES:
            findings.append(CheckResult(WARN, f"{message}, low for a large cluster; {remedy}", name))
    least = min(machine.open_files for machine in machines.values())
    return findings or [CheckResult(OK, f"limit {least:,} (ulimit -n)")]
