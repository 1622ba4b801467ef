"""Convolutions and networks in int8 against the same arithmetic in plain operations, and against float32."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.inference.network
from models import Architecture, Calibration, Predictor, PSPNet
from models.inference.activation_ranges import activation_ranges
from models.inference.preprocessing import NetworkInputs
from models.kernels.int8 import Int8Convolution, Ranges
from tests.requirements import INT8

pytestmark = INT8.mark

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
INPUT, OUTPUT = (0.0, 3.0), (0.0, 5.0)
GEOMETRIES = {
    "1x1": (1, 1, 1),
    "3x3": (3, 1, 1),
    "stride 2": (3, 2, 1),
    "dilation 2": (3, 1, 2),
    "1x1 stride 2": (1, 2, 1),
}


def scale_of(values: tuple[float, float]) -> tuple[float, int]:
    """Return the scale and the zero point of uint8 activations."""
    scale = (values[1] - values[0]) / 255
    return scale, round(-values[0] / scale)


def make_conv(kernel: int, stride: int, dilation: int, channels: int = 16, out_channels: int = 24) -> nn.Conv2d:
    torch.manual_seed(kernel + 10 * stride + 100 * dilation)
    conv = nn.Conv2d(channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation)
    nn.init.normal_(conv.weight, std=0.3 / kernel)
    return conv.requires_grad_(False)


def random_uint8(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def emulated(conv: nn.Conv2d, relu: bool, ranges: Ranges, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """The float64 result of the quantised arithmetic; the sums of products in it are exact."""
    weight_scale_O111 = conv.weight.double().abs().amax((1, 2, 3), keepdim=True) / 127
    weight = (conv.weight.double() / weight_scale_O111).round()
    scale, zero = scale_of(ranges["input"])
    sums = F.conv2d(x.double() - zero, weight, None, conv.stride, conv.padding, conv.dilation)
    y = sums * scale * weight_scale_O111.view(-1, 1, 1) + conv.bias.double().view(-1, 1, 1)
    if shortcut is not None:
        scale, zero = scale_of(ranges["shortcut"])
        y += (shortcut.double() - zero) * scale
    return y.relu() if relu else y


def quantised(y: Tensor, ranges: Ranges) -> Tensor:
    scale, zero = scale_of(ranges["output"])
    return (y / scale + zero).round().clamp(0, 255)


def assert_equal_but_for_ties(found: Tensor, expected: Tensor) -> None:
    """Float32 rounds to the other side where a value lies in the middle of two steps."""
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    difference = (found.double() - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 1e-3
    assert expected.double().std() > 20, "a test of values that are nearly all the same shows nothing"


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("relu", [True, False])
def test_a_convolution_is_exact_up_to_rounding(geometry: tuple[int, int, int], relu: bool) -> None:
    conv = make_conv(*geometry)
    ranges = {"input": INPUT, "output": OUTPUT if relu else (-4.0, 5.0)}
    x = random_uint8(2, 16, 21, 18)
    found = Int8Convolution(conv, relu, ranges, float_output=False)(x)
    assert_equal_but_for_ties(found, quantised(emulated(conv, relu, ranges, x, None), ranges))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_float_output_is_not_quantised(geometry: tuple[int, int, int]) -> None:
    conv = make_conv(*geometry)
    ranges = {"input": INPUT, "output": OUTPUT}
    x = random_uint8(1, 16, 21, 18)
    found = Int8Convolution(conv, False, ranges, float_output=True)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), emulated(conv, False, ranges, x, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shortcut_range", [(0.0, 4.0), (-2.0, 2.5)], ids=["zero is 0", "zero is in the middle"])
def test_the_shortcut_is_added_at_its_own_scale(kernel: int, shortcut_range: tuple[float, float]) -> None:
    conv = make_conv(kernel, 1, 1)
    ranges = {"input": INPUT, "output": OUTPUT, "shortcut": shortcut_range}
    x, shortcut = random_uint8(1, 16, 20, 18), random_uint8(1, 24, 20, 18)
    expected = quantised(emulated(conv, True, ranges, x, shortcut), ranges)
    assert_equal_but_for_ties(Int8Convolution(conv, True, ranges, float_output=False)(x, shortcut), expected)


def test_float_inputs_and_shortcuts_are_quantised_to_the_nearest_step_and_cut_off_at_the_ends() -> None:
    conv = make_conv(1, 1, 1)
    ranges = {"input": INPUT, "output": OUTPUT, "shortcut": (-2.0, 2.5)}
    compute = Int8Convolution(conv, True, ranges, float_output=False)
    x, shortcut = random_uint8(1, 16, 20, 18), random_uint8(1, 24, 20, 18)

    def as_float(steps: Tensor, values: tuple[float, float], off: float) -> Tensor:
        scale, zero = scale_of(values)
        inside = (steps > 0) & (steps < 255)
        beyond = torch.where(steps == 0, -50.0, 50.0)
        return ((steps.float() - zero + torch.where(inside, off, beyond)) * scale).contiguous(
            memory_format=torch.channels_last
        )

    expected = compute(x, shortcut.clone())
    for off in (-0.4, 0.0, 0.4):
        found = compute(as_float(x, ranges["input"], off), as_float(shortcut, ranges["shortcut"], off))
        assert torch.equal(found, expected), off


def test_rows_without_padding_are_the_middle_of_rows_with_padding() -> None:
    conv = make_conv(3, 1, 2)
    compute = Int8Convolution(conv, True, {"input": INPUT, "output": OUTPUT}, float_output=False)
    x = random_uint8(1, 16, 21, 18)
    assert torch.equal(compute(x, pad_rows=False), compute(x)[:, :, 2:-2])


def test_a_channel_without_weights_and_a_tensor_without_values_divide_by_no_zero() -> None:
    conv = make_conv(3, 1, 1)
    conv.weight[0], conv.bias[0] = 0, 2.0
    x = random_uint8(1, 16, 9, 9)
    found = Int8Convolution(conv, True, {"input": INPUT, "output": (0.0, 5.0)}, float_output=False)(x)
    assert (found[:, 0] == 102).all()  # 2 of 5, in 255 steps
    dead = Int8Convolution(conv, True, {"input": (0.0, 0.0), "output": (0.0, 0.0)}, float_output=True)
    assert dead(torch.zeros(1, 16, 9, 9)).isfinite().all()


def make_model(backbone: str, stem: str) -> PSPNet:
    torch.manual_seed(0)
    model = PSPNet(
        Architecture(backbone, 7, stem=stem, stem_channels=(16, 16, 32), bins=(1, 2), auxiliary=False)
    ).eval()
    nn.init.normal_(model.head.classifier.weight, std=0.6)
    return model


MODELS = {"resnet18": make_model("resnet18", "plain"), "resnet50": make_model("resnet50", "deep")}
each_model = pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])


def make_images(num_images: int, height: int = 73, width: int = 97) -> list[Tensor]:
    """Blocks of colour, each image a batch of its own; sizes at which no padding is needed."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (num_images, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    images = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return [torch.from_numpy(np.ascontiguousarray(image[None])) for image in images]


