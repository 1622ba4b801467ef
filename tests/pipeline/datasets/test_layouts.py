"""Every layout: its images meet their annotations, and its label ids become class ids."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets import Pair, check_no_shared_images, fingerprint, list_pairs, list_split, load_pair
from pipeline.errors import UserError
from tests.pipeline.samples import encoded, random_image

HEIGHT, WIDTH = 6, 8
CLASSES = [{"name": name, "color": [k, k, k + 1]} for k, name in enumerate(("sky", "road", "car"))]


def data_config(root: Path | str, format: str, **values: Any) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), "format": format, **values})


def put(root: Path | str, name: str, content: bytes) -> None:
    storage.write_bytes(f"{root}/{name}", content)


def image() -> bytes:
    return encoded(random_image(HEIGHT, WIDTH), "PNG")


def label(*ids: int, dtype: type = np.uint8) -> bytes:
    """An annotation whose first pixels hold `ids`, and the others the last of them."""
    return encoded(label_ids(*ids, dtype=dtype), "PNG")


def label_ids(*ids: int, dtype: type = np.uint8) -> NDArray[Any]:
    label_HW = np.full((HEIGHT, WIDTH), ids[-1], dtype)
    label_HW[0, : len(ids)] = ids
    return label_HW


def colored(*colors: tuple[int, int, int]) -> bytes:
    """An annotation in colour, likewise."""
    colored_HW3 = np.full((HEIGHT, WIDTH, 3), colors[-1], np.uint8)
    colored_HW3[0, : len(colors)] = colors
    return encoded(colored_HW3, "PNG")


def first_ids(pair: Pair, data: DataConfig, count: int) -> list[int]:
    """The class ids of the first pixels; the whole label must be of the image's size."""
    _, label_HW = load_pair(pair, data)
    assert label_HW.shape == (HEIGHT, WIDTH)
    return label_HW[0, :count].tolist()


def names(pairs: list[Pair]) -> list[str]:
    return [Path(pair.image_uri).name for pair in pairs]


# ADE20K


def test_ade20k_from_a_bucket_counts_from_zero_and_ignores_void(bucket: str) -> None:
    put(bucket, "images/training/ADE_train_1.jpg", image())
    put(bucket, "annotations/training/ADE_train_1.png", label(0, 1, 150))
    put(bucket, "images/validation/ADE_val_1.jpg", image())
    put(bucket, "annotations/validation/ADE_val_1.png", label(13))
    data = data_config(bucket, "ade20k")
    (pair,) = list_pairs(data, data.train_split)
    assert first_ids(pair, data, 3) == [255, 0, 149]
    (pair,) = list_pairs(data, data.val_split)
    assert first_ids(pair, data, 1) == [12]


