import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.kernels import compiled, winograd
from models.kernels.winograd import WinogradConvolution
from tests.requirements import BFLOAT16, C_COMPILER

pytestmark = C_COMPILER.mark
CPU = torch.device("cpu")


def make_conv(in_channels: int = 32, out_channels: int = 48, dilation: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)


def direct(conv: nn.Conv2d, x: torch.Tensor, shortcut: torch.Tensor | None = None, relu: bool = True) -> torch.Tensor:
    y = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 1, conv.padding, conv.dilation)
    y = y if shortcut is None else y + shortcut
    return y.relu() if relu else y


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result - expected).abs().max() < 3e-5 * expected.abs().max()


def run(conv: nn.Conv2d, x: torch.Tensor, shortcut: torch.Tensor | None = None, relu: bool = True) -> torch.Tensor:
    """By Winograd's algorithm, and not by the direct one that small maps get."""
    convolution = WinogradConvolution(conv, relu, torch.float32, CPU)
    with torch.inference_mode():
        result = convolution(x, shortcut)
    assert convolution._weights is not None
    return result


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (33, 45), (61, 30)])
def test_it_is_the_direct_convolution(size: tuple[int, int], dilation: int) -> None:
    conv, x = make_conv(dilation=dilation), torch.randn(2, 32, *size)
    assert_close(run(conv, x), direct(conv, x))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 17)])
def test_maps_of_few_tiles_are_convolved_directly(size: tuple[int, int]) -> None:
    conv, x = make_conv(dilation=4), torch.randn(1, 32, *size)
    convolution = WinogradConvolution(conv, True, torch.float32, CPU)
    with torch.inference_mode():
        assert_close(convolution(x), direct(conv, x))
    assert convolution._weights is None


@pytest.mark.parametrize("relu", [True, False])
def test_a_shortcut_is_added_before_the_relu(relu: bool) -> None:
    conv, x, shortcut = make_conv(), torch.randn(1, 32, 34, 35), torch.randn(1, 48, 34, 35)
    expected = direct(conv, x, shortcut, relu)
    assert_close(run(conv, x, shortcut.to(memory_format=torch.channels_last), relu), expected)


@BFLOAT16.mark
def test_bfloat16_in_and_out_with_float32_between() -> None:
    conv, x = make_conv(), torch.randn(1, 32, 34, 35).bfloat16()
    shortcut = torch.randn(1, 48, 34, 35).bfloat16().to(memory_format=torch.channels_last)
    expected = direct(conv, x, shortcut)
    with torch.inference_mode():
        result = WinogradConvolution(conv, True, torch.bfloat16, CPU)(x, shortcut)
    assert result.dtype == torch.bfloat16
    assert (result - expected).abs().max() < 1e-2 * expected.abs().max()


def test_unpadded_rows_are_the_inner_rows() -> None:
    conv, x = make_conv(dilation=2), torch.randn(1, 32, 34, 39)
    with torch.inference_mode():
        result = WinogradConvolution(conv, True, torch.float32, CPU)(x, pad_rows=False)
    assert_close(result, direct(conv, x)[:, :, 2:-2])


def test_values_that_are_no_numbers_come_through() -> None:
    conv, x = make_conv(), torch.randn(1, 32, 34, 34)
    x[0, 3, 2, 2] = torch.nan
    assert run(conv, x).isnan().any()


def test_the_number_of_threads_changes_nothing() -> None:
    conv, x = make_conv(), torch.randn(1, 32, 35, 36)
    convolution, results = WinogradConvolution(conv, True, torch.float32, CPU), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(convolution(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_only_what_it_can_compute_is_suitable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert winograd.is_suitable(make_conv(128, 128, 2))
    unsuitable = [
        make_conv(128, 16),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=0),
        nn.Conv2d(136, 128, 3, padding=1),
    ]
    assert not any(winograd.is_suitable(conv) for conv in unsuitable)
    monkeypatch.setattr(winograd, "library", lambda: None)
    assert not winograd.is_suitable(make_conv(128, 128))


def test_every_part_of_the_work_is_given_to_one_thread() -> None:
    for count in (1, 2, 7):
        parts: list[tuple[int, int]] = []
        compiled.in_threads(lambda name, first, end, parts=parts: parts.append((first, end)), "x", count=count)
        assert [n for first, end in sorted(parts) for n in range(first, end)] == list(range(count))
