"""Checkpoints as the pipeline loads and writes them."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import models
from pipeline.checkpoints.checkpoint import Checkpoint, code_version
from pipeline.config.bands import Rendering
from pipeline.config.data import DataConfig, EvalDataConfig
from pipeline.errors import UserError
from pipeline.train.run_checkpoints import checkpoint_metadata


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


def test_bands_that_override_the_checkpoints_make_another_model_and_the_same_ones_do_not(tmp_path: Path) -> None:
    trained = Rendering.of("3,2,1", "0,3000")
    network = models.PSPNet(models.Architecture("resnet18", 2, auxiliary=False, width=16))
    about = models.Metadata(["sky", "road"], [[0, 0, 0], [9, 9, 9]], preprocessing=trained.options)
    models.save(tmp_path, network, about)
    own = Checkpoint.load(str(tmp_path), None)
    assert own.rendering == trained
    assert own.data_config("best", EvalDataConfig(root="set", bands="1")).rendering == Rendering.of("1", "0,3000")
    assert Checkpoint.load(str(tmp_path), None, rendering=trained).model_id == own.model_id
    other = Checkpoint.load(str(tmp_path), None, rendering=Rendering.of("4,3,2", None))
    assert other.rendering == Rendering.of("4,3,2", "0,3000")
    assert other.model_id != own.model_id


def test_a_training_writes_its_bands_to_the_checkpoint_and_nothing_without_them() -> None:
    data = {"root": "set", "classes": ["sky", "road"]}
    plain = checkpoint_metadata(DataConfig.model_validate(data), 1)
    assert plain.preprocessing == {"long_side": None}
    selected = checkpoint_metadata(DataConfig.model_validate({**data, "bands": "3,2,1"}), 1)
    assert selected.preprocessing == {"long_side": None, "bands": "3,2,1"}


@pytest.mark.parametrize("preprocessing", [{"bands": "red"}, {"bands": 3}, {"value_range": "5"}])
def test_options_of_a_checkpoint_that_cannot_be_read_are_an_error(preprocessing: dict[str, Any]) -> None:
    about = models.Metadata(["sky", "road"], [[0, 0, 0], [9, 9, 9]], preprocessing=preprocessing)
    with pytest.raises(UserError, match=r"preprocessing in config\.json is damaged"):
        _ = Checkpoint(network=None, metadata=about, long_side=None, model_id="").rendering
