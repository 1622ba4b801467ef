"""The folder of a training run, and which configurations resume it."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.train.run_folder import CONFIG, SNAPSHOT, claim_run
from tests.pipeline.run_records import run_config

NUM_IMAGES = {"train": 40, "val": 8}


def test_a_run_that_recorded_relative_weights_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config("run").model_copy(update={"weights": (tmp_path / "models" / "resnet50").as_uri()})
    recorded = claim_run("run", config, NUM_IMAGES)
    (tmp_path / "run" / CONFIG).write_text(yaml.safe_dump(recorded | {"weights": "models/resnet50"}))
    result = {"checkpoint_dir_name": "checkpoint_00000010"}
    snapshot = {"checkpoint_results": [result], "pending_training_results": [], "latest_checkpoint_result": result}
    (tmp_path / "run" / SNAPSHOT).write_text(json.dumps(snapshot))

    assert claim_run("run", config, NUM_IMAGES)["weights"] == config.weights
    other = config.model_copy(update={"weights": (tmp_path / "models" / "resnet101").as_uri()})
    with pytest.raises(UserError, match=r"weights: 'file://.*/resnet50' before, 'file://.*/resnet101' now"):
        claim_run("run", other, NUM_IMAGES)
