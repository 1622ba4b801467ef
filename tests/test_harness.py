"""Check the test harness: scripts in this process, requirements, the report of a run, and servers that end with it."""

import ast
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.demo.server_process import free_ports
from tests.conftest import REPOSITORY, run_process
from tests.in_process import run_script
from tests.python_shim import PythonShim
from tests.ray_head import RayHead
from tests.requirements import Requirement
from tests.warm_start import workers_of

MISSING = Requirement("a unicorn", "apt-get install unicorn", lambda: False)


@pytest.mark.parametrize(
    "arguments", [["jobs/query.py", "--list"], ["jobs/query.py", "no-such-output", "failures"], ["jobs/query.py", "-h"]]
)
def test_a_script_in_this_process_gives_what_a_process_gives(arguments: list[str]) -> None:
    here, there = run_script(*arguments), run_process(*arguments)
    assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr)


def script(folder: Path, code: str) -> str:
    """Write a script; returns its path as `run_script` takes it."""
    (folder / "script.py").write_text(code)
    return os.path.relpath(folder / "script.py", REPOSITORY)


def test_everything_that_is_printed_is_kept_and_the_streams_are_put_back(tmp_path: Path) -> None:
    code = """
import logging, os, sys
logging.getLogger("tests.harness").addHandler(logging.StreamHandler())
logging.getLogger("tests.harness").error("by a logger")
print("by Python", input())
os.write(2, b"past Python\\n")
sys.exit("the end")
"""
    before = sys.stdout, sys.stderr, sys.stdin
    done = run_script(script(tmp_path, code), typed="typed\n")
    assert (done.returncode, done.stdout) == (1, "by Python typed\n")
    assert {"by a logger", "past Python", "the end"} == set(done.stderr.splitlines())
    assert (sys.stdout, sys.stderr, sys.stdin) == before
    (handler,) = logging.getLogger("tests.harness").handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr, "a handler that writes to a closed file"
    logging.getLogger("tests.harness").removeHandler(handler)


def test_a_fault_of_a_script_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_script(script(tmp_path, "1 / 0"))


def test_a_shells_python_runs_jobs_here_and_anything_else_as_it_is(tmp_path: Path) -> None:
    asked = []

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        asked.append((command, Path.cwd()))
        return subprocess.CompletedProcess(command, 3, "out\n", "err\n")

    shim = PythonShim(tmp_path / "bin", str(tmp_path / "socket"), run)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    try:
        code = "python jobs/a.py 'x y' 2>&1 | tr a-z A-Z; python -c 'import pytest; print(pytest.__name__)'; exit 5"
        done = shim.shell(["bash", "-c", code], tmp_path, environment)
    finally:
        shim.close()
    assert (done.returncode, done.stdout) == (5, "OUT\nERR\npytest\n")
    assert asked == [(("jobs/a.py", "x y"), tmp_path)]


def test_a_test_without_what_it_needs_is_skipped_with_the_remedy() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs a unicorn: apt-get install unicorn"):
        MISSING.check()
    assert MISSING.mark.kwargs["reason"] == MISSING.reason


INNER = """
import pytest
from tests.requirements import Requirement

MISSING = Requirement("a unicorn", "apt-get install unicorn", lambda: False)

@pytest.mark.parametrize("n", range(2))
@MISSING.mark
def test_one(n): ...

def test_two():
    MISSING.check()

def test_three(): ...
"""


def test_the_end_of_a_run_lists_what_was_missing_once(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(REPOSITORY)]
    done = subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 3 skipped" in done.stdout
    assert done.stdout.count("   3 tests need a unicorn: apt-get install unicorn") == 1


OWNER = """
import sys, time
from pathlib import Path
from tests.swift import swift_server
with swift_server(Path(sys.argv[1])):
    print("serving", flush=True)
    time.sleep(600)
"""


def test_processes_that_seed_their_generators_alike_choose_different_ports() -> None:
    chosen = []
    for _ in range(2):
        random.seed(0)
        chosen.append(free_ports(5))
    assert chosen[0] != chosen[1]


FAILING_JOB = """
import os, ray, sys

@ray.remote
class Held:
    def pid(self):
        return os.getpid()

def work():
    held = Held.remote()
    print(ray.get(held.pid.remote()))
    raise ValueError

def main():
    try:
        work()
    except ValueError as error:
        kept = error
        sys.exit(2)

main()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_an_actor_of_a_failed_job_in_this_process_ends_as_with_a_process(tmp_path: Path) -> None:
    done = run_script(script(tmp_path, FAILING_JOB))
    assert done.returncode == 2
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


WORKER = """
import ray
ray.init(log_to_driver=False, logging_level="error")

@ray.remote(runtime_env={"env_vars": {"SCENEPARSE_TEST": "from the job"}})
class Worker:
    def seen(self):
        import os, psutil, random, sys
        import numpy as np
        parents = [process.pid for process in psutil.Process().parents()]
        raylet, variable = int(os.environ["RAY_RAYLET_PID"]), os.environ["SCENEPARSE_TEST"]
        numbers = (random.random(), np.random.random())
        return os.getpid(), "torch" in sys.modules, raylet in parents, raylet, variable, os.getpgrp(), numbers

workers = [Worker.remote() for _ in range(2)]
print(ray.get([worker.seen.remote() for worker in workers]))
input()
"""


@pytest.mark.slow
def test_workers_of_a_test_head_are_forked_and_else_like_any(head: RayHead) -> None:
    environment = {**os.environ, **head.environment}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        seen = ast.literal_eval(driver.stdout.readline())
        numbers = [numbers for *_, numbers in seen]
        assert len(set(sum(numbers, ()))) == 4, "generators that go on alike"
        for pid, has_torch, below_raylet, raylet, variable, group, _ in seen:
            assert (has_torch, below_raylet, variable, group) == (True, False, "from the job", pid)
            assert psutil.Process(pid) in workers_of(raylet)
        driver.stdin.close()


@pytest.mark.slow
def test_servers_of_a_run_that_is_killed_end_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    owner = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "serving\n"
    servers = psutil.Process(owner.pid).children(recursive=True)
    assert len(servers) >= 4
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30
    while any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
