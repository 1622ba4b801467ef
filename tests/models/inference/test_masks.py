"""Masks and statistics: the C kernel and the torch strips against full-size planes, softmax, numpy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import Prediction
from models.inference import label_statistics, masks
from models.inference.interpolation import TapTensors, both_taps, taps
from models.inference.label_statistics import rows_of
from models.inference.masks import label, label_batch, label_in_strips
from models.kernels import compiled
from tests.models.low_counts import assert_low_counts, assert_valid_counts
from tests.requirements import C_COMPILER

Fields = dict[str, Any]
needs_compiler = C_COMPILER.mark


def fields_of(batch: Prediction, n: int = 0) -> Fields:
    """Return the fields of one image, without the leading axis N."""
    return {name: None if values is None else values[n] for name, values in vars(batch).items()}


def one(logits, size, padded, output_size, align_corners, with_map, valid_HW=None) -> Fields:
    rows, columns = both_taps(logits.shape[:2], size, padded, output_size, align_corners)
    return fields_of(label(logits, rows, columns, with_map, valid_HW))


def strips(logits, size, padded, output_size, align_corners, with_map, valid_HW=None, max_strip_bytes=None) -> Fields:
    rows, columns = both_taps(logits.shape[:2], size, padded, output_size, align_corners)
    valid = rows_of([valid_HW], output_size)
    return fields_of(label_in_strips(logits[None], rows, columns, with_map, valid, max_strip_bytes))


WAYS = [pytest.param(one, marks=needs_compiler, id="kernel"), pytest.param(strips, id="strips")]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_logits(height: int, width: int, num_classes: int, spread: float = 3) -> torch.Tensor:
    """Logits with doubtful and with confident regions."""
    generator = torch.Generator().manual_seed(height * 1000 + width + num_classes)
    logits = torch.randn(height, width, num_classes, generator=generator)
    return logits * (torch.rand(height, width, 1, generator=generator) * spread)


def upsample(logits: torch.Tensor, padded: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Return float64 logits (H, W, K) at the network's input size."""
    planes = logits.double().permute(2, 0, 1)[None]
    return F.interpolate(planes, padded, mode="bilinear", align_corners=align_corners)[0].permute(1, 2, 0).numpy()


def assert_matches(fields: Fields, logits: np.ndarray, valid_HW: np.ndarray | None = None) -> None:
    """Check every field against full-size logits (H, W, K), at the valid pixels."""
    height, width, num_classes = logits.shape
    valid_HW = np.ones((height, width), bool) if valid_HW is None else valid_HW
    ids = fields["class_ids_NHW"]
    assert ids.shape == (height, width)
    assert ids.dtype == (np.uint8 if num_classes <= 256 else np.uint16)
    ordered = np.sort(logits, axis=-1)
    differs = (logits.argmax(-1) != ids) & valid_HW
    assert (ordered[..., -1] - ordered[..., -2])[differs].max(initial=0) < 1e-5, "no tie"

    probability = torch.from_numpy(logits).softmax(-1).numpy()
    confidence = probability.max(-1)
    entropy = -(probability * np.log(np.maximum(probability, 1e-300))).sum(-1)
    assert fields["confidence_NHW"].dtype == np.float16
    np.testing.assert_allclose(fields["confidence_NHW"][valid_HW], confidence[valid_HW], rtol=1e-3)
    np.testing.assert_allclose(fields["mean_confidence_N"], confidence[valid_HW].mean(), rtol=1e-6)
    np.testing.assert_allclose(fields["mean_entropy_N"], entropy[valid_HW].mean(), rtol=1e-5, atol=1e-7)
    assert_low_counts(fields["low_count_NRG"], np.where(valid_HW, confidence, 1), 1e-6)
    assert_valid_counts(fields["valid_count_NRG"], valid_HW)

    for k in range(num_classes):
        is_class_HW = (ids == k) & valid_HW
        ys, xs = np.nonzero(is_class_HW)
        assert fields["pixel_count_NK"][k] == len(ys)
        np.testing.assert_allclose(fields["confidence_sum_NK"][k], confidence[is_class_HW].sum(), rtol=1e-5)
        box, centroid = [0, 0, 0, 0], [np.nan, np.nan]
        if len(ys):
            box, centroid = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [xs.mean(), ys.mean()]
        assert fields["box_NK4"][k].tolist() == box
        np.testing.assert_allclose(fields["centroid_NK2"][k], centroid, rtol=1e-12)


