"""The factored head against the formulation of the paper, which concatenates upsampled levels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.pyramid import Pyramid, PyramidHead, _cached_matrices

CHANNELS, CLASSES = 24, 5


def concatenated(head: PyramidHead, features_NCHW: Tensor) -> Tensor:
    """Return the textbook result for the parameters of `head`: pool, upsample, concatenate, convolve."""
    maps = [features_NCHW]
    for bin_, level in zip(head.bins, head.levels, strict=True):
        pool = F.adaptive_avg_pool2d if head.average else F.adaptive_max_pool2d
        cells = level(pool(features_NCHW, bin_))
        size = features_NCHW.shape[2:]
        maps.append(F.interpolate(cells, size, mode="bilinear", align_corners=head.align_corners))
    fused = head.conv(torch.cat(maps, 1))
    return head.classifier(head.dropout(head.relu(head.bn(fused))))


def make_head(dtype: torch.dtype = torch.float32, align_corners: bool = True, **levels) -> PyramidHead:
    torch.manual_seed(0)
    head = PyramidHead(CHANNELS, CLASSES, Pyramid(**levels), 0.0, align_corners).to(dtype)
    # Wide enough that the logits, and so what flows back, are not tiny.
    torch.nn.init.normal_(head.classifier.weight)
    return head


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def compare(head: PyramidHead, features: Tensor) -> tuple[float, dict[str, float]]:
    """Return the relative error of the output, and of each gradient, the features' included.

    The oracle computes in float64: in float32 its own gradients are off by as much as the head's.
    """
    oracle = copy.deepcopy(head).double()
    results = []
    for module, function in ((head, head), (oracle, lambda x: concatenated(oracle, x))):
        inputs = features.to(next(module.parameters()).dtype, copy=True).requires_grad_()
        logits = function(inputs)
        (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters()} | {"features": inputs.grad}
        results.append((logits.detach(), gradients))
    (logits, gradients), (expected_logits, expected_gradients) = results
    # Errors relative to the largest gradient: batch norm makes some exactly zero in theory.
    scale = max(g.abs().max() for g in expected_gradients.values())
    errors = {
        name: ((gradients[name] - g).abs().max() / torch.maximum(g.abs().max(), 1e-3 * scale)).item()
        for name, g in expected_gradients.items()
    }
    return relative_error(logits, expected_logits), errors


OPTIONS = [
    {},
    {"align_corners": False},
    {"pooling": "max"},
    {"reduce": False},
    {"reduce": False, "pooling": "max", "align_corners": False},
    {"bins": (1,)},
    {"bins": (3, 1, 4)},
    {"bins": ()},
]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_factored_head_and_its_gradients_equal_the_concatenated_form_exactly(options, train: bool) -> None:
    head = make_head(torch.float64, **options).train(train)
    output, gradients = compare(head, torch.randn(2, CHANNELS, 11, 14, dtype=torch.float64))
    assert output < 1e-12
    assert max(gradients.values()) < 1e-12


@pytest.mark.parametrize("align_corners", [True, False])
def test_factored_head_equals_the_concatenated_form_in_float32(align_corners: bool) -> None:
    head = make_head(align_corners=align_corners).eval()
    output, gradients = compare(head, torch.randn(2, CHANNELS, 17, 15))
    assert output < 1e-6
    assert max(gradients.values()) < 1e-6


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (6, 6), (7, 13)])
def test_maps_of_any_size_work_even_below_a_bin(size: tuple[int, int], align_corners: bool) -> None:
    head = make_head(torch.float64, align_corners=align_corners).train()
    output, gradients = compare(head, torch.randn(3, CHANNELS, *size, dtype=torch.float64))
    assert output < 1e-12
    assert max(gradients.values()) < 1e-12


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_layout_does_not_change_the_result(channels_last: bool) -> None:
    head = make_head(torch.float64).eval()
    features = torch.randn(2, CHANNELS, 8, 9, dtype=torch.float64)
    expected = concatenated(head, features)
    if channels_last:
        head = head.to(memory_format=torch.channels_last)
        features = features.to(memory_format=torch.channels_last)
    assert relative_error(head(features), expected) < 1e-12


def test_fused_map_is_channels_last_for_the_layers_after_it() -> None:
    head = make_head().eval()
    features = torch.randn(2, CHANNELS, 8, 9)
    fused = head._fuse(features, head._pool_levels(features))
    assert fused.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_autocast_stays_within_its_rounding(train: bool) -> None:
    head = make_head().train(train)
    features = torch.randn(4, CHANNELS, 12, 12)
    expected = concatenated(copy.deepcopy(head), features)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits.float(), expected) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_training_works_after_inference_mode_filled_the_cache() -> None:
    head = make_head()
    features = torch.randn(2, CHANNELS, 19, 23)
    with torch.inference_mode():
        head.eval()(features)
    head.train()(features).sum().backward()


def test_interpolation_cache_is_bounded() -> None:
    head = make_head().eval()
    with torch.inference_mode():
        for width in range(1, 100):
            head(torch.randn(1, CHANNELS, 2, width))
    assert _cached_matrices.cache_info().currsize <= 64


def test_fused_weight_has_the_published_shape() -> None:
    with torch.device("meta"):
        head = PyramidHead(2048, 150)
    assert head.conv.weight.shape == (512, 4096, 3, 3)
    assert [tuple(level[0].weight.shape) for level in head.levels] == [(512, 2048, 1, 1)] * 4
    with torch.device("meta"):
        assert PyramidHead(2048, 150, Pyramid(reduce=False)).conv.weight.shape == (512, 2048 * 5, 3, 3)
        assert PyramidHead(2048, 150, Pyramid(bins=())).conv.weight.shape == (512, 2048, 3, 3)


def test_a_single_value_per_channel_in_training_is_explained() -> None:
    features = torch.randn(1, CHANNELS, 8, 8)
    with pytest.raises(ValueError, match=r"Pyramid bin 1: .* two or more images per worker"):
        make_head().train()(features)
    make_head().eval()(features)
    make_head(bins=(2, 3)).train()(features)
    make_head(reduce=False).train()(features)


def test_gradients_reach_every_parameter() -> None:
    head = make_head().train()
    head(torch.randn(2, CHANNELS, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_torchs_compiler_takes_the_head_as_one_graph(dynamic: bool) -> None:
    torch.manual_seed(0)
    head = PyramidHead(32, 5).eval()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in ((9, 12), (17, 11)):
        features = torch.randn(2, 32, *size)
        eager, graph = (features.clone().requires_grad_() for _ in range(2))
        expected, result = head(eager), compiled(graph)
        expected.square().sum().backward()
        result.square().sum().backward()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(graph.grad, eager.grad, rtol=1e-5, atol=1e-6)
