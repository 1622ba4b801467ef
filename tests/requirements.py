"""Declare what tests need of the machine, so that a run without it skips them and says at its end how to get it."""

import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from models.inference.predictor import has_bfloat16, has_int8

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHARED_MEMORY = 2 * 2**30  # bytes: the object stores of the largest cluster that one test starts
PREFIX = "needs "


@dataclass(frozen=True)
class Requirement:
    """Something outside the project that a test needs.

    Attributes:
        name: what is needed.
        remedy: a command that installs it, or what to do where no command can.
        is_met: returns whether this machine has it.
    """

    name: str
    remedy: str
    is_met: Callable[[], bool]

    @property
    def reason(self) -> str:
        """The reason of a skipped test, which the end of the run lists."""
        return f"{PREFIX}{self.name}: {self.remedy}"

    @property
    def mark(self) -> pytest.MarkDecorator:
        """A mark that skips a test, or all tests of a module, where the requirement is not met."""
        return pytest.mark.skipif(not self.is_met(), reason=self.reason)

    def check(self) -> None:
        """Skip the test that asks, directly or through a fixture, where the requirement is not met."""
        if not self.is_met():
            pytest.skip(self.reason)


def browser_path() -> str | None:
    """Return the path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def free_shared_memory() -> int:
    """Return the bytes that are free in /dev/shm; 0 where it does not exist."""
    if not Path("/dev/shm").is_dir():
        return 0
    about = os.statvfs("/dev/shm")
    return about.f_bavail * about.f_frsize


def has_user_name() -> bool:
    """Return whether the current user has a name, which Swift's servers look up."""
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


CPU = torch.device("cpu")
BROWSER = Requirement("Chromium", "apt-get install chromium", lambda: browser_path() is not None)
C_COMPILER = Requirement("a C compiler", "apt-get install gcc libc6-dev", lambda: shutil.which("cc") is not None)
JAVA = Requirement("Java, for Spark", "apt-get install default-jre-headless", lambda: shutil.which("java") is not None)
SHM = Requirement(
    f"{SHARED_MEMORY // 2**30} GiB of free shared memory, for Ray",
    "mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g",
    lambda: free_shared_memory() >= SHARED_MEMORY,
)
USER_NAME = Requirement(
    "a user with a name, for Swift", "run as a user that /etc/passwd lists, or docker run --user", has_user_name
)
ROOT = Requirement("the right to mount a disk", "run the tests as root", lambda: os.geteuid() == 0)
PROC = Requirement("Linux", "run the tests on Linux", lambda: Path("/proc/self/status").exists())
BFLOAT16 = Requirement(
    "bfloat16 in oneDNN", "run the tests on a CPU with AVX-512 or AVX-NE-CONVERT", lambda: has_bfloat16(CPU)
)
INT8 = Requirement("int8 in oneDNN", "run the tests on a CPU with VNNI", lambda: has_int8(CPU))
