"""Labels of own data: pixels are right or refused, and the message has what to paste."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.data import DataConfig
from pipeline.datasets import list_pairs, load_pair, validation
from pipeline.datasets.sample_check import check_sample
from pipeline.datasets.validation import DatasetCheck, SplitCheck
from pipeline.datasets.validation_report import summary
from pipeline.errors import UserError
from tests.pipeline.datasets.test_validation import read
from tests.pipeline.samples import encoded, random_image, write_file

HEIGHT, WIDTH = 6, 8
THREE = ("sky", "road", "car")


def data_config(root: Path, names: Sequence[str] = THREE, **values: Any) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), "classes": list(names), **values})


def ids(*values: int, dtype: type = np.uint8) -> NDArray[Any]:
    """A label map whose pixels repeat `values`."""
    return np.resize(np.array(values, dtype), (HEIGHT, WIDTH))


def rgb(*values: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH, 3))


def put(root: Path, *labels: bytes | NDArray[Any] | Image.Image, image: bytes | None = None) -> None:
    """Write a training set with these annotations."""
    for number, label in enumerate(labels):
        content = image or encoded(random_image(HEIGHT, WIDTH, number), "PNG")
        write_file(root / f"images/train/{number}.png", content)
        label = label if isinstance(label, bytes) else encoded(label, "PNG")
        write_file(root / f"annotations/train/{number}.png", label)


def message_of_training(data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_sample(list_pairs(data, "train"), data)
    return str(caught.value)


def message_of_pair(data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_pair(list_pairs(data, "train")[0], data)
    return str(caught.value)


def checked(data: DataConfig) -> DatasetCheck:
    """The check of the training split, without Ray."""
    pairs = list_pairs(data, "train")
    zeros_K = np.zeros(len(data.classes), np.int64)
    check = DatasetCheck(data, {"train": SplitCheck(len(pairs), "", zeros_K, zeros_K.copy())})
    validation._add(check, read(pairs, data))
    validation.finish(check)
    return check


def text_of(check: DatasetCheck) -> str:
    return "\n".join(summary(check))


def pasted(message: str) -> dict[int, int]:
    """The `label_map` at the end of a line of a message."""
    return yaml.safe_load(message.partition("data.label_map: ")[2].partition("}")[0] + "}")


# Ids that count from 1


def test_ids_from_1_are_recognized_with_the_label_map_to_paste(tmp_path: Path) -> None:
    put(tmp_path, ids(1, 2), ids(2, 3), ids(1, 3, 255))
    data = data_config(tmp_path)
    text = text_of(checked(data))
    for message in (text, message_of_training(data)):
        assert "the ids seem to count from 1" in message
        assert pasted(message) == {1: 0, 2: 1, 3: 2}
        assert "3: 255" not in message
    assert text.count("are outside the 3 classes") == 1, "once, not per file"
    assert "0.png" not in message_of_training(data), "whose ids 1 and 2 are classes"
    right = data_config(tmp_path, label_map={1: 0, 2: 1, 3: 2})
    check_sample(list_pairs(right, "train"), right)
    assert checked(right).errors == 0


def test_ids_from_1_without_the_last_are_a_warning_with_the_label_map(tmp_path: Path) -> None:
    put(tmp_path, ids(1, 2))
    check = checked(data_config(tmp_path))
    assert pasted(check.remedy("class that never occurs")) == {1: 0, 2: 1, 3: 2}


def test_one_id_too_many_with_0_is_void_or_a_missing_class(tmp_path: Path) -> None:
    put(tmp_path, ids(0, 1, 3))
    message = message_of_training(data_config(tmp_path))
    assert "there are 4 ids for 3 classes: add the missing class" in message
    assert pasted(message) == {0: 255, 1: 0, 2: 1, 3: 2}


@pytest.mark.parametrize(("void", "dtype"), [(-1, np.int32), (65535, np.uint16)])
def test_a_signed_void_is_explained(tmp_path: Path, void: int, dtype: type) -> None:
    format = "TIFF" if void < 0 else "PNG"
    put(tmp_path, encoded(ids(0, 1, void, dtype=dtype), format))
    message = message_of_pair(data_config(tmp_path))
    assert "often mark void" in message
    assert pasted(message) == {void: 255}


# Colors


def test_unknown_colors_are_listed_with_counts_and_the_classes_to_paste(tmp_path: Path) -> None:
    put(tmp_path, rgb((200, 0, 9), (0, 0, 0)), rgb((200, 0, 9), (7, 8, 9), (128, 0, 0)))
    data = data_config(tmp_path)
    text = text_of(checked(data))
    for message in (text, message_of_training(data)):
        assert "(200, 0, 9) 41.67% in 2; " in message
        assert "(7, 8, 9) 16.67% in 1" in message
        block = "classes: [" + message.partition("classes: [")[2].partition("\n  ]")[0] + "\n  ]"
        classes = yaml.safe_load(f"data:\n  {block}")["data"]["classes"]
        assert {tuple(entry["color"]) for entry in classes} == {(200, 0, 9), (0, 0, 0), (7, 8, 9), (128, 0, 0)}
        assert {"name": "road", "color": [128, 0, 0]} in classes, "with the name that it has"
    assert "remove it from data.classes" not in text
    right = DataConfig.model_validate({"root": str(tmp_path), "classes": classes})
    assert checked(right).errors == 0


def test_blended_colors_are_named_as_such(tmp_path: Path) -> None:
    put(tmp_path, random_image(40, 40), image=encoded(random_image(40, 40), "PNG"))
    message = message_of_training(data_config(tmp_path))
    assert "more than classes can have: their borders were blended" in message
    assert len(message) < 1000


# Binary masks


def test_masks_of_0_and_255_do_not_ignore_their_foreground_silently(tmp_path: Path) -> None:
    put(tmp_path, ids(0, 255), ids(0))
    data = data_config(tmp_path, ("background", "crack"))
    check = checked(data)
    assert check.totals["ignored foreground"] == 1
    assert check.errors == 1
    assert "25.0% of the pixels ignored" in text_of(check)
    for message in (text_of(check), message_of_training(data)):
        assert "if 255 is class 1 (crack)" in message
        assert pasted(message) == {255: 1}
    assert "remove it from data.classes" not in text_of(check)
    right = data_config(tmp_path, ("background", "crack"), label_map={255: 1})
    check_sample(list_pairs(right, "train"), right)
    assert checked(right).errors == 0


def test_much_ignored_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, ids(0, 1, 2, 255, 255, 255, 255))
    check = checked(data_config(tmp_path))
    assert (check.errors, check.totals["mostly ignored"]) == (0, 1)


def test_masks_of_1_bit_between_masks_of_0_and_255_are_an_error(tmp_path: Path) -> None:
    bits = Image.fromarray(ids(0, 255)).convert("1")
    put(tmp_path, bits, ids(0, 255), ids(0, 255), ids(0))
    names = ("background", "crack")
    check = checked(data_config(tmp_path, names))
    assert check.totals["masks of 1 and of 8 bits"] == 1
    for message in (text_of(check), message_of_training(data_config(tmp_path, names))):
        assert "2 mask(s) have 8 bits, with ids 0 and 255, but 1 have 1 bit" in message
        assert pasted(message) == {255: 1}
    assert checked(data_config(tmp_path, names, label_map={255: 1})).errors == 0


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_samples_of_few_bits_are_ids_as_they_are(tmp_path: Path, bits: int) -> None:
    from tests.pipeline.images.test_formats import png

    put(tmp_path, png(ids(0, 1, 2), bits, 0))
    _, label_HW = load_pair(list_pairs(data_config(tmp_path), "train")[0], data_config(tmp_path))
    np.testing.assert_array_equal(label_HW, ids(0, 1, 2))


# Lossy files


@pytest.mark.parametrize(
    ("format", "options", "name"),
    [
        ("JPEG", {"quality": 100}, "JPEG"),
        ("WEBP", {"quality": 100}, "lossy WebP"),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}, "lossy WebP"),
        ("AVIF", {}, "AVIF or HEIF"),
        ("JPEG2000", {}, "JPEG 2000"),
        ("TIFF", {"compression": "jpeg"}, "TIFF with lossy compression"),
    ],
)
def test_lossy_annotations_are_refused_by_name(tmp_path: Path, format: str, options: dict[str, Any], name: str) -> None:
    put(tmp_path, encoded(Image.new("L", (WIDTH, HEIGHT), 1), format, **options))
    message = message_of_pair(data_config(tmp_path))
    assert f"is {name}, wh" in message
    assert "export the annotations again as PNG" in message


def test_a_lossless_webp_is_read(tmp_path: Path) -> None:
    colored = rgb((0, 0, 0), (128, 0, 0), (0, 128, 0))
    for options in ({}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        put(tmp_path, encoded(colored, "WEBP", lossless=True, **options))
        _, label_HW = load_pair(list_pairs(data_config(tmp_path), "train")[0], data_config(tmp_path))
        np.testing.assert_array_equal(label_HW, ids(0, 1, 2))


# Ids in three channels


def test_ids_in_three_channels_are_recognized_and_read_with_an_option(tmp_path: Path) -> None:
    put(tmp_path, np.dstack([ids(0, 1, 2)] * 3), np.dstack([ids(0)] * 3))
    colors = [{"name": name, "color": [k, 0, 9]} for k, name in enumerate(THREE)]
    for classes in (list(THREE), colors):
        data = data_config(tmp_path, classes=classes)
        assert "set data.rgb_ids: true" in message_of_pair(data)
        assert "set data.rgb_ids: true" in message_of_training(data)
        data = data_config(tmp_path, classes=classes, rgb_ids=True)
        loaded = [load_pair(pair, data)[1] for pair in list_pairs(data, "train")]
        np.testing.assert_array_equal(loaded, [ids(0, 1, 2), ids(0)])


def test_colors_are_no_ids_in_three_channels(tmp_path: Path) -> None:
    put(tmp_path, rgb((0, 0, 0), (128, 0, 0)))
    assert "has colors, but data.rgb_ids expects" in message_of_pair(data_config(tmp_path, rgb_ids=True))


# Orientation


def with_orientation(pixels: NDArray[Any], turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = turn
    return encoded(pixels, "PNG", exif=exif)


@pytest.mark.parametrize("turn", [2, 3, 4, 5, 6, 7, 8])
def test_an_image_turned_by_exif_with_a_mask_as_stored_is_named(tmp_path: Path, turn: int) -> None:
    put(tmp_path, ids(0, 1), image=with_orientation(random_image(HEIGHT, WIDTH), turn))
    data = data_config(tmp_path)
    message = message_of_pair(data)
    assert f"EXIF orientation of the image is {turn}" in message
    assert "same size" not in message
    assert checked(data).totals == {"orientations differ": 1}


@pytest.mark.parametrize("turn", [3, 6])
def test_a_mask_turned_by_exif_with_an_image_as_stored_is_named(tmp_path: Path, turn: int) -> None:
    put(tmp_path, with_orientation(ids(0, 1), turn))
    assert f"but that of the annotation is {turn}" in message_of_pair(data_config(tmp_path))


def test_turned_files_that_agree_are_read(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    for turn in range(2, 9):
        put(tmp_path, with_orientation(ids(0, 1), turn), image=with_orientation(random_image(HEIGHT, WIDTH), turn))
        load_pair(list_pairs(data, "train")[0], data)
    put(tmp_path, ids(0, 1).T, image=with_orientation(random_image(HEIGHT, WIDTH), 6))
    _, label_HW = load_pair(list_pairs(data, "train")[0], data)
    np.testing.assert_array_equal(label_HW, ids(0, 1).T)


# Classes beside a known format


def put_voc(root: Path, label: NDArray[Any]) -> None:
    write_file(root / "JPEGImages/a.png", encoded(random_image(HEIGHT, WIDTH), "PNG"))
    write_file(root / "SegmentationClass/a.png", encoded(label, "PNG"))
    write_file(root / "ImageSets/Segmentation/train.txt", b"a\n")


def label_of(data: DataConfig) -> NDArray[np.int32]:
    (pair,) = list_pairs(data, "train")
    return load_pair(pair, data)[1]


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_classes_of_a_format_in_another_order_keep_their_pixels(tmp_path: Path, kind: str) -> None:
    road, sidewalk = (7, 8) if kind == "labelIds" else (0, 1)
    write_file(tmp_path / "leftImg8bit/train/a_leftImg8bit.png", encoded(random_image(HEIGHT, WIDTH), "PNG"))
    label = encoded(ids(road, road, sidewalk, 255), "PNG")
    write_file(tmp_path / f"gtFine/train/a_gtFine_{kind}.png", label)
    data = data_config(tmp_path, ("sidewalk", "road"), format="cityscapes")
    np.testing.assert_array_equal(label_of(data), ids(1, 1, 0, 255))
    assert data.classes[0].color == (244, 35, 232), "the format's, where only names are given"


def test_ids_of_classes_left_out_are_refused(tmp_path: Path) -> None:
    put_voc(tmp_path, ids(0, 15, 3))
    with pytest.raises(UserError, match=r"label id\(s\) 3 are neither voc label ids of data.classes"):
        label_of(data_config(tmp_path, ("person", "background"), format="voc"))


def test_colors_of_classes_in_another_order_keep_their_class(tmp_path: Path) -> None:
    put_voc(tmp_path, rgb((0, 0, 0), (192, 128, 128), (224, 224, 192)))
    data = data_config(tmp_path, ("person", "background"), format="voc")
    np.testing.assert_array_equal(label_of(data), ids(1, 0, 255))


def test_own_classes_in_the_layout_of_voc_have_their_own_colors(tmp_path: Path) -> None:
    """As annotation tools export them: lesion has VOC's color of class 2."""
    classes = [
        {"name": name, "color": color}
        for name, color in (("background", [0, 0, 0]), ("lesion", [0, 128, 0]), ("vessel", [250, 50, 83]))
    ]
    data = data_config(tmp_path, format="voc", classes=classes)
    put_voc(tmp_path, rgb((0, 128, 0), (0, 0, 0), (250, 50, 83)))
    np.testing.assert_array_equal(label_of(data), ids(1, 0, 2))
    put_voc(tmp_path, ids(1, 0, 2, 255))
    np.testing.assert_array_equal(label_of(data), ids(1, 0, 2, 255))


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("cityscapes", ("road", "side walk")),
        ("ade20k", ("tumor", "tissue")),
        ("coco_stuff", ("tumor", "tissue")),
        ("voc", ("background", "person", "lesion")),
    ],
)
def test_other_classes_than_the_formats_are_refused_with_both_tables(
    tmp_path: Path, format: str, names: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=f"data.classes do not fit format {format}: {format} has no class") as caught:
        list_pairs(data_config(tmp_path, names, format=format), "train")
    assert f"data.classes: {names[0]} (" in str(caught.value)
    assert "person (" in str(caught.value)


def test_a_color_of_another_class_of_the_format_is_refused(tmp_path: Path) -> None:
    classes = [{"name": "background", "color": [0, 0, 0]}, {"name": "person", "color": [128, 0, 0]}]
    with pytest.raises(UserError, match=r"voc has the color \(128, 0, 0\) of 'person' for 'aeroplane'"):
        list_pairs(data_config(tmp_path, classes=classes, format="voc"), "train")
