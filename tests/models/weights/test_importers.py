"""Published weights compute here what they compute where they were published, and foreign files do no harm."""

import importlib.util
import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import models
from models import Architecture, Metadata, PSPNet
from models.weights.importers import Imported, import_weights, palette
from tests.models.reference_networks import MMSeg, Semseg
from tests.models.seeded import seeded_image, seeded_state_dict

REPOSITORY = Path(__file__).parents[3]
SHARED = REPOSITORY.parent / "shared" / "parity"
STORED = Path(__file__).parents[1] / "parity"
TOLERANCE = 1e-4
State = dict[str, Tensor]


@pytest.fixture
def import_state(tmp_path: Path) -> Callable[..., Imported]:
    """Import `state` from a file of its own, and leave no hundred megabytes behind."""

    def run(state: State, content: dict[str, Any] | None = None, **options: Any) -> Imported:
        path = tmp_path / "weights.pth"
        torch.save(state if content is None else content | {"state_dict": state}, path)
        try:
            return import_weights(path, **options)
        finally:
            path.unlink()

    return run


def shapes_of(network: Callable[..., nn.Module], *arguments: Any, **options: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {name: list(t.shape) for name, t in network(*arguments, **options).state_dict().items()}


def hollow(shapes: dict[str, list[int]]) -> State:
    """Tensors of these shapes, each of one value of its own, that take no space in memory or in a file."""
    return {
        name: torch.tensor(0) if name.endswith("tracked") else torch.tensor(index / 1000).expand(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }


def small() -> State:
    return hollow(shapes_of(MMSeg, 18, 3))


@torch.inference_mode()
def outputs(model: PSPNet, images: Tensor) -> dict[str, Tensor]:
    features: list[Tensor] = []
    with model.backbone.register_forward_hook(lambda _module, _inputs, output: features.extend(output)):
        logits = model(images)
    assert model.auxiliary is not None
    return {"logits": logits[0], "auxiliary": model.auxiliary(features[0])[0]}


@torch.inference_mode()
def reference_outputs(
    network: Callable[..., nn.Module], arguments: tuple, options: dict, state: State, images: Tensor
) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = network(*arguments, **options).eval()
    model.load_state_dict(state, assign=True)
    logits, auxiliary = model(images)
    return {"logits": logits[0], "auxiliary": auxiliary[0]}


def assert_same(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    for name, value in found.items():
        reference = torch.as_tensor(expected[name])
        difference = ((value - reference).abs().max() / reference.abs().max()).item()
        assert value.shape == reference.shape
        assert difference < TOLERANCE, f"{name} differs by {difference:.1e} of the largest value"


def assert_same_weights(found: Imported, expected: Imported) -> None:
    """Compare names and values, by the hash that identifies a model."""
    assert models.model_id(found.model, found.metadata) == models.model_id(expected.model, expected.metadata)


# The function.


@pytest.fixture(scope="module", params=["semseg", "mmseg"])
def published(request: pytest.FixtureRequest) -> tuple[type, State, Tensor, dict[str, Any]]:
    """Reference network, weights, image, and what the published implementation computes from them."""
    if not SHARED.is_dir():
        pytest.skip("no outputs of the published implementations beside the repository")
    spec = importlib.util.spec_from_file_location("seeded_weights", SHARED / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    name = f"{request.param}_pspnet50_150"
    state = theirs.seeded_state_dict(json.loads((SHARED / f"{name}.json").read_text()))
    arrays = np.load(SHARED / f"{name}.npz")
    network, size = {"semseg": (Semseg, (233, 297)), "mmseg": (MMSeg, (240, 304))}[request.param]
    return network, state, theirs.seeded_image(*size), {"logits": arrays["logits"], "auxiliary": arrays["aux"]}


@pytest.mark.slow
def test_an_import_computes_what_the_published_implementation_does(published, import_state) -> None:
    _, state, images, expected = published
    assert_same(outputs(import_state(state).model, images), expected)


@pytest.mark.slow
def test_the_reference_network_computes_what_the_published_implementation_does(published) -> None:
    network, state, images, expected = published
    assert_same(reference_outputs(network, (50, 150), {}, state, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semseg50", "mmseg50"])
def test_an_import_computes_the_stored_outputs(name: str, import_state) -> None:
    state = seeded_state_dict(json.loads((STORED / f"{name}.json").read_text()))
    assert_same(outputs(import_state(state).model, seeded_image(65, 73)), dict(np.load(STORED / f"{name}.npz")))


@pytest.mark.parametrize(("name", "network"), [("semseg50", Semseg), ("mmseg50", MMSeg)])
def test_the_stored_names_are_those_of_the_reference_network(name: str, network: type) -> None:
    assert json.loads((STORED / f"{name}.json").read_text()) == shapes_of(network, 50, 5)


def config(decode_head: str = "", backbone: str = "", rest: str = "") -> dict[str, Any]:
    """A checkpoint's "meta" with a configuration as MMSegmentation 1.x writes it."""
    text = (
        "norm_cfg = dict(type='SyncBN')\n"
        "model = dict(type='EncoderDecoder',\n"
        "    backbone=dict(type='ResNetV1c', contract_dilation=True, dilations=(1, 1, 2, 4), norm_cfg=norm_cfg,\n"
        f"        strides=(1, 2, 1, 1), style='pytorch', {backbone}),\n"
        f"    decode_head=dict(type='PSPHead', {decode_head}), auxiliary_head=dict(align_corners=False))\n{rest}"
    )
    return {"meta": {"cfg": text}}


OTHERWISE = {"align_corners": True, "bins": (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("network", "depth", "options", "content", "arguments"),
    [
        (MMSeg, 18, {}, None, {}),
        (MMSeg, 18, {"has_deep_stem": False, "align_corners": True}, None, {"align_corners": True}),
        (MMSeg, 18, OTHERWISE, config("align_corners=True, pool_scales=(2, 3, 4, 5)"), {}),
        pytest.param(MMSeg, 34, {"bins": (2, 3, 4, 5)}, None, {"bins": (2, 3, 4, 5)}, marks=pytest.mark.slow),
        pytest.param(MMSeg, 101, {}, None, {}, marks=pytest.mark.slow),
        pytest.param(Semseg, 101, {"bins": (1, 2, 4)}, None, {"bins": [1, 2, 4]}, marks=pytest.mark.slow),
    ],
)
def test_an_import_computes_what_the_reference_network_does(
    network: type, depth: int, options: dict, content: dict | None, arguments: dict, import_state
) -> None:
    state = seeded_state_dict(shapes_of(network, depth, 7, **options))
    images = seeded_image(64, 81) if network is MMSeg else seeded_image(65, 81)
    imported = import_state(state, content, **arguments)
    assert imported.model.architecture.backbone == f"resnet{depth}"
    assert imported.model.architecture.num_classes == 7
    assert not imported.model.training
    assert_same(outputs(imported.model, images), reference_outputs(network, (depth, 7), options, state, images))


@pytest.mark.parametrize("depth", [18, 34, 50, pytest.param(152, marks=pytest.mark.slow)])
def test_torchvisions_resnet_becomes_the_backbone(depth: int, import_state) -> None:
    torchvision_models = pytest.importorskip("torchvision.models")
    state = hollow(shapes_of(getattr(torchvision_models, f"resnet{depth}")))
    imported = import_state(state, classes=["road", "sky"])
    assert imported.kind == "ImageNet ResNet"
    assert imported.model.architecture == Architecture(f"resnet{depth}", 2)
    for name, tensor in imported.model.backbone.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not imported.metadata.has_trained_heads
    assert "untrained" in imported.notes[0]
    assert imported.notes[1] == "dropped 2 (fc.weight, fc.bias)"


def test_new_heads_are_always_the_same_and_other_random_numbers_go_on_undisturbed(import_state) -> None:
    with torch.device("meta"):
        backbone = models.PSPNet(Architecture("resnet18", 2, stem="deep")).backbone.state_dict()
    state = hollow({name: list(tensor.shape) for name, tensor in backbone.items()})
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = import_state(state, classes=["a", "b"], bins=(1, 2))
    assert torch.equal(torch.rand(3), expected)
    second = import_state(state, classes=["c", "d"], bins=(1, 2))
    assert first.model.architecture == Architecture("resnet18", 2, stem="deep", bins=(1, 2))
    assert models.model_id(first.model, first.metadata) == models.model_id(second.model, second.metadata)


def renamed_stem(state: State, names: dict[str, str]) -> State:
    """Return the backbone of MMSegmentation's state dict with other prefixes of its stem."""
    backbone = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    longest_first = sorted(names, key=len, reverse=True)
    starts = {name: next((start for start in longest_first if name.startswith(start)), "") for name in backbone}
    return {names.get(starts[name], "") + name.removeprefix(starts[name]): t for name, t in backbone.items()}


TIMM_STEM = {f"stem.{n}.": f"conv1.{n}." for n in (0, 1, 3, 4, 6)} | {"stem.7.": "bn1."}


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    ("names", "kind"), [({}, "of MMSegmentation"), (TIMM_STEM, "of timm")], ids=["MMSegmentation", "timm"]
)
def test_a_deep_backbone_is_that_of_the_whole_network(
    depth: int, names: dict[str, str], kind: str, import_state
) -> None:
    state = hollow(shapes_of(MMSeg, depth, 3))
    whole = import_state(state)
    alone = import_state(renamed_stem(state, names) | {"fc.weight": torch.zeros(1000, 512)}, classes=["road", "sky"])
    assert kind in alone.kind
    assert alone.notes[1] == "dropped 1 (fc.weight)"
    assert alone.model.architecture.stem_channels == whole.model.architecture.stem_channels
    assert not alone.metadata.has_trained_heads
    expected = whole.model.backbone.state_dict()
    found = alone.model.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_shortcuts_with_average_pooling_are_refused(import_state) -> None:
    state = renamed_stem(hollow(shapes_of(MMSeg, 50, 3)), TIMM_STEM)
    pooled = {
        name.replace("downsample.1.", "downsample.2.").replace("downsample.0.", "downsample.1."): tensor
        for name, tensor in state.items()
    }
    with pytest.raises(ValueError, match=r"layer2\.0\.downsample\.2\.\* belongs to shortcuts with average pooling"):
        import_state(pooled, classes=["road", "sky"])


# What a file may look like.


def test_an_import_can_be_saved_and_loaded(import_state, tmp_path: Path) -> None:
    imported = import_state(small())
    models.save(tmp_path / "saved", imported.model, imported.metadata)
    loaded, metadata = models.load(tmp_path / "saved")
    assert metadata == imported.metadata
    assert models.model_id(loaded, metadata) == models.model_id(imported.model, imported.metadata)


def test_the_ways_to_wrap_a_state_dict_make_no_difference(import_state, tmp_path: Path) -> None:
    state = small()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    imports = [
        import_state(state),
        import_state({f"module.{name}": tensor for name, tensor in state.items()}),
        import_state(OrderedDict(state), {"epoch": 200, "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}),
        import_state({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}),
        import_state({name: nn.Parameter(tensor) if tensor.ndim else tensor for name, tensor in state.items()}),
        import_weights(tmp_path / "weights.safetensors"),
    ]
    (tmp_path / "weights.safetensors").unlink()
    assert len({models.model_id(imported.model, imported.metadata) for imported in imports}) == 1
    assert all(p.requires_grad for p in imports[-2].model.parameters())


PREFIXED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, then distributed": lambda name: f"module._orig_mod.{name}",
    "distributed, then compiled": lambda name: f"_orig_mod.module.{name}",
    "with a compiled backbone and blocks": lambda name: name.replace("backbone.", "backbone._orig_mod.").replace(
        "conv1.", "conv1._orig_mod."
    ),
    "of Lightning": lambda name: f"model.{name}",
    "of Lightning, compiled": lambda name: f"net._orig_mod.{name}",
    "of Lightning, twice wrapped": lambda name: f"model.net.{name}",
}


@pytest.mark.parametrize("wrapping", PREFIXED)
def test_prefixes_of_wrappers_make_no_difference(wrapping: str, import_state) -> None:
    plain = import_state(small())
    wrapped = import_state({PREFIXED[wrapping](name): tensor for name, tensor in small().items()})
    assert_same_weights(wrapped, plain)
    assert wrapped.notes == plain.notes


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_is_found_under_its_usual_keys_and_the_rest_is_listed(container: str, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]}
    torch.save({"epoch": 3, container: small(), "optimizer": optimizer, "meta": {}}, tmp_path / "weights.pth")
    assert import_weights(tmp_path / "weights.pth").notes[-1] == "ignored beside the weights: epoch, optimizer"


def test_class_weights_of_losses_are_dropped_and_listed(import_state) -> None:
    state = {f"model.{name}": tensor for name, tensor in small().items()}
    state |= {"criterion.weight": torch.ones(3), "model.loss_fn.bce.pos_weight": torch.ones(3, 1, 1)}
    imported = import_state(state)
    assert_same_weights(imported, import_state(small()))
    assert imported.notes[-1] == "dropped 2 (criterion.weight, model.loss_fn.bce.pos_weight)"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("criterion.weight", (4, 3, 1, 1)), ("criterion.centers", (3,)), ("teacher.weight", (3,)), ("ema_head", (3,))],
)
def test_tensors_that_belong_to_no_known_loss_or_parameter_are_refused(name: str, shape: tuple, import_state) -> None:
    with pytest.raises(ValueError, match=rf"1 \({name}\) left over"):
        import_state(small() | {name: torch.ones(shape)})


def test_two_networks_in_one_file_are_refused(import_state) -> None:
    twice = {f"{wrapper}.{name}": tensor for name, tensor in small().items() for wrapper in ("model", "ema_model")}
    with pytest.raises(ValueError, match="unknown kind of weights"):
        import_state(twice)
    name = "backbone.stem.0.weight"
    with pytest.raises(ValueError, match=rf"{name} and _orig_mod\.{name} are both {name} without the prefixes"):
        import_state(small() | {f"_orig_mod.{name}": small()[name]})


def averages_of(state: State) -> State:
    """Moving averages as mmcv's EMAHook registers them: of parameters alone, each as one buffer of the network."""
    return {
        f"ema_{name.replace('.', '_')}": torch.tensor(-1.0).expand(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def test_moving_averages_are_imported_only_if_asked_for(import_state) -> None:
    state = small()
    both = state | averages_of(state)
    plain = import_state(both)
    assert_same_weights(plain, import_state(state))
    assert "moving averages" in plain.notes[-1]
    assert f"dropped {len(averages_of(state))} (ema_backbone_stem_0_weight, " in plain.notes[-2]

    averaged = import_state(both, ema=True)
    assert all((parameter == -1).all() for parameter in averaged.model.parameters())
    for buffer, expected in zip(averaged.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(buffer, expected)
    assert averaged.notes[-1].startswith(f"dropped {len(averages_of(state))} (backbone.stem.0.weight, ")


def test_missing_moving_averages_are_named(import_state) -> None:
    state = small()
    averages = averages_of(state)
    del averages["ema_decode_head_conv_seg_bias"]
    with pytest.raises(ValueError, match=r"1 \(decode_head\.conv_seg\.bias\) without a moving average \(ema_\*\)"):
        import_state(state | averages, ema=True)
    with pytest.raises(ValueError, match="without a moving average"):
        import_state(state, ema=True)


def test_weights_of_half_precision_become_float32(import_state) -> None:
    model = import_state({name: t.half() if t.is_floating_point() else t for name, t in small().items()}).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}


def test_a_network_without_auxiliary_head_or_pyramid_is_taken_as_it_is(import_state) -> None:
    state = {name: tensor for name, tensor in small().items() if not name.startswith("auxiliary_head.")}
    assert not import_state(state).model.architecture.auxiliary
    state = {name: tensor for name, tensor in hollow(shapes_of(Semseg, 50, 3)).items() if not name.startswith("ppm.")}
    state["cls.0.weight"] = torch.zeros(()).expand(512, 2048, 3, 3)
    assert import_state(state).model.architecture.bins == ()


def test_class_names_and_colours_come_from_the_caller_or_the_file_or_are_made(import_state) -> None:
    about = {"CLASSES": ("wall", "sky", "car"), "PALETTE": [[120, 120, 120], [6, 230, 230], [0, 102, 200]]}
    dataset = {"classes": ["a", "b", "c"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "reduce_zero_label": True}
    assert import_state(small()).metadata == Metadata(["class_0", "class_1", "class_2"], palette(3))
    assert import_state(small(), {"meta": about}).metadata == Metadata(list(about["CLASSES"]), about["PALETTE"])
    newer = import_state(small(), {"meta": {"dataset_meta": dataset}}).metadata
    assert newer == Metadata(dataset["classes"], dataset["palette"])
    assert import_state(small(), {"meta": about}, classes=["x", "y", "z"]).metadata.classes == ["x", "y", "z"]
    unreadable = {"CLASSES": 3, "PALETTE": np.zeros((3, 3)), "config": "model = dict("}
    assert import_state(small(), {"meta": unreadable}).metadata == Metadata(
        ["class_0", "class_1", "class_2"], palette(3)
    )


def test_colours_of_classes_differ() -> None:
    colors = palette(65536)
    assert len({tuple(color) for color in colors}) == 65536
    assert min(map(min, colors)) >= 0
    assert max(map(max, colors)) <= 255
    assert palette(2) == colors[:2] == [[128, 0, 0], [0, 128, 0]]


def test_the_configuration_in_a_file_decides_what_its_tensors_do_not_show(import_state) -> None:
    older = {"meta": {"config": config()["meta"]["cfg"].replace("contract_dilation=True", "contract_dilation=False")}}
    assert not import_state(small(), older).model.architecture.contract_dilation
    normalised = config(rest="img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)")
    metadata = import_state(small(), normalised).metadata
    assert (metadata.mean, metadata.std) == ([1, 2, 3], [4, 5, 6])
    assert "no configuration" in import_state(small()).notes[0]
    assert import_state(small(), config()).notes == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"meta": {"config": "model = dict(backbone=dict(type='ResNet'), decode_head=dict())"}},
            r"strides .*dilations",
        ),
        (config(backbone="multi_grid=(1, 2, 4)"), r"multi_grid \(1, 2, 4\) instead of None"),
        ({"meta": {"config": config()["meta"]["cfg"].replace("'pytorch'", "'caffe'")}}, "style 'caffe'"),
        (config(rest="img_norm_cfg = dict(to_rgb=False)"), "to_rgb False"),
    ],
)
def test_a_configuration_of_another_function_is_refused(content: dict, message: str, import_state) -> None:
    with pytest.raises(ValueError, match=message):
        import_state(small(), content)


def test_a_configuration_is_read_and_not_run(import_state, tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    import_state(small(), config(rest=f"{code}\nx = {code}\ny = dict(z={code})\n"))
    assert not (tmp_path / "ran").exists()


# Tensors that do not fit.


def spoiled(**changes: Tensor | None) -> State:
    state = small()
    for name, tensor in changes.items():
        state.pop(name)
        if tensor is not None:
            state[name] = tensor
    return state


def test_missing_left_over_and_misshapen_tensors_are_named_as_in_the_file(import_state) -> None:
    state = small()
    state["backbone.extra.weight"] = state.pop("decode_head.psp_modules.2.1.bn.bias")
    state["backbone.layer3.1.conv2.weight"] = torch.zeros(256, 256, 1, 1)
    with pytest.raises(ValueError, match=r"recognized as MMSegmentation PSPNet, deep stem with resnet18") as error:
        import_state(state)
    assert "1 (decode_head.psp_modules.2.1.bn.bias) missing" in str(error.value)
    assert "1 (backbone.extra.weight) left over" in str(error.value)
    shapes = "backbone.layer3.1.conv2.weight [256, 256, 1, 1] instead of [256, 256, 3, 3]"
    assert f"1 ({shapes}) of another shape" in str(error.value)


def test_only_the_first_few_of_many_names_are_listed(import_state) -> None:
    extra = {f"auxiliary_head.convs.1.t{index}": torch.zeros(1) for index in range(9)}
    with pytest.raises(ValueError, match=r"9 \(auxiliary_head\.convs\.1\.t0, .*\.t4, \.\.\.\) left over"):
        import_state(small() | extra)


def test_a_classifier_that_is_missing_is_named(import_state) -> None:
    with pytest.raises(ValueError, match=r"decode_head\.conv_seg\.weight is missing"):
        import_state(spoiled(**{"decode_head.conv_seg.weight": None}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, import_state) -> None:
    weights = torch.zeros(128)
    weights[7] = value
    with pytest.raises(ValueError, match=r"decode_head\.bottleneck\.bn\.bias\) with NaN or infinite values"):
        import_state(spoiled(**{"decode_head.bottleneck.bn.bias": weights}))


def test_heads_of_other_widths_than_pspnets_are_refused(import_state) -> None:
    shapes = shapes_of(MMSeg, 18, 3, bins=(1, 6))
    with pytest.raises(ValueError, match=r"decode_head\.psp_modules\.0\.1\.conv\.weight \[128, 512, 1, 1\] instead of"):
        import_state(hollow(shapes), bins=(1, 6))


@pytest.mark.parametrize("bins", [None, (1, 2, 3, 6)])
def test_bins_must_be_given_where_the_levels_are_not_four(bins, import_state) -> None:
    with pytest.raises(ValueError, match=r"the pyramid has 3 levels, .* give the cells per side"):
        import_state(hollow(shapes_of(Semseg, 50, 3, bins=(1, 2, 4))), bins=bins)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_relatives_of_resnet_are_refused_by_their_shapes(name: str, import_state) -> None:
    torchvision_models = pytest.importorskip("torchvision.models")
    with pytest.raises(ValueError, match=r"layer1\.0\.conv2\.weight has shape .* ResNeXt, Wide ResNet"):
        import_state(hollow(shapes_of(getattr(torchvision_models, name))), classes=["a", "b"])


def test_a_depth_that_no_resnet_has_is_refused(import_state) -> None:
    state = {name: tensor for name, tensor in small().items() if not name.startswith("backbone.layer3.1.")}
    with pytest.raises(ValueError, match=r"\(2, 2, 1, 2\) basic blocks do not match a ResNet of depth 18, 34"):
        import_state(state)


def test_class_names_must_be_as_many_as_the_classifiers(import_state) -> None:
    with pytest.raises(ValueError, match=r"2 class names given, but the classifier has 3 classes"):
        import_state(small(), classes=["a", "b"])
    with pytest.raises(ValueError, match=r"4 class names in the file, but the classifier has 3 classes"):
        import_state(small(), {"meta": {"CLASSES": list("abcd")}})
    torchvision_models = pytest.importorskip("torchvision.models")
    with pytest.raises(ValueError, match=r"weights of a backbone, without classes; give the names"):
        import_state(hollow(shapes_of(torchvision_models.resnet18)))


def test_unknown_weights_are_told_what_is_known(import_state) -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown kind of weights, with tensors 1 \(encoder\.weight\)\. Known kinds are hszhao/semseg PSPNet",
    ):
        import_state({"encoder.weight": torch.zeros(1)})
    with torch.device("meta"):
        ours = PSPNet(Architecture("resnet18", 3)).state_dict()
    with pytest.raises(ValueError, match="Sceneparse checkpoint folders need no import"):
        import_state(hollow({name: list(tensor.shape) for name, tensor in ours.items()}))


# Files that are something else, or mean harm.


class Harmful:
    """Writes a file while it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["state_dict", "meta", "optimizer"])
@pytest.mark.parametrize("write", ["system", "open", "exec"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_never_runs(place: str, write: str, legacy: bool, tmp_path: Path) -> None:
    target = tmp_path / "written"
    harm = {
        "system": Harmful(os.system, f"touch {target}"),
        "open": Harmful(open, str(target), "w"),
        "exec": Harmful(exec, f"open({str(target)!r}, 'w')"),
    }[write]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": small()} | {place: {"a": harm}}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights\.pth contains code or objects that are not tensors \(") as error:
        import_weights(path)
    assert not target.exists()
    assert "save only its tensors" in str(error.value)
    torch.load(path, weights_only=False)
    assert target.exists(), "the file was harmless, so this test shows nothing"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_plain_pickle_is_refused_and_never_runs(protocol: int, tmp_path: Path) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "written"
    path.write_bytes(pickle.dumps(Harmful(open, str(target), "w"), protocol))
    with pytest.raises(ValueError, match=r"weights\.pth (contains code|is not a readable torch\.save file)"):
        import_weights(path)
    assert not target.exists()


def test_the_logs_of_mmengine_are_passed_over(import_state, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values, self.maximum = np.array([1.0, 2.0]), np.float64(2)
            self.statistics = {"max": self.max}

        def max(self) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    logs = {"message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())}, "meta": {"CLASSES": ["a", "b", "c"]}}
    assert import_state(small(), logs).metadata.classes == ["a", "b", "c"]


def damaged() -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(9999)}, buffer)
    return buffer.getvalue()[:-5000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.pth", b""),
        ("weights.pth", b"not weights at all"),
        ("weights.pth", b"\xff\xd8\xff\xe0" * 99),
        ("weights.pth", b"<!DOCTYPE html><html>404</html>"),
        ("weights.pth", damaged()),
        ("weights.safetensors", b""),
        ("weights.safetensors", b"not weights at all"),
    ],
)
def test_a_file_that_holds_no_weights_or_half_of_them_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a readable .*download it again") as error:
        import_weights(tmp_path / name)
    assert "weights_only" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_folder_and_a_file_that_is_missing_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; pass the weights file"):
        import_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        import_weights(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "contains a list, not a state dict"),
        ({}, "contains no state dict"),
        ({"state_dict": torch.zeros(3)}, r"unknown kind of weights, with tensors 1 \(state_dict\)"),
        ({"state_dict": {}}, r"contains 1 \(state_dict\) that are not plain tensors"),
        (
            {"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.zeros(1)}, "epoch": 1},
            "contains several state dicts, state_dict, model; save the one to import in a file of its own",
        ),
        ({"a": 1, "b": torch.zeros(1)}, r"contains 1 \(a\) that are not plain tensors"),
        ({"a": torch.eye(2).to_sparse()}, r"contains 1 \(a\) that are not plain tensors"),
    ],
)
def test_other_content_than_weights_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        import_weights(tmp_path / "weights.pth")


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 22)}, tmp_path / "stored.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as to:
        for entry in stored.namelist():
            to.writestr(entry, stored.read(entry))
    assert torch.load(packed, weights_only=True)["weight"].numel() == 1 << 22, "torch itself unpacks it"
    with pytest.raises(ValueError, match=r"packed\.pth has [\d,]+ bytes and unpacks to 16,\d{3},\d{3}, but"):
        import_weights(packed)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is a TorchScript program"):
        import_weights(tmp_path / "weights.pt")