def assert_equal(a: Fields, b: Fields) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "num_classes"),
    [((65, 65), 7), ((70, 131), 2), ((131, 70), 150), ((1, 1), 16), ((3, 90), 17), ((90, 1), 5), ((66, 40), 300)],
)
def test_it_is_interpolate_softmax_and_argmax(way: Callable[..., Fields], size, num_classes, align_corners) -> None:
    padded = (137, 137) if align_corners else (136, 136)
    logits = make_logits(18 if align_corners else 17, 18 if align_corners else 17, num_classes)
    full = upsample(logits, padded, align_corners)[: size[0], : size[1]]
    assert_matches(way(logits, size, padded, size, align_corners, True), full)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("size", "num_classes"), [((65, 65), 7), ((131, 70), 150), ((3, 90), 17), ((90, 1), 5), ((66, 40), 300)]
)
def test_pixels_that_are_not_valid_enter_no_statistic(
    way: Callable[..., Fields], size, num_classes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "STRIP_BYTES_CPU", 100_000)
    logits = make_logits(18, 18, num_classes)
    valid_HW = np.random.default_rng(0).random(size) < 0.6
    valid_HW[: size[0] // 3] = False
    found = way(logits, size, (137, 137), size, True, True, valid_HW)
    assert_matches(found, upsample(logits, (137, 137), True)[: size[0], : size[1]], valid_HW)


@pytest.mark.parametrize("way", WAYS)
def test_means_of_no_valid_pixel_are_nan(way: Callable[..., Fields]) -> None:
    found = way(make_logits(9, 9, 5), (65, 65), (65, 65), (65, 65), True, False, np.zeros((65, 65), bool))
    assert found["pixel_count_NK"].tolist() == [0] * 5
    assert np.isnan([found["mean_confidence_N"], found["mean_entropy_N"]]).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("output_size", [(40, 31), (150, 171), (81, 300), (1, 1)])
def test_at_another_size_pixel_centres_correspond(way: Callable[..., Fields], output_size, align_corners) -> None:
    size, padded = (81, 97), (81, 97) if align_corners else (88, 104)
    cells = (11, 13)
    logits = make_logits(*cells, 7)
    full = logits.double().numpy()
    for axis in (0, 1):
        pixel = ((np.arange(output_size[axis]) + 0.5) * size[axis] / output_size[axis] - 0.5).clip(0, size[axis] - 1)
        cell = pixel * (cells[axis] - 1) / (padded[axis] - 1)
        if not align_corners:
            cell = ((pixel + 0.5) * cells[axis] / padded[axis] - 0.5).clip(0, cells[axis] - 1)
        low = np.floor(cell).astype(int)
        high = np.minimum(low + 1, cells[axis] - 1)
        weight = (cell - low).reshape([-1 if i == axis else 1 for i in range(3)])
        full = full.take(low, axis) * (1 - weight) + full.take(high, axis) * weight
    assert_matches(way(logits, size, padded, output_size, align_corners, True), full)


@needs_compiler
@pytest.mark.parametrize("num_classes", [2, 150, 300])
def test_the_kernel_agrees_with_the_strips(num_classes: int) -> None:
    logits = make_logits(30, 26, num_classes)
    arguments = (logits, (233, 200), (233, 201), (233, 200), True, True)
    kernel, torch_fields = one(*arguments), strips(*arguments)
    for name in kernel:
        assert kernel[name].dtype == torch_fields[name].dtype, name
        np.testing.assert_allclose(kernel[name], torch_fields[name], rtol=1e-3, err_msg=name)
    np.testing.assert_array_equal(kernel["class_ids_NHW"], torch_fields["class_ids_NHW"])


@pytest.mark.parametrize("way", WAYS)
def test_the_first_of_equal_classes_wins(way: Callable[..., Fields]) -> None:
    logits = torch.zeros(9, 9, 40)
    logits[:, :5, [37, 21, 30]] = 5.0
    logits[:, 5:, [18, 3]] = 5.0
    ids = way(logits, (65, 65), (65, 65), (65, 65), True, False)["class_ids_NHW"]
    assert set(np.unique(ids)) == {3, 21}
    assert (way(torch.zeros(9, 9, 40), (65, 65), (65, 65), (65, 65), True, False)["class_ids_NHW"] == 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_extreme_logits_keep_finite_statistics(way: Callable[..., Fields]) -> None:
    logits = torch.zeros(9, 9, 20)
    logits[..., 4] = 3e4
    logits[..., 5] = -3e4
    fields = way(logits, (65, 65), (65, 65), (65, 65), True, True)
    assert (fields["class_ids_NHW"] == 4).all()
    assert fields["mean_confidence_N"] == 1
    assert abs(fields["mean_entropy_N"]) < 1e-6


@needs_compiler
def test_scores_that_are_not_numbers_stay_visible_and_in_range() -> None:
    fields = one(torch.full((9, 9, 20), torch.nan), (65, 65), (65, 65), (65, 65), True, True)
    assert fields["class_ids_NHW"].max() < 20
    assert np.isnan(fields["mean_confidence_N"])


@needs_compiler
@pytest.mark.parametrize("size", [(233, 97), (3, 97), (64, 1)])
def test_the_number_of_threads_changes_nothing(size: tuple[int, int]) -> None:
    arguments = (make_logits(30, 13, 50), size, (233, 97), size, True, True)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(one(*arguments))
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


def test_the_strip_size_changes_nothing() -> None:
    arguments = (make_logits(30, 13, 50), (233, 97), (233, 97), (233, 97), True, True)
    results = [strips(*arguments, max_strip_bytes=size) for size in (1, 50 * 8 * 97 * 3, 2**30)]
    assert_equal(results[0], results[2])
    assert_equal(results[1], results[2])


def test_upsampled_logits_never_exceed_the_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = masks._reduce_classes
    monkeypatch.setattr(masks, "_reduce_classes", lambda x: (sizes.append(x.nbytes), original(x))[1])
    budget = 2 * 7 * 4 * 90 * 5
    strips(make_logits(10, 12, 7), (70, 90), (73, 89), (70, 90), True, False, max_strip_bytes=budget)
    assert len(sizes) == 14
    assert 2 * max(sizes) <= budget


@pytest.mark.parametrize("num_classes", [7, 300])
def test_a_batch_in_strips_is_its_images(num_classes: int) -> None:
    logits = torch.stack([make_logits(9, 12, num_classes, spread) for spread in (3, 6, 9)])
    shape = (70, 90), (73, 97), (70, 90), True, True
    rows, columns = both_taps((9, 12), *shape[:4])
    in_strips = label_in_strips(logits, rows, columns, True, max_strip_bytes=4 * 2 * 3 * 90 * num_classes * 20)
    batch = label_batch(logits, rows, columns, True)
    for n, logits_hwK in enumerate(logits):
        assert_equal(fields_of(in_strips, n), strips(logits_hwK, *shape))
        assert_equal(fields_of(batch, n), one(logits_hwK, *shape))


def test_without_a_compiler_torch_does_the_work_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (make_logits(9, 9, 7), (65, 65), (65, 65), (65, 65), True, True)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    monkeypatch.setattr(masks, "library", label_statistics.library.__wrapped__)
    with pytest.warns(RuntimeWarning, match=r"no C compiler 'no-such-compiler'; install gcc"):
        fields = one(*arguments)
    assert_equal(fields, strips(*arguments))


@pytest.mark.parametrize("num_rows", [9, 10, 11])
def test_strips_have_one_height_so_that_torch_compiles_one_kernel(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce_strip, heights = masks._reduce_strip, set()

    def recorded(logits_NhwK: torch.Tensor, rows: TapTensors, columns: TapTensors) -> tuple[torch.Tensor, ...]:
        heights.add(len(rows[0]))
        return reduce_strip(logits_NhwK, rows, columns)

    monkeypatch.setattr(masks, "_reduce_strip", recorded)
    logits = make_logits(9, 9, 7)[None]
    axes = taps(65, 65, 9, num_rows, True), taps(65, 65, 9, 20, True)
    found = masks.label_in_strips(logits, *axes, True, max_strip_bytes=3 * 8 * 20 * 7)
    assert heights == {3}
    assert_equal(fields_of(found, 0), fields_of(masks.label_in_strips(logits, *axes, True), 0))
