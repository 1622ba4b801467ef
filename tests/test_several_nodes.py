"""Labelling spreads over a cluster's nodes, never starves on a small one, and goes on when nodes go and come."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cluster.connection import Node
from tests.conftest import run_process
from tests.node_network import NETWORKS, Network, node_network
from tests.nodes_driver import NOTES
from tests.requirements import SHM
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set
from tests.several_nodes import Job, Labelling, Nodes, cluster_of
from tests.test_segment_job import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), SHM.mark]

Start = Callable[..., Labelling]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the job; it ends with the test."""
    started: list[Labelling] = []

    def run(nodes: Nodes | Network, photos: int, *options: str) -> Labelling:
        started.append(Labelling(tmp_path, nodes.environment, photos, *options))
        return started[-1]

    yield run
    for one in started:
        one.kill()


@pytest.mark.parametrize("cpus", [pytest.param([2], marks=pytest.mark.exhaustive), [1, 1, 1]], ids=str)
def test_no_stage_starves_on_a_small_cluster(cpus: list[int], start: Start, tmp_path: Path) -> None:
    with cluster_of(tmp_path, *map(Node, cpus)) as nodes:
        run = start(nodes, 80)
        assert run.status() == 0, run.printed
    run.check()


def test_predictors_take_the_nodes_with_gpus_one_that_comes_and_make_up_for_one_that_is_lost(
    start: Start, tmp_path: Path
) -> None:
    with cluster_of(tmp_path, Node(2), Node(2, gpus=1)) as nodes:
        run = start(nodes, 600, "--gpu")
        run.wait_for_parts(1)
        nodes.add(Node(2, gpus=1))
        run.wait_until(lambda: nodes.that_did("predict") == {1, 2})
        nodes.kill(1)
        assert run.status() == 0, run.printed
        assert nodes.that_did("predict") == {1, 2}
        assert 0 in nodes.that_did("decode")  # perhaps late, on a busy machine
    assert "the cluster has grown and now fits 2 predictors instead of 1" in run.printed
    run.check()


def test_a_checkpoint_is_evaluated_on_the_nodes_with_gpus(tmp_path: Path) -> None:
    write_training_set(str(tmp_path / "scenes"), num_train=1, num_val=20)
    save_checkpoint(tmp_path / "checkpoint")
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--data.root", str(tmp_path / "scenes"), "--gpu"]
    with cluster_of(tmp_path, Node(2), Node(2, gpus=1)) as nodes:
        job = Job(nodes.environment, tmp_path / "driver.log", "evaluate", *options)
        assert job.status() == 0, job.printed
        assert nodes.that_did("predict") == {1}
    assert "mIoU" in job.printed


@pytest.mark.exhaustive
def test_a_cluster_that_has_become_too_small_for_its_predictors_goes_on_with_fewer(
    start: Start, tmp_path: Path
) -> None:
    # Those of the lost nodes are started again on the first one, and take the CPUs that would feed them.
    with cluster_of(tmp_path, Node(4), Node(4), Node(4)) as nodes:
        run = start(nodes, 300)
        run.wait_until(lambda: nodes.that_did("predict") == {0, 1, 2})
        run.wait_for_parts(1)
        nodes.kill(1)
        nodes.kill(2)
        assert run.status() == 0, run.printed
    assert "the cluster has become too small for 3 predictor(s)" in run.printed
    assert "Traceback" not in run.printed
    run.check()


@pytest.mark.exhaustive
def test_a_run_without_any_gpu_left_ends_and_goes_on_when_there_is_one(start: Start, tmp_path: Path) -> None:
    with cluster_of(tmp_path, Node(2), Node(2, gpus=1)) as nodes:
        run = start(nodes, 200, "--gpu")
        run.wait_for_parts(1)
        nodes.kill(1)
        assert run.status() == 2, run.printed
        assert "error: gpu: the cluster has no GPU" in run.printed
        assert "Traceback" not in run.printed
        nodes.add(Node(2, gpus=1))
        run = start(nodes, 200, "--gpu")
        assert run.status() == 0, run.printed
        assert "200 images in the input, 0 already completed" not in run.printed
    run.check()


@pytest.mark.exhaustive
@NETWORKS.mark
def test_a_node_that_is_cut_off_for_longer_than_ray_waits(start: Start, tmp_path: Path) -> None:
    """Its writers still reach the output, as nodes may whose network is cut in two."""
    (tmp_path / "notes").mkdir()
    with node_network(tmp_path, {NOTES: str(tmp_path / "notes")}) as network:
        away, _ = network.add(cpus=2, gpus=1), network.add(cpus=2, gpus=1)
        run = start(network, 400, "--gpu")
        run.wait_until(lambda: len(list((tmp_path / "notes").glob("predict.*"))) == 2)
        run.wait_for_parts(1)
        away.cut_off()
        time.sleep(20)
        away.reconnect()
        assert run.status() == 0, run.printed
    run.check()


@pytest.mark.exhaustive
@NETWORKS.mark
def test_local_files_that_another_node_does_not_see_are_refused(tmp_path: Path) -> None:
    here = tmp_path / "here"
    write_training_set(str(here / "scenes"), num_train=4, num_val=1)
    write_photos(str(here / "photos"), 1)
    save_checkpoint(here / "checkpoint")
    best, root = ["--checkpoint", str(here / "checkpoint")], ["--root", str(here / "scenes")]
    label = ["--input", str(here / "photos"), "--output", str(tmp_path / "labels")]
    runs = (
        ("segment_bucket", [*label, *best], ["image", "checkpoint"]),
        ("evaluate", [*root, *best], ["checkpoint", "image", "annotation"]),
        ("train", [*root, *TRAIN_OPTIONS, "--output", str(here / "run")], ["output", "image", "annotation"]),
        ("validate_dataset", [*root, *TRAIN_OPTIONS[:2]], ["image", "annotation"]),
    )
    with node_network(tmp_path, {}) as network:
        network.add(cpus=2, without=here)
        for job, options, missing in runs:
            done = run_process(f"jobs/{job}.py", *options, **network.environment)
            assert done.returncode == 2, done.stdout + done.stderr
            first, *files, last = done.stderr.splitlines()
            assert first == "error: local files of this node are missing on other nodes of the cluster:"
            line = re.compile(rf"  (\w+) {here.as_uri()}/.+: not on 198\.18\.\d+\.2")
            assert [found[1] for file in files if (found := line.fullmatch(file))] == missing
            assert last == "Put them in a bucket, or on a file system that all nodes mount at the same path"
