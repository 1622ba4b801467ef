"""What the pipeline adds to a checkpoint."""

from importlib import metadata

import pytest

import models
from pipeline.checkpoints.checkpoint import Checkpoint, code_version
from pipeline.config.data import EvalDataConfig
from pipeline.errors import UserError


def test_the_version_of_the_code_is_that_of_the_installation() -> None:
    assert code_version() == metadata.version("sceneparse") != ""


def test_code_that_is_a_jobs_working_directory_alone_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose environment has the dependencies: a training must not fail at its first checkpoint."""
    monkeypatch.setattr(metadata.Distribution, "from_name", _nothing_is_installed)
    assert code_version() == ""


def _nothing_is_installed(name: str) -> metadata.Distribution:
    raise metadata.PackageNotFoundError(name)


def test_a_dataset_that_does_not_go_with_the_checkpoint_is_told_with_what_to_set() -> None:
    about = models.Metadata(["sky", "road"], [[0, 0, 0], [9, 9, 9]])
    loaded = Checkpoint(network=None, metadata=about, long_side=None, model_id="")
    assert loaded.data_config("best", EvalDataConfig(root="set")).ignore_index == 255
    with pytest.raises(UserError, match=r"checkpoint best: .*ignore_index 1 .*; set --data\.ignore-index or --data"):
        loaded.data_config("best", EvalDataConfig(root="set", ignore_index=1))
