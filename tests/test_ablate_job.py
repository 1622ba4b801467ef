"""jobs/ablate.py on a Ray cluster and a bucket, as a user runs it."""

import os
import subprocess

import pytest

from pipeline import storage
from pipeline.ablate.tables import RESULTS
from pipeline.output.parquet import read_table
from tests.conftest import REPOSITORY, RunJob, make_bucket
from tests.ray_head import RayHead
from tests.scene_data import TRAIN_OPTIONS, write_training_set

pytestmark = pytest.mark.slow

# Two trainings of three steps: the network without pooling, with and without the auxiliary head.
SMALL = [*TRAIN_OPTIONS[: TRAIN_OPTIONS.index("--workers.count")], "--optimization.epochs", "1", "--workers.count", "1"]
GRID = ["--auxiliary-weights", "0,0.4", "--seeds", "3"]
RUNS = ["resnet18-none-aux0.4-seed3", "resnet18-none-noaux-seed3"]


@pytest.fixture(scope="module")
def root(head: RayHead) -> str:
    return make_bucket()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset at a relative path, which means something else in the folders that Ray's processes run in."""
    folder = tmp_path_factory.mktemp("scenes")
    write_training_set(str(folder))
    return os.path.relpath(folder, REPOSITORY)


@pytest.fixture(scope="module")
def ablated(root: str, scenes: str, run_job: RunJob) -> subprocess.CompletedProcess[str]:
    done = ablate(root, scenes, run_job)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ablate(
    root: str, scenes: str, run_job: RunJob, *options: str, experiments: str = "auxiliary", output: str = "ablation"
) -> subprocess.CompletedProcess[str]:
    data = ["--data.root", scenes, "--output", f"{root}/{output}"]
    return run_job("jobs/ablate.py", *data, "--experiments", experiments, *SMALL, *GRID, *options)


def test_trains_each_setting_in_a_run_folder_and_says_little(
    root: str, ablated: subprocess.CompletedProcess[str]
) -> None:
    for run in RUNS:
        assert storage.exists(f"{root}/ablation/runs/{run}/best/model.safetensors")
        assert f"started: {run}" in ablated.stdout
        assert f"finished: {run} · mIoU" in ablated.stdout
    assert "Epoch" not in ablated.stdout, "a training's own lines belong to its own output"
    assert len(ablated.stdout.splitlines()) < 30
    assert "Traceback" not in ablated.stderr


def test_results_have_a_row_for_each_training(root: str, ablated: subprocess.CompletedProcess[str]) -> None:
    table = read_table(f"{root}/ablation/results.parquet")
    # Not the schemas as a whole: Parquet has names of its own for the entries of a map.
    assert table.schema.names == RESULTS.names
    assert [entry.metadata[b"description"] for entry in table.schema] == [
        entry.metadata[b"description"] for entry in RESULTS
    ]
    rows = sorted(table.to_pylist(), key=lambda row: row["run"])
    assert [row["run"] for row in rows] == RUNS
    assert [row["auxiliary_weight"] for row in rows] == [0.4, 0]
    for row in rows:
        assert (row["seed"], row["protocol"], row["steps"]) == (3, "single-scale", 3)
        assert (row["bins"], row["pooling"], row["experiments"]) == ([], None, ["auxiliary"])
        assert 0 < row["miou"] < row["pixel_accuracy"] < 1
        assert row["seconds"] > 0
        assert {name for name, _ in row["class_iou"]} >= {"sky", "road"}
    assert rows[0]["config_hash"] != rows[1]["config_hash"]


def test_prints_and_keeps_the_papers_table_with_its_numbers(
    root: str, ablated: subprocess.CompletedProcess[str]
) -> None:
    report = storage.read_bytes(f"{root}/ablation/ablation.md").decode()
    rows = {row["run"]: row for row in read_table(f"{root}/ablation/results.parquet").to_pylist()}
    ours = f"{100 * rows[RUNS[0]]['miou']:.2f}"
    (printed,) = [line for line in ablated.stdout.splitlines() if line.startswith("with AL (α = 0.4)")]
    (kept,) = [line for line in report.splitlines() if line.startswith("| with AL (α = 0.4)")]
    for line in (printed, kept):
        assert ours in line
        assert "37.23" in line
        assert "78.01" in line


