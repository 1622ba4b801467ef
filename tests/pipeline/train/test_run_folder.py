"""The folder of a training run, and which configurations resume it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.train.run_folder import CONFIG, SNAPSHOT, claim_run
from tests.pipeline.run_records import run_config

NUM_IMAGES = {"train": 40, "val": 8}


def record(run: Path, resolved: dict[str, Any]) -> None:
    """Make a run's folder that has a checkpoint and this configuration."""
    (run / CONFIG).write_text(yaml.safe_dump(resolved))
    result = {"checkpoint_dir_name": "checkpoint_00000010"}
    snapshot = {"checkpoint_results": [result], "pending_training_results": [], "latest_checkpoint_result": result}
    (run / SNAPSHOT).write_text(json.dumps(snapshot))


def test_a_run_of_a_release_without_a_key_resumes_with_the_key_s_default(tmp_path: Path) -> None:
    config = run_config(str(tmp_path))
    resolved = claim_run(str(tmp_path), config, NUM_IMAGES)
    for section, key in (("augment", "photometric"), ("loss", "normalization"), ("optimization", "steps")):
        del resolved[section][key]
    del resolved["data"]["sampling_factors"]
    record(tmp_path, resolved)
    claim_run(str(tmp_path), config, NUM_IMAGES)
    record(tmp_path, resolved)
    other = config.model_copy(update={"augment": config.augment.model_copy(update={"photometric": True})})
    with pytest.raises(UserError, match=r"augment\.photometric: False before, True now"):
        claim_run(str(tmp_path), other, NUM_IMAGES)


def test_a_run_that_recorded_relative_weights_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config("run").model_copy(update={"weights": (tmp_path / "models" / "resnet50").as_uri()})
    recorded = claim_run("run", config, NUM_IMAGES)
    record(tmp_path / "run", recorded | {"weights": "models/resnet50"})

    assert claim_run("run", config, NUM_IMAGES)["weights"] == config.weights
    other = config.model_copy(update={"weights": (tmp_path / "models" / "resnet101").as_uri()})
    with pytest.raises(UserError, match=r"weights: 'file://.*/resnet50' before, 'file://.*/resnet101' now"):
        claim_run("run", other, NUM_IMAGES)
