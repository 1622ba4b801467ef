"""Pretrained weights: those of a checkpoint that training starts from."""

import json
from pathlib import Path

import pytest
import torch

import models
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.pretrained import take_weights
from pipeline.config.data import ClassEntry, DataConfig
from pipeline.errors import UserError

NAMES = ["sky", "road", "car"]


def data(names: list[str] = NAMES) -> DataConfig:
    return DataConfig(root="set", classes=[ClassEntry(name=name, color=(0, 0, 0)) for name in names])


def network(**changes: object) -> models.PSPNet:
    settings = {"backbone": "resnet18", "num_classes": 3, "width": 16, **changes}
    return models.PSPNet(models.Architecture(**settings))  # type: ignore[arg-type]


def written(model: models.PSPNet, folder: Path, has_trained_heads: bool = True) -> str:
    models.save(folder, model, models.Metadata(NAMES, [[0, 0, 0]] * 3, has_trained_heads=has_trained_heads))
    return str(folder)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_of_the_same_classes_everything_is_taken(tmp_path: Path) -> None:
    source, target = network(), network()
    assert take_weights(target, written(source, tmp_path), data()) == ["backbone", "head", "auxiliary"]
    assert same(source, target)


def test_of_other_classes_the_backbone_alone_is_taken(tmp_path: Path) -> None:
    source, target = network(), network()
    head_before = target.head.conv.weight.clone()
    assert take_weights(target, written(source, tmp_path), data(["heaven", "road", "car"])) == ["backbone"]
    assert same(source.backbone, target.backbone)
    assert torch.equal(target.head.conv.weight, head_before)


def test_another_pyramid_brings_backbone_and_auxiliary_head(tmp_path: Path) -> None:
    source, target = network(), network(bins=(1,))
    assert take_weights(target, written(source, tmp_path), data()) == ["backbone", "auxiliary"]
    assert same(source.auxiliary, target.auxiliary)  # type: ignore[arg-type]


def test_another_backbone_is_refused_with_the_keys_to_change(tmp_path: Path) -> None:
    source = network(width=20, stem="deep", stem_channels=(16, 16, 32), contract_dilation=True)
    with pytest.raises(UserError) as raised:
        take_weights(network(), written(source, tmp_path), data())
    message = str(raised.value)
    assert "model.width: 20 in weights, 16 here" in message
    assert "model.stem: 'deep' in weights, 'plain' here" in message
    assert "model.stem_channels: [16, 16, 32] in weights, [64, 64, 128] here" in message
    assert "model.contract_dilation: True in weights, False here" in message
    assert "model.backbone" not in message


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        take_weights(network(), str(tmp_path / "nowhere"), data())


def test_a_key_that_means_nothing_to_a_deep_backbone_does_not_keep_its_weights_out(tmp_path: Path) -> None:
    source, target = network(backbone="resnet50", dilate_second=False), network(backbone="resnet50")
    assert "backbone" in take_weights(target, written(source, tmp_path), data())


def test_untrained_heads_are_not_taken_so_that_seeds_decide_them(tmp_path: Path) -> None:
    source, target = network(), network(contract_dilation=True)
    head_before = target.head.conv.weight.clone()
    assert take_weights(target, written(source, tmp_path, has_trained_heads=False), data()) == ["backbone"]
    assert same(source.backbone, target.backbone)
    assert torch.equal(target.head.conv.weight, head_before)


def test_nothing_is_labeled_with_untrained_heads(tmp_path: Path) -> None:
    uri = written(network(), tmp_path, has_trained_heads=False)
    with pytest.raises(UserError, match=r"holds a backbone whose heads are untrained; train .*--weights"):
        Checkpoint.load(uri, long_side=None)


def test_checkpoints_of_earlier_releases_have_trained_heads(tmp_path: Path) -> None:
    uri = written(network(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["has_trained_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Checkpoint.load(uri, long_side=None).metadata.has_trained_heads
