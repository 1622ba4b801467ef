"""Images of a dataset of which pixels have no data: these have the mean color, and no label."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.config.data import DataConfig
from pipeline.datasets import Pair, list_pairs, load_image, load_pair
from pipeline.datasets.validation import BLOCK, read_block
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata
from tests.pipeline.samples import encoded, random_image, write_file

HEIGHT, WIDTH = 64, 72
IMAGE_HW3 = random_image(HEIGHT, WIDTH).clip(1)
LABEL_HW = np.random.default_rng(1).choice([0, 1, 255], (HEIGHT, WIDTH)).astype(np.uint8)
VALID_HW = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.7
MEAN = (123.675, 116.28, 103.53)
FILLED_HW3 = np.where(VALID_HW[..., None], IMAGE_HW3, [124, 116, 104]).astype(np.uint8)


def holed_dataset(root: Path, split: str = "train", label_HW: NDArray[np.uint8] = LABEL_HW) -> tuple[Pair, DataConfig]:
    """Write a pair whose image has data at VALID_HW alone."""
    holed_HW3 = np.where(VALID_HW[..., None], IMAGE_HW3, 0).astype(np.uint8)
    write_file(root / "images" / split / "a.tif", tiff(holed_HW3, photometric="rgb", **with_nodata("0")))
    write_file(root / "annotations" / split / "a.png", encoded(label_HW, "PNG"))
    classes = [{"name": name, "color": [k, k, k]} for k, name in enumerate(("sky", "road"))]
    data = DataConfig.model_validate({"root": str(root), "classes": classes})
    return list_pairs(data, split)[0], data


def test_pixels_without_data_are_ignored_in_the_label(tmp_path: Path) -> None:
    pair, data = holed_dataset(tmp_path)
    image_HW3, label_HW = load_pair(pair, data, MEAN)
    np.testing.assert_array_equal(image_HW3, FILLED_HW3)
    np.testing.assert_array_equal(label_HW, np.where(VALID_HW, LABEL_HW, 255))
    np.testing.assert_array_equal(load_image(pair, data, MEAN), FILLED_HW3)


def test_a_validation_counts_them_as_ignored(tmp_path: Path) -> None:
    pair, data = holed_dataset(tmp_path)
    block = {"split": "train", "start": 0, "pairs": pickle.dumps([pair])}
    (read,) = read_block(pa.Table.from_pylist([block], BLOCK), data)
    (row,) = read.to_pylist()
    assert row["findings"] == []
    assert row["pixels"] == np.bincount(LABEL_HW[VALID_HW])[:2].tolist()
    assert row["ignored"] == (~VALID_HW | (LABEL_HW == 255)).sum()


@pytest.mark.parametrize(("is_labelled_HW", "kinds"), [(VALID_HW, []), (~VALID_HW, ["nothing labelled"])])
def test_an_image_whose_labeled_pixels_have_no_data_has_nothing_labeled(
    tmp_path: Path, is_labelled_HW: NDArray[np.bool_], kinds: list[str]
) -> None:
    pair, data = holed_dataset(tmp_path, label_HW=np.where(is_labelled_HW, 0, 255).astype(np.uint8))
    block = {"split": "train", "start": 0, "pairs": pickle.dumps([pair])}
    (read,) = read_block(pa.Table.from_pylist([block], BLOCK), data)
    assert [finding["kind"] for row in read.to_pylist() for finding in row["findings"]] == kinds
