"""A training that loses workers, nodes, its driver or one storage request in ten ends as one that loses nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from pipeline import storage
from pipeline.demo.local_s3 import s3_environment
from pipeline.train.run_checkpoints import TRAINING_STATE
from pipeline.train.run_folder import recorded_checkpoints
from tests.conftest import REPOSITORY
from tests.faulty_storage import faulty_storage
from tests.finished_training import STEPS, FinishedTraining, with_changes
from tests.ray_head import ACCESS, RayHead, ray_head
from tests.ray_nodes import add_node, raylet_pid
from tests.swift import KEY, SECRET, SwiftServer
from tests.warm_start import workers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Run:
    """A jobs/train.py that is going on."""

    process: "subprocess.Popen[str]"
    output: str
    log: Path

    def printed(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Until the run has printed this."""
        self._until(lambda: text in self.printed())

    def wait_for_checkpoint(self) -> None:
        """Until Ray Train has recorded one; until then there is nothing to resume from."""
        self._until(lambda: bool(recorded_checkpoints(self.output)))

    def finish(self) -> str:
        """Wait for the end; what was printed."""
        assert self.process.wait(600) == 0, self.printed()
        return self.printed()

    def _until(self, holds: Any) -> None:
        deadline = time.monotonic() + 300
        while not holds():
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)


@pytest.fixture
def start(uninterrupted: FinishedTraining, tmp_path: Path) -> Iterator[Any]:
    """Start a run of the same configuration; it ends with the test."""
    runs: list[Run] = []

    def run(output: str, environment: dict[str, str], changes: dict[str, str] | None = None) -> Run:
        log = tmp_path / f"run-{len(runs)}.log"
        with log.open("w") as file:
            options = ["--data.root", uninterrupted.root, "--output", output, *with_changes(changes or {})]
            process = subprocess.Popen(
                [sys.executable, "jobs/train.py", *options],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        runs.append(Run(process, output, log))
        return runs[-1]

    yield run
    for one in runs:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_worker_and_then_the_driver_that_are_killed_while_storage_fails_one_request_in_ten(
    start: Any, uninterrupted: FinishedTraining, swift: SwiftServer, tmp_path: Path
) -> None:
    output = uninterrupted.beside("all-faults")
    with (
        faulty_storage(swift.environment["AWS_ENDPOINT_URL"]) as faulty,
        ray_head(tmp_path, s3_environment(faulty.endpoint, KEY, SECRET), dashboard=False) as head,
    ):
        environment = {**s3_environment(faulty.endpoint, KEY, SECRET), **head.environment}
        first = start(output, environment)
        first.wait_for_checkpoint()
        list(train_workers(head.environment["RAY_ADDRESS"]))[-1].kill()
        first.wait_for("Resumed after step")
        first.wait_for("step 1/4 · loss")  # of the second epoch
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        assert "Resumed after step" in start(output, environment).finish()
    assert min(faulty.refused, faulty.cut) > 5
    assert_ended_alike(output, uninterrupted.output)


# Each fault alone


@pytest.mark.exhaustive
def test_a_driver_that_is_killed_and_started_again_twice(
    start: Any, head: RayHead, uninterrupted: FinishedTraining
) -> None:
    output = uninterrupted.beside("driver")
    first = start(output, head.environment)
    first.wait_for_checkpoint()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = start(output, head.environment)
    second.wait_for("step 1/4 · loss")  # of the second or third epoch
    second.process.send_signal(signal.SIGKILL)
    second.process.wait()
    last = start(output, head.environment)
    printed = last.finish()
    assert "Resumed after step" in printed
    assert_ended_alike(output, uninterrupted.output)


@pytest.mark.exhaustive
def test_a_worker_that_is_killed(start: Any, head: RayHead, uninterrupted: FinishedTraining) -> None:
    output = uninterrupted.beside("worker")
    run = start(output, head.environment)
    run.wait_for_checkpoint()
    list(train_workers(head.environment["RAY_ADDRESS"]))[-1].kill()
    assert "Resumed after step" in run.finish()
    assert_ended_alike(output, uninterrupted.output)


@pytest.mark.exhaustive
def test_storage_that_fails_one_request_in_ten(start: Any, swift: SwiftServer, uninterrupted: FinishedTraining) -> None:
    output = uninterrupted.beside("faulty")
    with faulty_storage(swift.environment["AWS_ENDPOINT_URL"]) as faulty:
        # A Ray of its own, whose workers have the address of the faulty storage.
        environment = {**s3_environment(faulty.endpoint, KEY, SECRET), "RAY_ADDRESS": ""}
        start(output, environment).finish()
    assert min(faulty.refused, faulty.cut) > 5
    assert_ended_alike(output, uninterrupted.output)


@pytest.mark.exhaustive
def test_a_node_that_is_lost_and_fewer_workers_that_go_on(
    start: Any, uninterrupted: FinishedTraining, swift: SwiftServer
) -> None:
    """Elastic: two workers on two nodes, then one; the batches stay what they were, and every step is taken once."""
    output = uninterrupted.beside("node")
    with cluster_of_nodes([2, 3, 3]) as (cluster, nodes, environment):
        # One worker alone normalises what goes through the network at once, so two images or more.
        changes = {"--workers.count": "1,2", "--workers.cpus": "2", "--optimization.micro-batch": "2"}
        run = start(output, environment, changes)
        run.wait_for_checkpoint()
        cluster.remove_node(node_that_trains(cluster, nodes), allow_graceful=False)
        printed = run.finish()
    assert "Resumed after step" in printed
    state = training_state(output)
    assert state["steps"] == STEPS
    assert_no_orphans(output)


@pytest.mark.exhaustive
def test_a_node_that_is_about_to_be_taken_away_gets_a_checkpoint_first(
    start: Any, uninterrupted: FinishedTraining, swift: SwiftServer
) -> None:
    output = uninterrupted.beside("preempted")
    with cluster_of_nodes([2, 3, 3]) as (cluster, nodes, environment):
        # No checkpoint is due before the run's last steps, but for the one that the notice asks for.
        changes = {"--workers.count": "1,2", "--workers.cpus": "2", "--optimization.micro-batch": "2"}
        run = start(output, environment, {**changes, "--checkpoint-every": "11", "--optimization.epochs": "40"})
        run.wait_for("step 1/4 · loss")
        going = node_that_trains(cluster, nodes)
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ray"), "drain-node", "--address", cluster.address),
                *("--node-id", going.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
                *("--reason-message", "spot", "--deadline-remaining-seconds", "120"),
            ],
            check=True,
            env={**os.environ, **ACCESS},
        )
        run.wait_for("A node is about to be preempted: writing a checkpoint now")
        run.wait_for_checkpoint()
        cluster.remove_node(going, allow_graceful=False)
        run.wait_for("Resumed after step")


