"""The dilated backbone against torchvision's ResNets."""

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from models.pspnet import feature_size
from models.resnet import STAGE_BLOCKS, DilatedResNet


@pytest.fixture(scope="module")
def torchvision_models() -> ModuleType:
    """Return torchvision's, which take seconds to import."""
    return importlib.import_module("torchvision.models")


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_plain_stem_has_the_names_and_shapes_of_torchvision(depth: int, torchvision_models: ModuleType) -> None:
    with torch.device("meta"):
        ours = DilatedResNet(depth).state_dict()
        theirs = getattr(torchvision_models, f"resnet{depth}")().state_dict()
    expected = {name: t.shape for name, t in theirs.items() if not name.startswith("fc.")}
    assert {name: t.shape for name, t in ours.items()} == expected


def test_depth_269_has_its_blocks_and_the_deep_stem_three_convolutions() -> None:
    with torch.device("meta"):
        model = DilatedResNet(269, stem="deep", stem_channels=(32, 32, 64))
    assert tuple(len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4)) == STAGE_BLOCKS[269]
    stem = [model.get_parameter(f"conv{i}.weight").shape for i in (1, 2, 3)]
    assert stem == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    assert model.res4_channels == 1024
    assert model.res5_channels == 2048


@pytest.mark.parametrize("stem", ["plain", "deep"])
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (71, 66), (73, 80)])
def test_features_are_an_eighth_of_the_image_rounded_up(stem, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        res4, res5 = DilatedResNet(18, stem)(torch.empty(1, 3, *size))
    assert res4.shape == (1, 256, *feature_size(*size))
    assert res5.shape == (1, 512, *feature_size(*size))


@torch.no_grad()
def test_contracted_dilation_computes_what_torchvisions_dilated_resnet_does(torchvision_models: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = torchvision_models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    ours = DilatedResNet(50, contract_dilation=True).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 65, 81)
    outputs: dict[str, Tensor] = {}
    for name in ("layer3", "layer4"):
        stage = getattr(theirs, name)
        stage.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    theirs(images)
    res4, res5 = ours(images)
    torch.testing.assert_close(res4, outputs["layer3"])
    torch.testing.assert_close(res5, outputs["layer4"])


def test_first_block_keeps_the_stage_dilation_unless_contracted() -> None:
    def dilations(contract: bool) -> list[int]:
        with torch.device("meta"):
            model = DilatedResNet(50, contract_dilation=contract)
        return [block.conv2.dilation[0] for stage in (model.layer3, model.layer4) for block in stage[:2]]

    assert dilations(False) == [2, 2, 4, 4]
    assert dilations(True) == [1, 2, 2, 4]


def test_an_unknown_depth_or_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="depth 20"):
        DilatedResNet(20)
    with pytest.raises(ValueError, match="stem 'wide'"):
        DilatedResNet(18, stem="wide")  # type: ignore[arg-type]