@functools.cache
def ranges_of(name: str) -> dict[str, dict[str, list[float]]]:
    """Of the first two images."""
    return activation_ranges(MODELS[name], MEAN, STD, iter(make_images(2)))


def int8_predictor(name: str) -> Predictor:
    return Predictor(
        MODELS[name], MEAN, STD, precision="int8", calibration=Calibration(activation_ranges=ranges_of(name))
    )


@each_model
def test_a_network_in_int8_is_close_to_float32(name: str) -> None:
    image = make_images(3)[-1]
    exact = Predictor(MODELS[name], MEAN, STD).logits(image)
    found = int8_predictor(name).logits(image)
    assert (found - exact).norm() / (exact - exact.mean()).norm() < 0.05
    assert (found.argmax(-1) == exact.argmax(-1)).float().mean() > 0.97


@each_model
def test_strips_of_rows_give_what_the_whole_image_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.inference.network, "STRIP_BYTES", 1)
    network = int8_predictor(name).network
    with torch.inference_mode():
        x_N3HW = (torch.cat(make_images(2)) - torch.tensor(MEAN)).permute(0, 3, 1, 2)
        inputs = NetworkInputs(x_N3HW.permute(0, 2, 3, 1), (x_N3HW.shape[2], x_N3HW.shape[3]), torch.zeros(3))
        whole, streamed = network(x_N3HW), network.streamed(inputs)
    # The first convolution's last bit depends on the strip, and a value between two steps may go to the other one.
    assert (streamed - whole).norm() / (whole - whole.mean()).norm() < 2e-3