@pytest.mark.exhaustive
def test_a_node_that_comes_is_trained_on(start: Any, uninterrupted: FinishedTraining, swift: SwiftServer) -> None:
    """Ray Train looks once a minute whether an elastic training can have more workers."""
    output = uninterrupted.beside("grown")
    with cluster_of_nodes([2, 3]) as (cluster, _, environment):
        changes = {"--workers.count": "1,2", "--workers.cpus": "2", "--optimization.micro-batch": "2"}
        run = start(output, environment, {**changes, "--optimization.epochs": "1000"})
        run.wait_for_checkpoint()
        assert len(train_workers(cluster.address)) == 1
        add_node(cluster, 3)
        run.wait_for("Resumed after step")
        run.wait_for("step 1/4 · loss")
        workers = train_workers(cluster.address)
        assert len(workers) == len(set(workers.values())) == 2


def assert_ended_alike(output: str, other: str) -> None:
    """The same parameters, optimizer, moving average, step and best mIoU, bit for bit, and no checkpoint left over."""
    assert_equal(training_state(output), training_state(other), "")
    for name in ("best", "last"):
        for file in ("model.safetensors", "config.json"):
            assert storage.read_bytes(f"{output}/{name}/{file}") == storage.read_bytes(f"{other}/{name}/{file}"), file
    assert recorded_checkpoints(output) == recorded_checkpoints(other)
    assert_no_orphans(output)


def assert_no_orphans(output: str) -> None:
    folders = {uri.removeprefix(f"{output}/").split("/")[0] for uri in storage.find(output)}
    assert {name for name in folders if name.startswith("checkpoint_0")} == recorded_checkpoints(output)


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def training_state(output: str) -> dict[str, Any]:
    with storage.local_copy(f"{output}/checkpoint_{STEPS:08d}") as folder:
        return torch.load(folder / TRAINING_STATE, weights_only=True)


def train_workers(cluster: str) -> dict[psutil.Process, int]:
    """The training workers of the cluster at this address, and of no other on this machine, and the raylet of each."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.name() == "raylet" and f"--gcs-address={cluster}" in process.cmdline():
                for worker in workers_of(process.pid):
                    if any("ray::RayTrainWorker" in part for part in worker.cmdline()):
                        found[worker] = process.pid
    assert found, "no training worker is running"
    return found


def node_that_trains(cluster: Cluster, nodes: list[Any]) -> Any:
    """A node, other than the head, on which a worker trains."""
    raylets = set(train_workers(cluster.address).values())
    return next(node for node in nodes[1:] if raylet_pid(node) in raylets)


class cluster_of_nodes:
    """A Ray cluster of several nodes with so many CPUs on this machine; the first is the head."""

    def __init__(self, cpus: list[int]) -> None:
        self.cpus = cpus

    def __enter__(self) -> tuple[Cluster, list[Any], dict[str, str]]:
        self.cluster = Cluster()
        options: list[dict[str, Any]] = [{"include_dashboard": False}, *[{}] * (len(self.cpus) - 1)]
        nodes = [add_node(self.cluster, cpus, **more) for cpus, more in zip(self.cpus, options, strict=True)]
        self.cluster.wait_for_nodes()
        return self.cluster, nodes, {**ACCESS, "RAY_ADDRESS": self.cluster.address}

    def __exit__(self, *_: Any) -> None:
        self.cluster.shutdown()
