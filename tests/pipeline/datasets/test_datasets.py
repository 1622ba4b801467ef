"""A training set: images meet their annotations, and a fault is told with its file and its remedy."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.data import ClassEntry, DataConfig
from pipeline.datasets import Pair, list_pairs, load_pair
from pipeline.errors import UserError
from tests.pipeline.image_corpus import tiff
from tests.pipeline.samples import encoded, random_image, write_file

HEIGHT, WIDTH = 12, 10


def data_config(root: Path | str, **changes: Any) -> DataConfig:
    """Three classes, and 255 to ignore."""
    classes = [ClassEntry(name=name, color=(k, k, k)) for k, name in enumerate(("sky", "road", "car"))]
    return DataConfig(root=str(root), classes=classes, **changes)


def add_pair(root: Path, name: str = "a", label_HW: NDArray[Any] | None = None, split: str = "train") -> Pair:
    """Write an image and its annotation."""
    label_HW = np.zeros((HEIGHT, WIDTH), np.uint8) if label_HW is None else label_HW
    image = write_file(root / "images" / split / f"{name}.png", encoded(random_image(HEIGHT, WIDTH), "PNG"))
    label = write_file(root / "annotations" / split / f"{name}.png", encoded(label_HW, "PNG"))
    return Pair(f"file://{image}", f"file://{label}")


def labels(*rows: list[int], dtype: type = np.uint8) -> NDArray[Any]:
    """A label map of the images' size that begins with `rows`; the rest is class 0."""
    label_HW = np.zeros((HEIGHT, WIDTH), dtype)
    for y, row in enumerate(rows):
        label_HW[y, : len(row)] = row
    return label_HW


