"""The fuzzing itself: a short round of each target, and that what breaks a contract is noticed."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.fuzz import cases
from tests.fuzz.cases import Cases, Find, checked
from tests.fuzz.targets import NAMES, target

# Besides the seeds; about two seconds of each.
NUM_CASES = {"decoder": 400, "manifest": 100, "inventory": 100, "configuration": 60, "checkpoint": 12}


@pytest.mark.parametrize("name", NAMES)
def test_a_round_of_each_target_has_no_find_and_many_outcomes(name: str) -> None:
    tried = Cases(target(name), seed=0)
    for _ in range(NUM_CASES[name] + len(target(name).seeds())):
        content = tried.next()
        try:
            tried.check(content)
        except Find as find:
            pytest.fail(f"case {tried.run}: {find.name}\n{find}\n{content[:2000]!r}")
    assert tried.num_outcomes > 5


def test_cases_of_a_seed_are_the_same_every_time() -> None:
    first, second = (Cases(target("manifest"), seed=1) for _ in range(2))
    assert [first.next() for _ in range(50)] == [second.next() for _ in range(50)]


def raises(content: bytes) -> str:
    raise KeyError("x")


def ends(content: bytes) -> str:
    sys.exit(3)


def prints(content: bytes) -> str:
    os.write(2, b"damaged")
    return ""


def warns(content: bytes) -> str:
    warnings.warn("damaged", UserWarning, stacklevel=1)
    return ""


def is_slow(content: bytes) -> str:
    assert sum(range(3_000_000))
    return "done"


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (raises, "KeyError-test_fuzz-py-raises-raises"),
        (ends, "SystemExit-test_fuzz-py-ends-ends"),
        (prints, "printed-damaged"),
        (warns, "printed-UserWarning-damaged"),
        (is_slow, "slow-done"),
    ],
)
def test_whatever_breaks_the_contract_is_a_find(
    check: Callable[[bytes], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "SECONDS", 0.01 if check is is_slow else 10)
    with pytest.raises(Find) as caught:
        checked(check, b"")
    assert caught.value.name == name


def test_a_case_that_takes_much_memory_is_a_find(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100.0, 100.0 + cases.MEGABYTES + 1])
    monkeypatch.setattr(cases, "_peak_megabytes", lambda: next(peaks))
    with pytest.raises(Find) as caught:
        checked(lambda content: "done", b"")
    assert caught.value.name == "memory-done"


def started(folder: Path, seconds: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.fuzz.run", "decoder", f"--seconds={seconds}", f"--finds={folder}"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_reports_that_nothing_was_found(tmp_path: Path) -> None:
    running = started(tmp_path, seconds=3)
    printed, complaints = running.communicate(timeout=120)
    assert (running.returncode, complaints) == (0, "")
    assert f"decoder: 0 finds in {tmp_path}/decoder" in printed


@pytest.mark.slow
def test_a_case_that_ends_the_process_is_a_find(tmp_path: Path) -> None:
    running = started(tmp_path, seconds=10)
    assert running.stdout is not None
    assert "decoder: 1 cases" in running.stdout.readline()
    (worker,) = psutil.Process(running.pid).children()
    worker.send_signal(signal.SIGSEGV)
    printed, _ = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "decoder: 1 finds" in printed
    assert [path.name for path in (tmp_path / "decoder").iterdir()] == ["crash-0.case"]
