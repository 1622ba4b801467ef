"""Images read window by window: the labels of the whole image, each row read once, memory not of its height."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.inference import image_source, sliding
from tests.models.inference.test_sliding import SIX_SCALES, assert_same, make_images, needs_compiler, predictor
from tests.requirements import PROC


class Recorded:
    """An image in memory, read as one on a disk would be; keeps what was read."""

    def __init__(self, image_HW3: NDArray[np.uint8]) -> None:
        self._image_HW3 = image_HW3
        self.height, self.width = image_HW3.shape[:2]
        self.read_rows: list[int] = []

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        self.read_rows += range(top, bottom)
        return self._image_HW3[top:bottom, left:right]


CASES: dict[str, dict[str, Any]] = {
    "one scale": {},
    "mirrored": {"mirror": True},
    "larger crops than the image is wide": {"crop": 200},
    "six scales, mirrored": {"scales": SIX_SCALES, "mirror": True},
    "crops that hardly overlap": {"stride": 1.0, "scales": (1.0, 0.3)},
    "far apart scales": {"scales": (2.0, 0.25)},
}


@needs_compiler
@pytest.mark.parametrize("size", [(330, 150), (97, 310), (40, 30), (1, 1)])
@pytest.mark.parametrize("case", CASES)
def test_an_image_read_by_window_is_labelled_as_the_whole_one(case: str, size: tuple[int, int]) -> None:
    check_windows(case, size)


@pytest.mark.parametrize("case", ["mirrored", "far apart scales"])
def test_so_it_is_without_the_kernel(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding, "library", lambda: None)
    monkeypatch.setattr(sliding, "STRIP_BYTES_CPU", 16 * 7 * 90 * 10)  # ten rows
    check_windows(case, (130, 90))


def check_windows(case: str, size: tuple[int, int], valid_HW: NDArray[np.bool_] | None = None) -> None:
    image_HW3 = make_images(1, *size)[0]
    sliding = predictor(max_batch=1, **CASES[case])
    source = Recorded(image_HW3)

    def valid_rows(strip: slice) -> NDArray[np.bool_] | None:
        assert min(strip.stop, size[0]) <= len(source.read_rows), "they have been read"
        return None if valid_HW is None else valid_HW[None, strip]

    assert_same(sliding.predict_windows(source, valid_rows), sliding.predict(image_HW3[None], valid=[valid_HW]))
    assert source.read_rows == list(range(size[0])), "rows are read once each, from the top down"


@pytest.mark.parametrize("way", [pytest.param("kernel", marks=needs_compiler), "torch"])
@pytest.mark.parametrize("case", ["one scale", "six scales, mirrored"])
def test_rows_without_data_are_those_of_the_whole_image(case: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "torch":
        monkeypatch.setattr(sliding, "library", lambda: None)
        monkeypatch.setattr(sliding, "STRIP_BYTES_CPU", 16 * 7 * 90 * 10)  # ten rows
    valid_HW = np.random.default_rng(0).random((130, 90)) < 0.5
    valid_HW[:70] = True
    check_windows(case, (130, 90), valid_HW)


def test_wide_images_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "READ_BYTES", 3 * 310 * 10)
    source = Recorded(make_images(1, 97, 310)[0])
    largest = []
    read = source.read
    source.read = lambda *edges: (largest.append(edges[1] - edges[0]), read(*edges))[1]  # type: ignore[method-assign]
    predictor().predict_windows(source)
    assert max(largest) == 10
    assert sum(largest) == 97


@pytest.mark.parametrize("settings", [{"crop": None}, {"base_size": 512}, {"short_side": 512}])
def test_what_needs_the_whole_image_at_once_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="requires crops at its own size"):
        predictor(**settings).predict_windows(Recorded(make_images(1, 80, 80)[0]))


def test_a_reader_that_returns_something_else_is_refused() -> None:
    source = Recorded(make_images(1, 80, 80)[0])
    source.read = lambda *_: np.zeros((80, 80, 4), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"returned uint8 \(80, 80, 4\)"):
        predictor().predict_windows(source)


def test_a_failing_reader_fails_the_prediction_with_its_own_error() -> None:
    source = Recorded(make_images(1, 200, 80)[0])

    def read(top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        raise OSError("the disk is gone")

    source.read = read  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk is gone"):
        predictor().predict_windows(source)


TALL, WIDTH = 40_000, 1_000
LIMIT = 25e6  # bytes beside the mask, of the rows that crops are cut from and of the logits of a row of crops
PROGRAM = """
import numpy as np, torch
from pathlib import Path
from models import Protocol, SlidingPredictor
from tests.models.inference.test_sliding import PlainNetwork, SmallNetwork

class Stripes:
    height, width = 1_000, {width}

    def read(self, top, bottom, left, right):
        stripes = (np.add.outer(np.arange(top, bottom), np.arange(left, right)) // 500 % 256).astype(np.uint8)
        return np.dstack([stripes] * 3)

def peak():
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

torch.set_num_threads(2)
sliding = SlidingPredictor(PlainNetwork(SmallNetwork(True, num_classes=2)), Protocol(base_size=None, stride=1.0))
sliding.predict_windows(Stripes())
before, Stripes.height = peak(), {height}
prediction = sliding.predict_windows(Stripes())
assert prediction.class_ids_NHW.shape == (1, {height}, {width})
assert prediction.pixel_count_NK.sum() == {height} * {width}
print(peak() - before)
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
@PROC.mark
def test_a_tall_image_takes_the_memory_of_its_mask_and_of_a_few_rows() -> None:
    program = PROGRAM.format(height=TALL, width=WIDTH)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    beside = int(result.stdout) - TALL * WIDTH
    print(f"{beside / 1e6:.0f} MB beside the mask")
    assert beside < LIMIT