class Watched:
    """Recorder of the activations between the model's convolutions, by name in the ranges and part."""

    def __init__(self, model: PSPNet) -> None:
        self.model = model
        self.tensors: dict[tuple[str, str], list[Tensor]] = {}
        backbone = model.backbone
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for index, block in enumerate(getattr(backbone, stage)):
                name = f"{stage}.{index}"
                convs = [key for key in ("conv1", "conv2", "conv3") if hasattr(block, key)]
                for key, following in itertools.pairwise([*convs, None]):
                    self._watch(getattr(block, key), f"{name}.{key}", input="input")
                    if following:
                        self._watch(getattr(block, following), f"{name}.{key}", input="output")
                self._watch(block, f"{name}.{convs[-1]}", output="output")
                if block.downsample is None:
                    self._watch(block, f"{name}.{convs[-1]}", input="shortcut")
                else:
                    self._watch(block.downsample, f"{name}.downsample", input="input", output="output")
                    self._watch(block.downsample, f"{name}.{convs[-1]}", output="shortcut")

    def _watch(self, module: nn.Module, name: str, input: str = "", output: str = "") -> None:
        def record(_: nn.Module, inputs: tuple[Tensor], result: Tensor) -> None:
            for which, tensor in ((input, inputs[0]), (output, result)):
                if which:
                    self.tensors.setdefault((name, which), []).append(tensor.clone())

        module.register_forward_hook(record)

    def forward(self, images: list[Tensor]) -> None:
        for image in images:
            with torch.no_grad():
                self.model(((image - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2))


@each_model
def test_ranges_are_those_of_the_model(name: str) -> None:
    ranges, watched = ranges_of(name), Watched(copy.deepcopy(MODELS[name]))
    watched.forward(make_images(2))
    for (conv, which), tensors in watched.tensors.items():
        extremes = min(0.0, *(t.min().item() for t in tensors)), max(0.0, *(t.max().item() for t in tensors))
        assert ranges[conv][which] == pytest.approx(extremes, rel=1e-3, abs=1e-4), (conv, which)
    stem = {"stem.conv1"} if name == "resnet18" else {"stem.conv1", "stem.conv2", "stem.conv3"}
    assert set(ranges) == {conv for conv, _ in watched.tensors} | stem | {"head.conv", "head.classifier"}


def test_a_share_cuts_off_the_rarest_values() -> None:
    images = make_images(1)
    ranges = activation_ranges(MODELS["resnet18"], MEAN, STD, images, share=0.99)
    watched = Watched(copy.deepcopy(MODELS["resnet18"]))
    watched.forward(images)
    (block_output,) = watched.tensors["layer1.0.conv2", "output"]
    low, high = ranges["layer1.0.conv2"]["output"]
    assert low == 0
    assert (block_output > high).float().mean() == pytest.approx(0.01, rel=0.05)
    (shortcut,) = watched.tensors["layer2.0.conv2", "shortcut"]
    low, high = ranges["layer2.0.conv2"]["shortcut"]
    assert (shortcut < low).float().mean() == pytest.approx(0.01, rel=0.1)
    # What one convolution hands to the next has one scale, or the numbers would change their meaning on the way.
    assert (
        ranges["layer1.0.conv2"]["output"] == ranges["layer1.1.conv1"]["input"] == ranges["layer1.1.conv2"]["shortcut"]
    )


def test_ranges_that_lack_a_convolution_are_refused_by_its_name() -> None:
    ranges = {layer: of_layer for layer, of_layer in ranges_of("resnet18").items() if layer != "layer2.0.conv1"}
    with pytest.raises(ValueError, match=r"no activation range for layer2\.0\.conv1; calibrate this network"):
        Predictor(MODELS["resnet18"], MEAN, STD, precision="int8", calibration=Calibration(activation_ranges=ranges))


def test_int8_without_ranges_or_on_a_gpu_is_refused() -> None:
    model = MODELS["resnet18"]
    with pytest.raises(ValueError, match=r"calibrate the checkpoint first \(jobs/calibrate.py\)"):
        Predictor(model, MEAN, STD, precision="int8")
    with pytest.raises(ValueError, match="needs a CPU with VNNI"):
        Predictor(model, MEAN, STD, device="cuda", precision="int8", calibration=Calibration(activation_ranges={}))