def test_ade20k_ids_beyond_the_150_are_named(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a.jpg", image())
    put(tmp_path, "annotations/training/a.png", label(151, 1))
    data = data_config(tmp_path, "ade20k")
    (pair,) = list_pairs(data, "training")
    with pytest.raises(UserError, match=r"a.png: label id\(s\) 151 are neither ade20k label ids of data.classes"):
        load_pair(pair, data)


def test_void_becomes_the_ignore_index_whatever_it_is_and_the_label_map_wins(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a.jpg", image())
    put(tmp_path, "annotations/training/a.png", label(0, 1, 2))
    data = data_config(tmp_path, "ade20k", ignore_index=999, label_map={2: 0})
    (pair,) = list_pairs(data, "training")
    assert first_ids(pair, data, 3) == [999, 0, 0]


# Cityscapes


def put_cityscapes(root: Path | str, city: str, frame: str, **annotations: bytes) -> None:
    put(root, f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png", image())
    for kind, content in annotations.items():
        put(root, f"gtFine/train/{city}/{frame}_gtFine_{kind}.png", content)


def test_cityscapes_label_ids_become_the_19_train_ids(tmp_path: Path) -> None:
    others = {"color": colored((1, 2, 3)), "instanceIds": label(26000, dtype=np.uint16)}
    put_cityscapes(tmp_path, "ulm", "ulm_000_019", labelIds=label(7, 33, 0, 9, 30), **others)
    put_cityscapes(tmp_path, "aachen", "aachen_000_019", labelIds=label(26), **others)
    put(tmp_path, "gtFine/train/ulm/ulm_000_019_gtFine_polygons.json", b"{}")
    data = data_config(tmp_path, "cityscapes")
    listing = list_split(data, "train")
    assert listing.findings == []
    assert names(listing.pairs) == ["aachen_000_019_leftImg8bit.png", "ulm_000_019_leftImg8bit.png"]
    assert first_ids(listing.pairs[1], data, 5) == [0, 18, 255, 255, 255]


def test_cityscapes_train_ids_are_taken_where_they_are(tmp_path: Path) -> None:
    put_cityscapes(tmp_path, "ulm", "ulm_000_019", labelIds=label(7), labelTrainIds=label(18, 255))
    data = data_config(tmp_path, "cityscapes")
    (pair,) = list_pairs(data, "train")
    assert pair.label_uri.endswith("_gtFine_labelTrainIds.png")
    assert first_ids(pair, data, 2) == [18, 255]


def test_a_cityscapes_image_without_label_ids_is_told_with_what_is_missing(tmp_path: Path) -> None:
    put_cityscapes(tmp_path, "ulm", "ulm_000_019", color=colored((1, 2, 3)))
    with pytest.raises(UserError) as caught:
        list_pairs(data_config(tmp_path, "cityscapes"), "train")
    assert "ulm_000_019_leftImg8bit.png: found no gtFine/train/ulm/ulm_000_019_gtFine_labelTrainIds.* or" in str(
        caught.value
    )


# Pascal VOC


def put_voc(root: Path | str, names: list[str], annotations: str = "SegmentationClass") -> None:
    palette_image = Image.fromarray(label_ids(0, 15, 255))
    palette_image.putpalette([(7 * channel) % 256 for channel in range(768)])
    for name in names:
        put(root, f"JPEGImages/{name}.jpg", image())
        put(root, f"{annotations}/{name}.png", encoded(palette_image, "PNG"))


def test_voc_takes_the_listed_images_and_ignores_the_border(bucket: str) -> None:
    put_voc(bucket, ["2007_000032", "2007_000033", "2007_000039"])
    put(bucket, "ImageSets/Segmentation/train.txt", b"2007_000039\n2007_000032\n\n")
    data = data_config(bucket, "voc")
    pairs = list_pairs(data, "train")
    assert names(pairs) == ["2007_000039.jpg", "2007_000032.jpg"]
    assert first_ids(pairs[0], data, 3) == [0, 15, 255]


@pytest.mark.parametrize("line", ["2008_000001", "/JPEGImages/2008_000001.jpg /SegmentationClassAug/2008_000001.png"])
def test_voc_train_aug_takes_sbds_annotations(tmp_path: Path, line: str) -> None:
    put_voc(tmp_path, ["2008_000001"], "SegmentationClassAug")
    put(tmp_path, "ImageSets/Segmentation/train_aug.txt", line.encode())
    data = data_config(tmp_path, "voc", train_split="train_aug")
    (pair,) = list_pairs(data, data.train_split)
    assert pair.label_uri.endswith("/SegmentationClassAug/2008_000001.png")


def test_voc_annotations_in_colour_are_mapped(tmp_path: Path) -> None:
    put(tmp_path, "JPEGImages/a.jpg", image())
    put(tmp_path, "SegmentationClass/a.png", colored((128, 0, 0), (0, 64, 128), (224, 224, 192), (0, 0, 0)))
    put(tmp_path, "ImageSets/Segmentation/val.txt", b"a")
    data = data_config(tmp_path, "voc")
    (pair,) = list_pairs(data, "val")
    assert first_ids(pair, data, 4) == [1, 20, 255, 0]


def test_voc_tells_every_listed_name_that_lacks_a_file(tmp_path: Path) -> None:
    put_voc(tmp_path, ["a", "b"])
    (tmp_path / "SegmentationClass/b.png").unlink()
    put(tmp_path, "ImageSets/Segmentation/train.txt", b"a\nb\nc\n")
    listing = list_split(data_config(tmp_path, "voc"), "train")
    assert names(listing.pairs) == ["a.jpg"]
    assert [(finding.kind, finding.message) for finding in listing.findings] == [
        ("missing annotation", "found no SegmentationClass/b.*"),
        ("missing image", "found no JPEGImages/c.*"),
        ("missing annotation", "found no SegmentationClass/c.*"),
    ]
    assert listing.findings[1].where.endswith("ImageSets/Segmentation/train.txt line 3")


def test_a_list_without_names_is_no_empty_training(tmp_path: Path) -> None:
    put_voc(tmp_path, ["a"])
    put(tmp_path, "ImageSets/Segmentation/train.txt", b"\n")
    with pytest.raises(UserError, match=r"ImageSets/Segmentation/train\.txt lists no images"):
        list_pairs(data_config(tmp_path, "voc"), "train")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    put_voc(tmp_path, ["a"])
    with pytest.raises(UserError, match=r"ImageSets/Segmentation/train_aug.txt: not found"):
        list_pairs(data_config(tmp_path, "voc"), "train_aug")


# COCO-Stuff


def test_coco_stuff_closes_the_gaps_between_its_182_ids(tmp_path: Path) -> None:
    put(tmp_path, "images/train2017/000000000009.jpg", image())
    put(tmp_path, "annotations/train2017/000000000009.png", label(0, 12, 181, 255))
    data = data_config(tmp_path, "coco_stuff")
    (pair,) = list_pairs(data, data.train_split)
    assert first_ids(pair, data, 4) == [0, 11, 170, 255]


def test_coco_stuff_ids_in_a_gap_are_no_class(tmp_path: Path) -> None:
    put(tmp_path, "images/val2017/a.jpg", image())
    put(tmp_path, "annotations/val2017/a.png", label(11))
    data = data_config(tmp_path, "coco_stuff")
    (pair,) = list_pairs(data, data.val_split)
    with pytest.raises(UserError, match=r"label id\(s\) 11 are neither coco_stuff label ids of data.classes"):
        load_pair(pair, data)


def test_coco_stuff_train_ids_are_taken_where_they_are(tmp_path: Path) -> None:
    put(tmp_path, "images/train2017/a.jpg", image())
    put(tmp_path, "annotations/train2017/a.png", label(12))
    put(tmp_path, "annotations/train2017/a_labelTrainIds.png", label(11, 170, 255))
    data = data_config(tmp_path, "coco_stuff")
    listing = list_split(data, data.train_split)
    assert listing.findings == []
    assert first_ids(listing.pairs[0], data, 3) == [11, 170, 255]


# CamVid


SKY, SIDEWALK, CHILD, VOID = (128, 128, 128), (0, 0, 192), (192, 128, 64), (0, 0, 0)


def test_camvid_in_our_own_layout_has_ids_and_void_11(tmp_path: Path) -> None:
    put(tmp_path, "images/train/a.jpg", image())
    put(tmp_path, "annotations/train/a.png", label(0, 10, 11))
    data = data_config(tmp_path, "camvid")
    (pair,) = list_pairs(data, "train")
    assert first_ids(pair, data, 3) == [0, 10, 11]
    with_255 = data_config(tmp_path, "camvid", ignore_index=255)
    assert first_ids(pair, with_255, 3) == [0, 10, 255]


def test_the_original_camvid_maps_its_32_colours_to_the_11_classes(tmp_path: Path) -> None:
    for name in ("0001TP_1", "0001TP_2"):
        put(tmp_path, f"701_StillsRaw_full/{name}.png", image())
        put(tmp_path, f"LabeledApproved_full/{name}_L.png", colored(SKY, SIDEWALK, CHILD, VOID))
    put(tmp_path, "train.txt", b"/SegNet/CamVid/train/0001TP_2.png /SegNet/CamVid/trainannot/0001TP_2.png\n")
    data = data_config(tmp_path, "camvid")
    (pair,) = list_pairs(data, "train")
    assert names([pair]) == ["0001TP_2.png"]
    assert first_ids(pair, data, 4) == [0, 4, 9, 11]


@pytest.mark.parametrize(("folder", "suffix"), [("val_labels", "_L"), ("valannot", "")])
def test_camvid_by_split_with_its_labels_beside(tmp_path: Path, folder: str, suffix: str) -> None:
    put(tmp_path, "val/a.png", image())
    put(tmp_path, f"{folder}/a{suffix}.png", colored(SKY, VOID))
    data = data_config(tmp_path, "camvid")
    (pair,) = list_pairs(data, "val")
    assert first_ids(pair, data, 2) == [0, 11]


def test_a_colour_that_camvid_does_not_have_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/train/a.png", image())
    put(tmp_path, "annotations/train/a.png", colored(SKY, (1, 2, 3)))
    data = data_config(tmp_path, "camvid")
    (pair,) = list_pairs(data, "train")
    with pytest.raises(UserError, match=r"annotations/train/a.png: .* color \(1, 2, 3\) at column 1, row 0"):
        load_pair(pair, data)


# Lists


def test_a_list_names_images_and_annotations_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "pictures/a.jpg", image())
    put(tmp_path, "pictures/b c.jpg", image())
    put(tmp_path, "ids/a.png", label(2))
    put(tmp_path, "lists/fine.txt", b"pictures/a.jpg ids/a.png\n\npictures/b c.jpg\tids/a.png\n")
    data = data_config(tmp_path, "list", classes=CLASSES, train_split="lists/fine.txt")
    pairs = list_pairs(data, data.train_split)
    assert names(pairs) == ["a.jpg", "b c.jpg"]
    assert [first_ids(pair, data, 1) for pair in pairs] == [[2], [2]]


def test_a_list_may_name_uris_and_lie_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.jpg", image())
    put(tmp_path, "elsewhere/a.png", label(1))
    put(tmp_path, "train.txt", f"{tmp_path}/elsewhere/a.jpg file://{tmp_path}/elsewhere/a.png".encode())
    data = data_config(tmp_path / "root", "list", classes=CLASSES, train_split=f"{tmp_path}/train")
    (pair,) = list_pairs(data, data.train_split)
    assert pair.image_uri == f"file://{tmp_path}/elsewhere/a.jpg"
    assert first_ids(pair, data, 1) == [1]


def test_lines_that_are_no_pair_are_named_by_their_number(tmp_path: Path) -> None:
    put(tmp_path, "train.txt", b"a.jpg a.png\nb.jpg\nc d.jpg c d.png e.png\n")
    with pytest.raises(UserError) as caught:
        list_pairs(data_config(tmp_path, "list", classes=CLASSES), "train")
    assert f"missing annotation: file://{tmp_path}/b.jpg: file://{tmp_path}/train.txt line 2" in str(caught.value)
    assert f"unreadable list: file://{tmp_path}/train.txt line 3: expected an image and an annotation" in str(
        caught.value
    )


def test_a_list_that_is_no_text_or_empty_is_refused(tmp_path: Path) -> None:
    data = data_config(tmp_path, "list", classes=CLASSES)
    put(tmp_path, "train.txt", image())
    with pytest.raises(UserError, match=r"train\.txt: expected a UTF-8 text file"):
        list_pairs(data, "train")
    put(tmp_path, "train.txt", b"\n")
    with pytest.raises(UserError, match="split 'train' has no images"):
        list_pairs(data, "train")


# Colours in a plain folder


def test_a_plain_folder_in_colour_is_mapped_through_the_classes_colours(tmp_path: Path) -> None:
    put(tmp_path, "images/train/a.jpg", image())
    put(tmp_path, "annotations/train/a.png", colored((2, 2, 3), (1, 1, 2), (0, 0, 0), (0, 0, 1)))
    data = data_config(tmp_path, "folder", classes=CLASSES)
    (pair,) = list_pairs(data, "train")
    assert first_ids(pair, data, 4) == [2, 1, 255, 0], "black is void where no class is black"


def test_a_colour_that_two_classes_share_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "images/train/a.jpg", image())
    put(tmp_path, "annotations/train/a.png", colored((0, 0, 0)))
    shared = [{"name": name, "color": [k // 2, 0, 0]} for k, name in enumerate("abc")]
    data = data_config(tmp_path, "folder", classes=shared)
    (pair,) = list_pairs(data, "train")
    with pytest.raises(UserError, match=r"color \(0, 0, 0\) at column 0, row 0, belongs to no class, or to two"):
        load_pair(pair, data)


# What a listing is good for


def test_pairs_travel_and_are_keys(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a.jpg", image())
    put(tmp_path, "annotations/training/a.png", label(1))
    (pair,) = list_pairs(data_config(tmp_path, "ade20k"), "training")
    assert pickle.loads(pickle.dumps(pair)) == pair
    assert {pair: 1}[pickle.loads(pickle.dumps(pair))] == 1
    assert len(pickle.dumps(pair)) < 1000


def test_the_fingerprint_is_the_same_until_the_files_change(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path, f"images/train/{name}.jpg", image())
        put(tmp_path, f"annotations/train/{name}.png", label(1))
    data = data_config(tmp_path, "folder", classes=CLASSES)
    before = fingerprint(list_pairs(data, "train"))
    assert before == fingerprint(list_pairs(data, "train"))
    put(tmp_path, "annotations/train/a.png", label(1) + b"more")
    resized = fingerprint(list_pairs(data, "train"))
    (tmp_path / "images/train/b.jpg").rename(tmp_path / "images/train/c.jpg")
    (tmp_path / "annotations/train/b.png").rename(tmp_path / "annotations/train/c.png")
    renamed = fingerprint(list_pairs(data, "train"))
    assert len({before, resized, renamed}) == 3


def test_the_fingerprint_changes_when_a_bucket_holds_other_bytes_of_one_size(bucket: str) -> None:
    put(bucket, "images/train/a.jpg", image())
    put(bucket, "annotations/train/a.png", b"label 1")
    data = data_config(bucket, "folder", classes=CLASSES)
    before = fingerprint(list_pairs(data, "train"))
    put(bucket, "annotations/train/a.png", b"label 2")
    assert fingerprint(list_pairs(data, "train")) != before


@pytest.mark.parametrize("format", ["folder", "ade20k", "cityscapes", "coco_stuff", "camvid"])
def test_an_empty_root_is_told_with_the_folder_that_was_looked_at(tmp_path: Path, format: str) -> None:
    values = {"classes": CLASSES} if format == "folder" else {}
    data = data_config(tmp_path, format, **values)
    with pytest.raises(UserError, match=rf"found no images in \w+/{data.train_split}; check data.root, data.format"):
        list_pairs(data, data.train_split)


def test_an_image_that_trains_and_validates_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "train.txt", b"a.jpg a.png\nb.jpg b.png\n")
    put(tmp_path, "val.txt", b"c.jpg c.png\nb.jpg other.png\n")
    data = data_config(tmp_path, "list", classes=CLASSES)
    train_pairs, val_pairs = (list_pairs(data, split) for split in ("train", "val"))
    with pytest.raises(UserError, match=r"1 of the 2 images of split 'val' are also in split 'train': .*/b\.jpg; keep"):
        check_no_shared_images(data, train_pairs, val_pairs)
    check_no_shared_images(data, train_pairs, val_pairs[:1])
