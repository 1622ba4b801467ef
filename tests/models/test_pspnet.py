"""The network: shapes, validation, and the split of its parameters."""

import json
from dataclasses import replace

import pytest
import torch

from models.pspnet import BACKBONES, Architecture, Logits, PSPNet, feature_size

SMALL = Architecture("resnet18", 7)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_builds_and_splits_its_parameters_without_overlap(backbone: str) -> None:
    with torch.device("meta"):
        model = PSPNet(Architecture(backbone, 150, stem="deep"))
    split = [*model.backbone_parameters(), *model.head_parameters()]
    assert len(split) == len({id(p) for p in split}) == len(list(model.parameters()))


def test_resnet50_has_the_parameter_count_of_the_published_network() -> None:
    with torch.device("meta"):
        model = PSPNet(Architecture("resnet50", 150, stem="deep"))
    # The trainable tensors of hszhao/semseg's state dict for 150 classes, added up.
    assert sum(p.numel() for p in model.parameters()) == 49_180_908


def test_all_channels_but_those_of_images_and_classes_are_in_proportion_to_the_width() -> None:
    with torch.device("meta"):
        published, narrow = PSPNet(SMALL).state_dict(), PSPNet(replace(SMALL, width=16)).state_dict()
    assert published.keys() == narrow.keys()
    for name, weight in published.items():
        expected = [size if size in (3, 7) or axis > 1 else size // 4 for axis, size in enumerate(weight.shape)]
        assert list(narrow[name].shape) == expected, name


def test_training_returns_both_heads_and_evaluation_the_main_one() -> None:
    model = PSPNet(SMALL)
    images = torch.randn(2, 3, 65, 71)
    assert feature_size(65, 71) == (9, 9)
    out = model.train()(images)
    assert isinstance(out, Logits)
    assert out.main.shape == (2, 7, 9, 9)
    assert out.auxiliary is not None
    assert out.auxiliary.shape == (2, 7, 9, 9)
    assert model.eval()(images).shape == (2, 7, 9, 9)
    plain = PSPNet(replace(SMALL, auxiliary=False)).train()
    assert plain(images).auxiliary is None


@pytest.mark.parametrize(("shape", "message"), [((1, 3, 63, 64), "pad or enlarge"), ((1, 4, 64, 64), "RGB")])
def test_unusable_images_are_refused_with_a_way_out(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PSPNet(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet20"),
        ("num_classes", 1),
        ("num_classes", 65537),
        ("num_classes", 2.0),
        ("width", 7),
        ("width", 64.0),
        ("stem", "wide"),
        ("stem_channels", (64, 64)),
        ("bins", (1, 0)),
        ("bins", 6),
        ("pooling", "median"),
        ("dropout", 1.0),
        ("align_corners", 1),
    ],
)
def test_an_architecture_out_of_range_names_the_field_and_the_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} is .*; it must be") as error:
        replace(SMALL, **{field: value})
    assert repr(value) in str(error.value)


def test_architecture_survives_json() -> None:
    architecture = replace(SMALL, bins=(1, 4), stem="deep", stem_channels=(32, 32, 64), num_classes=65536)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    assert hash(Architecture("resnet18", 7, bins=[1, 2, 3, 6])) == hash(SMALL)  # type: ignore[arg-type]


def test_an_unknown_or_missing_architecture_field_is_named() -> None:
    with pytest.raises(ValueError, match="unknown field bin_sizes"):
        Architecture.from_dict(SMALL.to_dict() | {"bin_sizes": [1]})
    with pytest.raises(ValueError, match="num_classes missing"):
        Architecture.from_dict({"backbone": "resnet18"})
