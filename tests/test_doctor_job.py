"""jobs/doctor.py as a user runs it, on clusters that are fine and on clusters that are not."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from pipeline import storage
from pipeline.demo.server_process import LOOPBACK, free_ports
from tests.conftest import REPOSITORY, RunJob
from tests.ray_head import ACCESS, ray_head
from tests.ray_nodes import add_node, raylet_pid
from tests.requirements import SHM
from tests.swift import SwiftServer

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMITS = {"HELLO_LIMIT": "run", "HEAD_SILENCE": "run", "LIMIT": "access"}
LINE = re.compile(r"(ok|warn|FAIL) +(nodes|[A-Za-z0-9-]+(?: [a-z]+)?)  +(.+)")


def told(output: str, level: str, check: str) -> list[str]:
    """Messages of a check's lines of a level."""
    found = [LINE.fullmatch(line) for line in output.splitlines()]
    return [line[3] for line in found if line and (line[1], line[2]) == (level, check)]


def assert_aligned(output: str) -> None:
    """Two lines while Ray starts, one for each finding and the last one, nothing of Ray's, and no colors."""
    loading, connecting, *findings, empty, result = output.splitlines()
    assert loading == "Loading Ray"
    assert connecting.startswith("Connecting to Ray at ")
    assert [line for line in findings if not LINE.fullmatch(line)] == []
    assert empty == ""
    assert re.fullmatch(r"\d+ failed, \d+ with warnings, \d+ ok; \d+ s", result)


