"""Number of trainings that an ablation runs in parallel without a deadlock, and resuming of an ablation."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline import storage
from pipeline.cluster.connection import Node, Resources
from pipeline.config.jobs import AblateConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from tests.scene_data import write_training_set

OPTIONS = [
    *("--output", "out", "--data.root", "photos", "--model.backbone", "resnet18"),
    *("--data.classes", '[{"name": "sky", "color": [0, 0, 0]}, {"name": "road", "color": [1, 1, 1]}]'),
]


def configured(*options: str) -> AblateConfig:
    return load_settings(AblateConfig, [*OPTIONS, *options], prog="jobs/ablate.py")


def trials_at_once(config: AblateConfig, have: Resources) -> int:
    from pipeline.ablate.run import trials_at_once  # takes seconds: it imports Ray Tune

    return trials_at_once(config, have)


def cluster_of(cpus: int, gpus: int = 0) -> Resources:
    return Resources((Node(cpus, gpus),))


# A trial with one worker takes four CPUs: its driver, a worker, a task that decodes and a predictor.
@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "expected"),
    [
        ([], 8, 0, 2),
        ([], 11, 0, 2),
        (["--trials-at-once", "1"], 8, 0, 1),
        (["--workers.count", "2"], 8, 0, 1),
        (["--workers.count", "1,3"], 8, 0, 1),
        (["--workers.cpus", "4", "--validation.predictor-cpus", "4"], 20, 0, 2),
        (["--workers.gpu", "--workers.count", "2"], 64, 5, 2),
        (["--workers.gpu", "--validation.gpu"], 64, 5, 2),
    ],
)
def test_each_trial_gets_all_that_it_waits_for(options: list[str], cpus: int, gpus: int, expected: int) -> None:
    assert trials_at_once(configured(*options), cluster_of(cpus, gpus)) == expected


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "expected"),
    [
        ([], 3, 0, "need 4 CPUs and 0 GPUs"),
        (
            ["--trials-at-once", "3"],
            8,
            0,
            "3 workers with 1 CPU(s) each, 3 validation predictors with 1 CPU(s) each and 3 CPU(s)",
        ),
        (["--workers.gpu"], 8, 0, "need 4 CPUs and 1 GPUs"),
    ],
)
def test_more_than_the_cluster_holds_is_refused(options: list[str], cpus: int, gpus: int, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        trials_at_once(configured(*options), cluster_of(cpus, gpus))
    assert expected in str(caught.value)
    assert f"the cluster has {cpus} and {gpus}" in str(caught.value)


def test_a_completed_ablation_that_recorded_relative_weights_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.ablate.run import CONFIG, RECORD, _Grid, ablate

    monkeypatch.chdir(tmp_path)
    write_training_set("photos", num_train=4, num_val=2)
    options = ["--experiments", "auxiliary", "--auxiliary-weights", "0.4", "--seeds", "3", "--batch-size", "2"]
    weights = "models/{backbone}"
    config = configured(*options, "--weights", weights)
    num_images = {"train": 4, "val": 2}
    grid = _Grid(config, config.output, num_images)
    (trial,) = grid.trials
    metrics = {"miou": 0.5, "pixel_accuracy": 0.75, "iou": {"sky": 0.5, "road": 0.5}}
    record = {
        "config_hash": grid.config_hash(trial),
        "steps": 200,
        "seconds": 1.0,
        "tests": {name: {"protocol": test, "metrics": metrics} for name, test in grid.tests(trial).items()},
    }
    storage.write_bytes(storage.join(grid.run_folder(trial), RECORD), json.dumps(record).encode())
    recorded = config.model_dump(mode="json", exclude={"config", "verbose"}) | {"num_images": num_images}
    uri = storage.join(config.output, CONFIG)
    storage.write_bytes(uri, yaml.safe_dump(recorded | {"weights": weights}).encode())

    (table,) = ablate(config).tables
    assert "50.00" in table.markdown()
    assert yaml.safe_load(storage.read_bytes(uri))["weights"] == f"file://{tmp_path}/{weights}"
    with pytest.raises(UserError, match=r"weights: 'file://.*/models/\{backbone\}' before, None now"):
        ablate(configured(*options))