def complaint(pair: Pair, data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_pair(pair, data)
    return str(caught.value)


# Which belongs to which


def test_images_meet_annotations_of_the_same_name_in_name_order(tmp_path: Path) -> None:
    expected = [add_pair(tmp_path, name) for name in ("a", "b.2024", "city/a", "city/z")]
    assert list_pairs(data_config(tmp_path), "train") == expected


def test_images_of_a_dataset_have_the_bands_and_the_range_that_it_names(tmp_path: Path) -> None:
    pair = add_pair(tmp_path)
    bands_HW4 = np.arange(HEIGHT * WIDTH * 4, dtype=np.uint16).reshape(HEIGHT, WIDTH, 4)
    content = tiff(bands_HW4, photometric="minisblack", planarconfig="contig")
    path = write_file(tmp_path / "images" / "train" / "a.tif", content)
    image_HW3, _ = load_pair(
        Pair(f"file://{path}", pair.label_uri), data_config(tmp_path, bands="4,2,1", value_range="0,510")
    )
    np.testing.assert_array_equal(image_HW3, (bands_HW4[..., [3, 1, 0]] / 2).round().clip(max=255))


def test_extensions_of_images_and_annotations_may_differ(tmp_path: Path) -> None:
    write_file(tmp_path / "images" / "train" / "a.jpg", b"")
    write_file(tmp_path / "annotations" / "train" / "a.png", b"")
    (pair,) = list_pairs(data_config(tmp_path), "train")
    assert (pair.image_uri[-5:], pair.label_uri[-5:]) == ("a.jpg", "a.png")


def test_a_split_holds_its_own_images_alone(tmp_path: Path) -> None:
    add_pair(tmp_path, "a", split="train")
    expected = add_pair(tmp_path, "b", split="val")
    assert list_pairs(data_config(tmp_path), "val") == [expected]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    expected = add_pair(tmp_path)
    write_file(tmp_path / "images" / "train" / ".DS_Store", b"")
    write_file(tmp_path / "annotations" / "train" / "._a.png", b"")
    assert list_pairs(data_config(tmp_path), "train") == [expected]


def test_annotations_without_an_image_do_no_harm(tmp_path: Path) -> None:
    expected = add_pair(tmp_path)
    write_file(tmp_path / "annotations" / "train" / "b.png", b"")
    assert list_pairs(data_config(tmp_path), "train") == [expected]


def test_images_without_annotation_are_counted_and_named(tmp_path: Path) -> None:
    add_pair(tmp_path)
    for number in range(7):
        write_file(tmp_path / "images" / "train" / f"lonely{number}.jpg", b"")
    with pytest.raises(UserError) as caught:
        list_pairs(data_config(tmp_path), "train")
    message = str(caught.value)
    assert f"data.root {tmp_path.as_uri()}, split 'train':\n  missing annotation (7): " in message
    assert f"file://{tmp_path}/images/train/lonely0.jpg: found no annotations/train/lonely0.*" in message
    assert "lonely4.* ..." in message
    assert "lonely5" not in message
    assert "add the annotations or remove the images" in message


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_two_files_for_one_name_are_named(tmp_path: Path, folder: str) -> None:
    add_pair(tmp_path)
    write_file(tmp_path / folder / "train" / "a.bmp", b"")
    with pytest.raises(UserError, match="differ only in their extension; keep one of them") as caught:
        list_pairs(data_config(tmp_path), "train")
    assert f"{folder}/train/a.bmp" in str(caught.value)
    assert f"{folder}/train/a.png" in str(caught.value)


def test_no_images_name_the_folder_and_the_split(tmp_path: Path) -> None:
    add_pair(tmp_path)
    with pytest.raises(
        UserError, match=r"found no images in images/test; check data.root, data.format and the name of the split"
    ) as caught:
        list_pairs(data_config(tmp_path), "test")
    assert str(tmp_path) in str(caught.value)


def test_a_relative_root_gives_absolute_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have other working folders."""
    expected = add_pair(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    for root in ("set", "./set/", "other/../set"):
        assert list_pairs(data_config(root), "train") == [expected], root


def test_a_bucket_works_like_a_folder(bucket: str) -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), labels([1, 2, 255])
    storage.write_bytes(f"{bucket}/set/images/train/a [1].png", encoded(image_HW3, "PNG"))
    storage.write_bytes(f"{bucket}/set/annotations/train/a [1].png", encoded(label_HW, "PNG"))
    storage.write_bytes(f"{bucket}/set/images/train/", b"")  # the marker that consoles make for a folder
    data = data_config(f"{bucket}/set")
    (pair,) = list_pairs(data, "train")
    loaded_HW3, loaded_HW = load_pair(pair, data)
    np.testing.assert_array_equal(loaded_HW3, image_HW3)
    np.testing.assert_array_equal(loaded_HW, label_HW)


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(UserError, match="bucket 'no-such-store' does not exist"):
        list_pairs(data_config("s3://no-such-store/set"), "train")


# One pair as arrays


def test_a_pair_is_an_rgb_image_and_its_class_ids(tmp_path: Path) -> None:
    label_HW = labels([0, 1, 2, 255])
    image_HW3, loaded_HW = load_pair(add_pair(tmp_path, label_HW=label_HW), data_config(tmp_path))
    np.testing.assert_array_equal(image_HW3, random_image(HEIGHT, WIDTH))
    assert loaded_HW.dtype == np.int32
    np.testing.assert_array_equal(loaded_HW, label_HW)


def test_ids_outside_the_classes_are_named_with_the_file_and_what_to_set(tmp_path: Path) -> None:
    pair = add_pair(tmp_path, label_HW=labels([3, 7, 255, 1]))
    message = complaint(pair, data_config(tmp_path))
    assert pair.label_uri in message
    assert "label id(s) 3, 7 are outside the 3 classes (0 to 2) and not the ignore_index 255" in message
    assert "add a class for each to data.classes, which has 3, or map each with data.label_map" in message
    assert "3: 255" not in message, "which would drop a class of annotations that count from 1"


def test_at_most_five_wrong_ids_are_shown(tmp_path: Path) -> None:
    pair = add_pair(tmp_path, label_HW=labels(list(range(10, 20))))
    assert "label id(s) 10, 11, 12, 13, 14 ... are outside" in complaint(pair, data_config(tmp_path))


@pytest.mark.parametrize("label_id", [-1, 20_000_000])
def test_ids_far_outside_are_named_like_any_other(tmp_path: Path, label_id: int) -> None:
    """-1 is a common way to say "ignore"; TIFF holds it."""
    pair = add_pair(tmp_path)
    content = encoded(labels([label_id], dtype=np.int32), "TIFF")
    write_file(Path(pair.label_uri.removeprefix("file://")), content)
    assert f"label id(s) {label_id} are outside the 3 classes" in complaint(pair, data_config(tmp_path))


def test_an_id_far_outside_takes_no_memory_in_proportion(tmp_path: Path) -> None:
    """A 32-bit TIFF that is no label map, such as a depth map, must not end the worker."""
    pair = add_pair(tmp_path)
    write_file(Path(pair.label_uri.removeprefix("file://")), encoded(labels([20_000_000], dtype=np.int32), "TIFF"))
    tracemalloc.start()
    complaint(pair, data_config(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_negative_id_can_be_mapped(tmp_path: Path) -> None:
    pair = add_pair(tmp_path)
    content = encoded(labels([-1, 2], dtype=np.int32), "TIFF")
    write_file(Path(pair.label_uri.removeprefix("file://")), content)
    _, loaded_HW = load_pair(pair, data_config(tmp_path, label_map={-1: 255}))
    np.testing.assert_array_equal(loaded_HW, labels([255, 2]))


def test_the_label_map_replaces_ids_all_at_once_and_leaves_the_others(tmp_path: Path) -> None:
    """1 -> 2 and 2 -> 1 swap: a map applied entry by entry would merge them."""
    pair = add_pair(tmp_path, label_HW=labels([0, 1, 2, 7, 255]))
    _, loaded_HW = load_pair(pair, data_config(tmp_path, label_map={1: 2, 2: 1, 7: 255, 200: 0}))
    np.testing.assert_array_equal(loaded_HW, labels([0, 2, 1, 255, 255]))


def test_an_id_mapped_to_no_class_is_refused_by_its_name_in_the_file(tmp_path: Path) -> None:
    pair = add_pair(tmp_path, label_HW=labels([5]))
    assert "label id(s) 5 are outside" in complaint(pair, data_config(tmp_path, label_map={5: 9}))


def test_another_ignore_index_counts_instead_of_255(tmp_path: Path) -> None:
    pair = add_pair(tmp_path, label_HW=labels([3]))
    _, loaded_HW = load_pair(pair, data_config(tmp_path, ignore_index=3))
    np.testing.assert_array_equal(loaded_HW, labels([3]))
    pair = add_pair(tmp_path, label_HW=labels([255]))
    assert "label id(s) 255" in complaint(pair, data_config(tmp_path, ignore_index=3))


def test_sixteen_bit_annotations_hold_ids_above_255(tmp_path: Path) -> None:
    label_HW = labels([1, 300, 65535], dtype=np.uint16)
    data = data_config(tmp_path, ignore_index=65535, label_map={300: 2})
    _, loaded_HW = load_pair(add_pair(tmp_path, label_HW=label_HW), data)
    np.testing.assert_array_equal(loaded_HW, labels([1, 2, 65535], dtype=np.int32))


def test_an_annotation_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    pair = add_pair(tmp_path, label_HW=np.zeros((WIDTH, HEIGHT), np.uint8))
    message = complaint(pair, data_config(tmp_path))
    assert f"annotation {pair.label_uri} is {HEIGHT} x {WIDTH} pixels" in message
    assert f"its image {pair.image_uri} is {WIDTH} x {HEIGHT}" in message


def test_a_colour_of_no_class_is_named_with_its_file_and_place(tmp_path: Path) -> None:
    colored_HW3 = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colored_HW3[2, 5] = 200, 100, 50
    pair = add_pair(tmp_path, label_HW=colored_HW3)
    message = complaint(pair, data_config(tmp_path))
    assert message.startswith(
        f"annotation {pair.label_uri}: is a color image, and its color (200, 100, 50) at column 5, row 2"
    )


@pytest.mark.parametrize("folder", ["images", "annotations"])
@pytest.mark.parametrize("content", [b"", b"no image", encoded(random_image(64, 64), "PNG")[:500]])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, folder: str, content: bytes) -> None:
    pair = add_pair(tmp_path)
    broken = write_file(tmp_path / folder / "train" / "a.png", content)
    assert complaint(pair, data_config(tmp_path)).startswith(f"{folder[:-1]} file://{broken}: ")


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_a_file_that_has_gone_is_named(tmp_path: Path, folder: str) -> None:
    pair = add_pair(tmp_path)
    gone = tmp_path / folder / "train" / "a.png"
    gone.unlink()
    assert complaint(pair, data_config(tmp_path)) == f"file://{gone}: not found; check the path"