def start_doctor(environment: dict[str, str], *arguments: str, **limits: float) -> subprocess.Popen[str]:
    """Start the job; `limits` are other values for how many seconds it waits, by the names in pipeline/doctor."""
    script = ["jobs/doctor.py"]
    if limits:
        set_limits = "".join(f"{module}.{name} = {limits[name]}\n" for name, module in LIMITS.items() if name in limits)
        run = "from jobs import doctor\ndoctor.run_job(doctor.main)"
        script = ["-c", f"from pipeline.doctor import access, run\n{set_limits}{run}"]
    return subprocess.Popen(
        [sys.executable, *script, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class FaultyCluster:
    """A head without CPUs, and nodes that each have a fault of their own."""

    def __init__(self, environment: dict[str, str], planted: Path) -> None:
        self._cluster = Cluster()
        self.add_node(environment, num_cpus=0, include_dashboard=False)
        # GPUs that are not there, too.
        self.wrong_secret = self.add_node(environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}, num_gpus=2)
        path = os.pathsep.join([str(planted), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.other_version = self.add_node(environment | {"PYTHONPATH": path})
        (closed,) = free_ports(1)
        self.no_storage = self.add_node(environment | dict.fromkeys(ENDPOINTS, f"http://{LOOPBACK}:{closed}"))
        self.environment = {**environment, **ACCESS, "RAY_ADDRESS": self._cluster.address}
        self.lost = False

    def add_node(self, environment: dict[str, str], num_cpus: int = 2, **options: Any) -> Any:
        node = add_node(self._cluster, num_cpus, environment, **options)
        self._cluster.wait_for_nodes(120)
        return node

    def lose(self, node: Any) -> None:
        """Kill a node's processes, as when its machine is taken away."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.lost = True

    def start_doctor(self, *arguments: str, **limits: float) -> subprocess.Popen[str]:
        return start_doctor(self.environment, *arguments, **limits)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def faulty(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyCluster]:
    SHM.check()
    planted = tmp_path_factory.mktemp("planted")
    (planted / "torchvision-9.9.dist-info").mkdir()
    (planted / "torchvision-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 9.9\n"
    )
    cluster = FaultyCluster(dict(swift.environment), planted)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_good_cluster_gives_exit_code_0_and_keeps_nothing(run_job: RunJob, bucket: str) -> None:
    done = run_job("jobs/doctor.py", "--storage", f"{bucket}/here", "--storage-megabytes", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(done.stdout, "FAIL", "nodes") == []
    assert told(done.stdout, "ok", "authentication") == ["a token is required; requests without one are rejected"]
    (dashboard,) = told(done.stdout, "ok", "dashboard")
    assert dashboard.endswith("and requires the token")
    for check in ("versions", "clock", "object store", "bfloat16", "all-reduce"):
        assert len(told(done.stdout, "ok", check)) == 1, f"{check}: {done.stdout}"
    assert told(done.stdout, "ok", "storage") == ["written, read back and deleted by the driver and 1 node(s)"]
    assert re.search(r"one node, 9 MB: up \d+, down \d+ MB/s", told(done.stdout, "ok", "bandwidth")[0])
    assert done.stdout.splitlines()[-1].endswith(" s")
    assert storage.find(bucket) == {}
    assert done.stderr == ""


def test_each_fault_of_a_cluster_is_told_and_hides_no_other(faulty: FaultyCluster, bucket: str) -> None:
    doctor = faulty.start_doctor("--storage", bucket, "--storage-megabytes", "1")
    output, _ = doctor.communicate(timeout=600)
    assert doctor.returncode == 1, output
    assert_aligned(output)
    wrong_secret = f"/{faulty.wrong_secret.node_id[:6]}"
    other_version = f"/{faulty.other_version.node_id[:6]}"

    (version,) = told(output, "FAIL", "versions")
    assert re.fullmatch(
        rf"torchvision is 9\.9 on \S+{other_version}, and [\d.]+\S* everywhere else; install the version .*", version
    )
    (gpus,) = told(output, "FAIL", "GPUs")
    assert wrong_secret in gpus
    assert "Ray offers 2 GPU(s), but " in gpus
    secret, endpoint = sorted(told(output, "FAIL", "storage"), key=lambda message: wrong_secret not in message)
    assert wrong_secret in secret
    assert "access denied" in secret
    assert "check the AWS credentials" in secret
    assert f"/{faulty.no_storage.node_id[:6]}: s3://" in endpoint
    assert "storage failed: Could not connect to the endpoint URL" in endpoint
    assert endpoint.endswith("; check AWS_ENDPOINT_URL, the region and the network there")
    assert "; 2 in parallel: " in told(output, "ok", "bandwidth")[0], "the other nodes are measured"
    (reduced,) = told(output, "ok", "all-reduce")
    assert reduced.startswith("gloo, 2 pair(s) of nodes, 32 MB: the sum is correct")
    assert told(output, "ok", "nodes") == ["4 answer, 6 CPUs, 2 GPUs"]
    assert "Traceback" not in output
    assert storage.find(bucket) == {}


@contextlib.contextmanager
def gpus_in_use(environment: dict[str, str]) -> Iterator[None]:
    """Another program's two GPUs, for as long as the block."""
    hold = "import ray; ray.init(); Held = ray.remote(num_gpus=2)(type('Held', (), {'wait': lambda self: 1})); "
    hold += "held = Held.remote(); ray.get(held.wait.remote()); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        holder.communicate("\n")


@pytest.fixture(scope="module")
def unlucky(faulty: FaultyCluster) -> tuple[int, str]:
    """Exit code and output of checks during which GPUs are in use and the node without storage is lost."""
    lines = []
    with gpus_in_use(faulty.environment):
        doctor = faulty.start_doctor()
        assert doctor.stdout is not None
        for line in doctor.stdout:
            lines.append(line)
            if "  versions  " in line and not faulty.lost:
                faulty.lose(faulty.no_storage)
        return doctor.wait(timeout=600), "".join(lines)


def test_gpus_that_are_in_use_are_told_and_not_waited_for(faulty: FaultyCluster, unlucky: tuple[int, str]) -> None:
    _, output = unlucky
    name = f"127.0.0.1/{faulty.wrong_secret.node_id[:6]}"
    assert told(output, "warn", "GPUs") == [
        f"{name}: 2 of 2 GPU(s) are in use and were not checked; run this again when they are free"
    ]
    assert told(output, "warn", "NCCL") == [f"{name}: not checked, since all its GPUs are in use"]


def test_a_node_that_is_lost_during_the_checks_costs_its_own_answers_alone(
    faulty: FaultyCluster, unlucky: tuple[int, str]
) -> None:
    code, output = unlucky
    assert_aligned(output)
    assert code == 1
    lost = f"/{faulty.no_storage.node_id[:6]}"
    assert any(lost in message and "was lost during the checks" in message for message in told(output, "FAIL", "nodes"))
    assert told(output, "ok", "all-reduce"), "the nodes that are left are checked"
    assert "Traceback" not in output


def test_a_node_that_hangs_is_given_up_and_the_others_are_checked(faulty: FaultyCluster) -> None:
    stopped = psutil.Process(raylet_pid(faulty.other_version))
    stopped.suspend()
    try:
        # Sooner than Ray gives it up, after about a minute: a node may hang in ways that Ray never notices.
        doctor = faulty.start_doctor(HELLO_LIMIT=20)
        output, _ = doctor.communicate(timeout=600)
    finally:
        stopped.resume()
    assert doctor.returncode == 1
    assert any(f"/{faulty.other_version.node_id[:6]}" in message for message in told(output, "FAIL", "nodes"))
    assert told(output, "ok", "all-reduce")
    assert "Traceback" not in output


def test_a_wrong_token_gives_exit_code_2_and_a_sentence(run_job: RunJob) -> None:
    done = run_job("jobs/doctor.py", RAY_AUTH_TOKEN="f" * 32)
    assert done.returncode == 2
    assert re.fullmatch(r"error: RAY_ADDRESS \S+: the cluster rejects this process's token; .*\n", done.stderr)


def test_an_address_where_nothing_listens_gives_exit_code_2_and_a_sentence(run_job: RunJob) -> None:
    (closed,) = free_ports(1)
    done = run_job("jobs/doctor.py", RAY_ADDRESS=f"{LOOPBACK}:{closed}")
    assert done.returncode == 2
    assert re.fullmatch(r"error: RAY_ADDRESS \S+: no Ray cluster answers at this address .*\n", done.stderr)


def test_a_head_that_is_lost_during_the_checks_ends_them_with_a_sentence(swift: SwiftServer, tmp_path: Path) -> None:
    with ray_head(tmp_path, swift.environment, num_cpus=2) as head:
        # Sooner than by default, since Ray keeps a core busy until it ends.
        doctor = start_doctor(head.environment, HEAD_SILENCE=6)
        assert doctor.stdout is not None
        started = [doctor.stdout.readline() for _ in range(3)]
        assert "nodes" in started[-1]
    output, _ = doctor.communicate(timeout=600)
    assert doctor.returncode == 1
    assert re.search(r"FAIL  the head at \S+ no longer answers; restart the cluster", output)
    assert "Traceback" not in output


def test_an_address_where_something_else_listens_ends_in_bounded_time() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        address = f"{LOOPBACK}:{listener.getsockname()[1]}"
        doctor = start_doctor({**ACCESS, "RAY_ADDRESS": address}, LIMIT=5)
        output, _ = doctor.communicate(timeout=600)
    assert doctor.returncode == 2
    said = r"error: RAY_ADDRESS \S+: the port is open, but no Ray cluster answers; .*\n"
    assert re.search(rf"^{said}\Z", output, re.MULTILINE), output