def test_the_same_command_again_trains_nothing_and_says_the_same(
    root: str, scenes: str, ablated: subprocess.CompletedProcess[str], run_job: RunJob
) -> None:
    before = {uri: storage.read_bytes(uri) for uri in storage.find(f"{root}/ablation/runs")}
    again = ablate(root, scenes, run_job)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all 2 trainings are already completed" in again.stdout
    assert {uri: storage.read_bytes(uri) for uri in storage.find(f"{root}/ablation/runs")} == before
    assert again.stdout.partition("\n\n")[2] == ablated.stdout.partition("\n\n")[2]


def test_multi_scale_testing_of_what_is_trained_and_an_interrupted_training_goes_on(
    root: str, scenes: str, ablated: subprocess.CompletedProcess[str], run_job: RunJob
) -> None:
    """A second experiment adds its own training only; the one whose results are missing is not trained again."""
    storage.remove(f"{root}/ablation/runs/{RUNS[0]}/ablation.json")
    weights = storage.read_bytes(f"{root}/ablation/runs/{RUNS[0]}/last/model.safetensors")
    steps = storage.read_bytes(f"{root}/ablation/runs/{RUNS[0]}/history.jsonl").count(b'"kind": "step"')
    options = ["--backbones", "resnet18", "--scales", "1,1.5"]
    more = ablate(root, scenes, run_job, *options, experiments="auxiliary,scales")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "3 trainings of 3 settings, 1 already completed" in more.stdout
    assert f"started: {RUNS[1]}" not in more.stdout
    assert storage.read_bytes(f"{root}/ablation/runs/{RUNS[0]}/last/model.safetensors") == weights
    assert storage.read_bytes(f"{root}/ablation/runs/{RUNS[0]}/history.jsonl").count(b'"kind": "step"') == steps
    rows = read_table(f"{root}/ablation/results.parquet").to_pylist()
    tested = {(row["run"], row["protocol"]) for row in rows if "scales" in row["experiments"]}
    pspnet = "resnet18-b1236-average-dr-aux0.4-seed3"
    assert tested == {(pspnet, "single-scale"), (pspnet, "multi-scale")}
    assert "PSPNet(18) MS" in more.stdout


def test_another_base_recipe_is_refused_with_the_differing_keys(
    root: str, scenes: str, ablated: subprocess.CompletedProcess[str], run_job: RunJob
) -> None:
    other = ablate(
        root, scenes, run_job, "--optimization.learning-rate", "0.5", "--model.bins", "1", "--optimization.seed", "9"
    )
    assert other.returncode == 2
    assert (
        "contains an ablation of a different base recipe:\n  optimization.learning_rate: 0.01 before, 0.5 now"
        in other.stderr
    )
    assert "model.bins" not in other.stderr, "the grid sets the bins itself"
    assert "seed:" not in other.stderr


def test_more_trials_at_once_than_the_cluster_holds_are_refused(root: str, scenes: str, run_job: RunJob) -> None:
    done = ablate(root, scenes, run_job, "--trials-at-once", "3", output="too-many")
    assert done.returncode == 2
    assert "trials_at_once: 3 drivers with 1 CPU(s) each, 3 workers" in done.stderr
    assert "the cluster has 8" in done.stderr


def test_a_training_that_fails_is_named_and_leaves_the_results_of_the_others(
    root: str, scenes: str, ablated: subprocess.CompletedProcess[str], run_job: RunJob
) -> None:
    folder = f"{root}/ablation/runs/{RUNS[1]}"
    record, config = (storage.read_bytes(f"{folder}/{name}") for name in ("ablation.json", "config.yaml"))
    storage.remove(f"{folder}/ablation.json")
    storage.write_bytes(f"{folder}/config.yaml", config.replace(b"momentum: 0.9", b"momentum: 0.8"))
    failed = ablate(root, scenes, run_job)
    storage.write_bytes(f"{folder}/ablation.json", record)
    storage.write_bytes(f"{folder}/config.yaml", config)
    assert failed.returncode == 2
    assert f"1 of 2 trainings failed; the results of the others are in {root}/ablation/ablation.md" in failed.stderr
    assert f"  {RUNS[1]}: output {folder} contains a run with a different configuration" in failed.stderr
    assert "optimization.momentum: 0.8 before, 0.9 now" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [row["run"] for row in read_table(f"{root}/ablation/results.parquet").to_pylist()] == RUNS[:1]
