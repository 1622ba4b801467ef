"""Exported masks, read back with each format's own library or by its published rules."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.errors import UserError
from pipeline.export_masks import cityscapes, coco, fiftyone, png, yolo
from pipeline.export_masks.dataset import dataset, dataset_yaml
from pipeline.export_masks.labelled_image import Cannot
from pipeline.export_masks.polygons import polygons
from pipeline.images.codec import Raster, decode_image, decode_label, encode_image, encode_png
from pipeline.images.formats import OPENERS
from pipeline.output.schema import ignore_index_of
from tests.pipeline.exported_output import NAMES, blobs, classes_of, image_of
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata

ONE_PIXEL = np.array([[3]], np.uint8)
MANY_HW = (np.arange(40 * 50).reshape(40, 50) * 7 % 1000).astype(np.uint16)  # 1,000 classes
MASKS = [ONE_PIXEL, MANY_HW, *(blobs(37, 53, 6, seed, grain) for seed, grain in enumerate((0, 0.6, 1, 2, 5)))]


def filled(points: NDArray[np.int32], height: int, width: int) -> NDArray[np.uint8]:
    canvas_HW = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas_HW, [points], 1)
    return canvas_HW


# COCO


@pytest.mark.parametrize("ids_HW", MASKS)
def test_run_lengths_are_pycocotools_own(ids_HW: NDArray) -> None:
    made = coco.rle(image_of(ids_HW, num_classes=1000 if ids_HW is MANY_HW else 6))
    assert made.files == {}
    assert made.record is not None
    found = made.record["annotations"]
    assert [entry["category_id"] - 1 for entry in found] == np.unique(ids_HW).tolist()
    for entry in found:
        of_class_HW = np.asfortranarray(ids_HW == entry["category_id"] - 1, np.uint8)
        assert (coco_mask.decode(entry["segmentation"]) == of_class_HW).all()
        assert entry["segmentation"]["counts"].encode() == coco_mask.encode(of_class_HW)["counts"]
        assert entry["area"] == coco_mask.area(entry["segmentation"])
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()


@pytest.mark.parametrize("ids_HW", MASKS)
def test_panoptic_segments_are_what_their_png_holds(ids_HW: NDArray) -> None:
    things = frozenset({1, 3})
    made = coco.panoptic(image_of(ids_HW, "x/y", 1000 if ids_HW is MANY_HW else 6), things)
    (content,) = made.files.values()
    png_HW3 = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    segment_ids_HW = png_HW3 @ [1, 256, 65536]
    assert made.record is not None
    segments = made.record["segments_info"]
    assert set(np.unique(segment_ids_HW)) == {segment["id"] for segment in segments}, "no void, nothing without entry"
    back_HW = np.full(ids_HW.shape, -1)
    for segment in segments:
        of_segment_HW = segment_ids_HW == segment["id"]
        back_HW[of_segment_HW] = segment["category_id"] - 1
        assert segment["area"] == of_segment_HW.sum()
        y, x = np.nonzero(of_segment_HW)
        assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    assert (back_HW == ids_HW).all()
    for k in np.unique(ids_HW):
        regions = cv2.connectedComponents((ids_HW == k).astype(np.uint8), connectivity=8)[0] - 1
        wanted = regions if k in things else 1
        assert sum(segment["category_id"] == k + 1 for segment in segments) == wanted


def test_a_panoptic_png_has_room_for_as_many_segments_as_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "MAX_SEGMENTS", 3)
    with pytest.raises(Cannot, match="it has 6 segments"):
        coco.panoptic(image_of(blobs(37, 53, 6, 2)), frozenset())


# Polygons


@pytest.mark.parametrize("grain", [0, 0.5, 1, 2, 4])
def test_filled_polygons_are_the_regions_pixel_by_pixel(grain: float) -> None:
    """Holes, islands in holes, lines of one pixel, diagonal touches: nothing is lost."""
    for seed in range(20):
        region_HW = (blobs(41, 47, 2 + seed % 2, seed, grain) == 0).astype(np.uint8)
        back_HW = np.zeros_like(region_HW)
        for points in polygons(region_HW):
            assert len(points) >= 3
            back_HW |= filled(points, *region_HW.shape)
        assert (back_HW == region_HW).all(), seed


def test_holes_in_holes_and_rings() -> None:
    y, x = np.mgrid[:61, :61] - 30
    radius_HW = np.hypot(x, y).astype(int)
    for width in (1, 2, 5):
        rings_HW = (radius_HW // width % 2).astype(np.uint8)
        back_HW = np.zeros_like(rings_HW)
        for points in polygons(rings_HW):
            back_HW |= filled(points, 61, 61)
        assert (back_HW == rings_HW).all()


def test_straight_edges_need_few_points() -> None:
    square_HW = np.zeros((100, 100), np.uint8)
    square_HW[10:90, 20:80] = 1
    (points,) = polygons(square_HW)
    assert len(points) == 4


@pytest.mark.parametrize("ids_HW", MASKS)
def test_yolo_labels_read_as_training_reads_them_give_the_mask(ids_HW: NDArray) -> None:
    """With every region kept, exactly; the lines are parsed and filled as Ultralytics' loader does it."""
    height, width = ids_HW.shape
    made = yolo.yolo(image_of(ids_HW, "x/y", 1000 if ids_HW is MANY_HW else 6), "train", min_area=1)
    back_HW = read_yolo(made.files["labels/train/x/y.txt"], height, width)
    assert (back_HW == ids_HW).all()


def test_yolo_classes_of_some_size_lose_next_to_nothing() -> None:
    compared = 0
    for seed in range(6):
        ids_HW = blobs(240, 320, 6, seed, 6)
        made = yolo.yolo(image_of(ids_HW), "train", min_area=16)
        back_HW = read_yolo(made.files["labels/train/a.txt"], 240, 320)
        for k in range(6):
            is_class_HW, is_back_HW = ids_HW == k, back_HW == k
            if is_class_HW.sum() >= 1000:
                compared += 1
                iou = (is_class_HW & is_back_HW).sum() / (is_class_HW | is_back_HW).sum()
                assert iou > 0.98, (seed, k, iou)
        assert (back_HW < 0).sum() == sum(small_areas(ids_HW, 16))
    assert compared > 20


def test_yolo_leaves_out_small_regions_alone() -> None:
    ids_HW = np.zeros((20, 30), np.uint8)
    ids_HW[2:5, 2:7] = 1  # 15 pixels
    ids_HW[10:14, 10:14] = 2  # 16
    lines = yolo.yolo(image_of(ids_HW), "val", min_area=16).files["labels/val/a.txt"].decode().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "2"]


def small_areas(ids_HW: NDArray, least: int) -> list[int]:
    areas = []
    for k in np.unique(ids_HW):
        statistics = cv2.connectedComponentsWithStats((ids_HW == k).astype(np.uint8), connectivity=8)[2]
        areas += [int(area) for area in statistics[1:, cv2.CC_STAT_AREA] if area < least]
    return areas


def read_yolo(content: bytes, height: int, width: int) -> NDArray[np.int64]:
    """Class ids, -1 where there are none; no polygon may lie over another."""
    back_HW = np.full((height, width), -1)
    for line in content.decode().splitlines():
        k, *shares = line.split()
        assert len(shares) >= 6, "a loader would take it for a box"
        shares_P2 = np.array(shares, np.float32).reshape(-1, 2)
        assert (shares_P2 >= 0).all()
        assert (shares_P2 <= 1).all()
        region_HW = filled((shares_P2 * [width, height]).astype(np.int32), height, width).astype(bool)
        assert (back_HW[region_HW] == -1).all()
        back_HW[region_HW] = int(k)
    return back_HW


def test_yolo_names_every_class(tmp_path: Path) -> None:
    about = yaml.safe_load(yolo.data_yaml(classes_of(NAMES), "train"))
    assert about["names"] == dict(enumerate(NAMES))
    assert about["train"] == "images/train"


def test_yolo_images_have_extensions_that_training_reads() -> None:
    """Its loader takes files by their extensions, and then refuses GIF and PPM by their content."""
    image_HW3 = np.random.default_rng(0).integers(0, 256, (12, 13, 3), np.uint8)
    ids_HW = np.zeros((12, 13), np.uint8)
    for format, uri, wanted in (
        ("JPEG", "s3://photos/a.JPG", "a.JPG"),
        ("JPEG", "s3://photos/a.jfif", "a.jpg"),
        ("TIFF", "s3://photos/a", "a.tif"),
        ("PNG", "s3://photos/a.dat", "a.png"),
        ("PNG", "s3://photos/a.jp2", "a.png"),
        ("TIFF", "s3://photos/a.dng", "a.tif"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(image_HW3).save(buffer, format)
        image = replace(image_of(ids_HW, file=buffer.getvalue()), uri=uri)
        assert yolo.yolo(image, "train", 1).files[f"images/train/{wanted}"] == buffer.getvalue()


@pytest.mark.parametrize("format", sorted({*OPENERS} - {"PSD"}))  # which Pillow does not write
def test_yolo_images_of_every_format_that_is_labeled_are_read_with_the_same_pixels(format: str) -> None:
    pixels_HW3 = np.zeros((12, 14, 3), np.uint8)
    pixels_HW3[4:, :7] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format)
    image = replace(image_of(np.zeros((12, 14), np.uint8), file=buffer.getvalue()), uri="s3://photos/a.image")
    (name,) = set(yolo.yolo(image, "train", 1).files) - {"labels/train/a.txt"}
    assert name.removeprefix("images/train/a") in {".jpg", ".png", ".webp", ".tif", ".bmp"}
    content = np.frombuffer(yolo.yolo(image, "train", 1).files[name], np.uint8)
    read_HW3 = cv2.cvtColor(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(read_HW3, image.image_HW3, atol=3)


def test_a_file_that_is_no_image_any_more_is_not_exported_for_yolo() -> None:
    with pytest.raises(Cannot, match="NotAnImage: not a known image format"):
        yolo.yolo(image_of(ONE_PIXEL, file=b"<html>"), "train", 1)


@pytest.mark.parametrize("name", ["a", "images/a", "x/images/images_/a", "images.d/images", "my images/a"])
@pytest.mark.parametrize("split", ["train", "images"])
def test_yolo_finds_the_labels_of_an_image_in_a_folder_called_images(name: str, split: str) -> None:
    file = encode_image(np.zeros((1, 1, 3), np.uint8))
    label, image = yolo.yolo(image_of(ONE_PIXEL, name, file=file), split, 1).files
    # As img2label_paths of Ultralytics does it.
    assert "/labels/".join(f"/target/{image}".rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt" == f"/target/{label}"
    about = yaml.safe_load(yolo.data_yaml(classes_of(NAMES), split))
    assert image.startswith(f"{about['train']}/")


def test_yolo_names_of_folders_stay_different() -> None:
    names = ["images/a", "images_/a", "images__/a"]
    assert len({next(iter(yolo.yolo(image_of(ONE_PIXEL, name), "train", 1).files)) for name in names}) == 3


# Cityscapes


def test_cityscapes_classes_are_known_by_name() -> None:
    mapping = cityscapes.Mapping.of(classes_of(["road", "sky", "bicycle", "void thing"]), {"void thing": 0})
    assert mapping.label_ids_K.tolist() == [7, 23, 33, 0]
    assert mapping.train_ids_K.tolist() == [0, 10, 18, 255]


def test_the_users_mapping_beats_the_names() -> None:
    assert cityscapes.Mapping.of(classes_of(["road"]), {"road": 9}).label_ids_K.tolist() == [9]


def test_a_class_that_cityscapes_lacks_must_be_mapped() -> None:
    with pytest.raises(UserError, match="no class named grass, tree, house; set the label id of each"):
        cityscapes.Mapping.of(classes_of(["sky", "grass", "tree", "house"]), {})


def test_an_unknown_class_is_answered_with_close_matches_or_the_classes() -> None:
    with pytest.raises(UserError, match=r"^label_ids: 'gras': not a class of the output; did you mean grass\?$"):
        cityscapes.Mapping.of(classes_of(["sky", "grass"]), {"gras": 3})
    with pytest.raises(UserError) as error:
        classes_of(["person", "car"]).ids("things", ["Person", "dog", "car"])
    assert str(error.value) == (
        "things: 'Person': not a class of the output; did you mean person?\n"
        "  'dog': not a class of the output; its classes are person, car"
    )


def test_cityscapes_pngs_are_gray_and_named_as_its_scripts_want_them() -> None:
    mapping = cityscapes.Mapping.of(classes_of(["sky", "road"]), {})
    ids_HW = np.array([[0, 1, 1]], np.uint8)
    image = image_of(ids_HW, "ulm/ulm_000001_000019_leftImg8bit", 2, b"file")
    files = cityscapes.cityscapes(image, "val", mapping).files
    assert [*files] == [
        "gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png",
        "gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png",
        "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.jpg",
    ]
    masks = [Image.open(io.BytesIO(content)) for content in [*files.values()][:2]]
    assert [mask.mode for mask in masks] == ["L", "L"]
    assert [np.asarray(mask).tolist() for mask in masks] == [[[23, 7, 7]], [[10, 0, 0]]]


# FiftyOne


@pytest.mark.parametrize(("num_classes", "highest"), [(6, 5), (255, 254), (256, 255), (1000, 999)])
def test_fiftyone_reads_ids_from_1(num_classes: int, highest: int) -> None:
    """As it reads masks, with OpenCV and unchanged: one channel, no palette."""
    ids_HW = np.array([[0, highest]], np.uint8 if num_classes <= 256 else np.uint16)
    files = fiftyone.fiftyone(image_of(ids_HW, "x/y", num_classes, b"file")).files
    assert [*files] == ["labels/x/y.png", "data/x/y.jpg"]
    read_HW = cv2.imdecode(np.frombuffer(files["labels/x/y.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert read_HW is not None
    assert read_HW.tolist() == [[1, highest + 1]]
    targets = json.loads(fiftyone.mask_targets(classes_of([str(k) for k in range(num_classes)])))
    assert targets[str(highest + 1)] == str(highest)


# Dataset


@pytest.mark.parametrize(("num_classes", "ignored"), [(6, 255), (255, 255), (256, 65535), (1000, 65535)])
def test_unsure_and_changed_pixels_are_ignored(num_classes: int, ignored: int) -> None:
    assert ignore_index_of(num_classes) == ignored
    ids_HW = (
        np.arange(num_classes - 20, num_classes).reshape(4, 5) if num_classes > 20 else np.arange(20).reshape(4, 5) % 6
    )
    ids_HW = ids_HW.astype(np.uint8 if num_classes <= 256 else np.uint16)
    again_HW, confidence_HW = ids_HW.copy(), np.full((4, 5), 0.9, np.float16)
    again_HW[0, 0] = 0 if ids_HW[0, 0] else 1
    confidence_HW[3, 4] = 0.4
    palette = classes_of([str(k) for k in range(num_classes)]).palette
    image = image_of(ids_HW, num_classes=num_classes, file=encode_image(np.zeros((4, 5, 3), np.uint8)))
    made = dataset(image, "train", palette, lambda image_HW3: (again_HW, confidence_HW), 0.5)
    assert made.files["images/train/a.jpg"] == image.file
    wanted_HW = ids_HW.astype(int)
    wanted_HW[0, 0] = wanted_HW[3, 4] = ignored
    assert (decode_label(made.files["annotations/train/a.png"]) == wanted_HW).all()
    about = yaml.safe_load(dataset_yaml(classes_of([str(k) for k in range(num_classes)]), "file:///t", "train"))["data"]
    assert about["ignore_index"] == ignored
    assert len(about["classes"]) == num_classes


# Pixels without data

CLASS_COUNTS = [(6, 255), (255, 255), (256, 65535), (1000, 65535)]


def holed(num_classes: int, ignored: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a mask with the highest class and pixels without data, and which these are."""
    ids_HW = np.arange(40 * 50).reshape(40, 50) % num_classes
    ids_HW[0, 0] = num_classes - 1
    missing_HW = np.zeros(ids_HW.shape, bool)
    missing_HW[10:20, 30:] = missing_HW[5, 5] = True
    dtype = np.uint8 if ignored < 256 else np.uint16
    return np.where(missing_HW, ignored, ids_HW).astype(dtype), missing_HW


@pytest.mark.parametrize(("num_classes", "ignored"), CLASS_COUNTS)
def test_pixels_without_data_are_in_no_annotation_and_no_segment(num_classes: int, ignored: int) -> None:
    ids_HW, missing_HW = holed(num_classes, ignored)
    image = image_of(ids_HW, num_classes=num_classes)
    rle = coco.rle(image).record
    assert rle is not None
    covered_HW = sum(coco_mask.decode(entry["segmentation"]) for entry in rle["annotations"])
    np.testing.assert_array_equal(covered_HW, ~missing_HW)
    made = coco.panoptic(image, frozenset({1}))
    png_HW3 = np.asarray(Image.open(io.BytesIO(*made.files.values())).convert("RGB"))
    np.testing.assert_array_equal(png_HW3.any(-1), ~missing_HW)  # 0 is void
    assert made.record is not None
    for entries in (rle["annotations"], made.record["segments_info"]):
        assert max(entry["category_id"] for entry in entries) == num_classes
    lines = yolo.yolo(image, "train", 1).files["labels/train/a.txt"]
    read_HW = read_yolo(lines, *ids_HW.shape)
    np.testing.assert_array_equal(read_HW, np.where(missing_HW, -1, ids_HW.astype(int)))


@pytest.mark.parametrize(("num_classes", "ignored"), CLASS_COUNTS)
def test_pixels_without_data_are_hidden_in_fiftyone_and_ignored_in_a_dataset(num_classes: int, ignored: int) -> None:
    ids_HW, missing_HW = holed(num_classes, ignored)
    image = image_of(ids_HW, num_classes=num_classes)
    values_HW = cv2.imdecode(
        np.frombuffer(fiftyone.fiftyone(image).files["labels/a.png"], np.uint8), cv2.IMREAD_UNCHANGED
    )
    np.testing.assert_array_equal(values_HW, np.where(missing_HW, 0, ids_HW.astype(int) + 1))
    palette = classes_of([str(k) for k in range(num_classes)]).palette
    label_HW = decode_label(dataset(image, "train", palette).files["annotations/train/a.png"])
    np.testing.assert_array_equal(label_HW, ids_HW)
    assert (label_HW == ignored).sum() == missing_HW.sum()


def test_pixels_without_data_are_unlabeled_in_cityscapes_and_bare_in_an_overlay() -> None:
    ids_HW = np.array([[0, 1, 255]], np.uint8)
    classes = classes_of(["car", "road"])
    photo_HW3 = np.full((1, 3, 3), 200, np.uint8)
    image = image_of(ids_HW, num_classes=2, file=encode_png(photo_HW3))
    mapping = cityscapes.Mapping.of(classes, {})
    masks = [decode_label(content) for content in [*cityscapes.cityscapes(image, "train", mapping).files.values()][:2]]
    assert [mask.tolist() for mask in masks] == [[[26, 7, 0]], [[13, 0, 255]]]
    (content,) = png.overlaid(image, classes, opacity=1.0).files.values()
    assert np.abs(decode_image(content)[0, 2].astype(int) - 200).max() < 40
    assert png.png(image).files["a.png"] == image.mask


def test_labels_are_compared_at_pixels_with_data_alone() -> None:
    """Labeled again, they get labels: with these, more than a tenth of the image would differ."""
    ids_HW = np.zeros((10, 10), np.uint8)
    ids_HW[:5] = 255
    photo_HW = np.where(ids_HW == 255, 0, 9).astype(np.uint8)
    image = image_of(ids_HW, file=tiff(photo_HW, **with_nodata("0")))
    seen: list[Raster] = []

    def relabel(raster: Raster) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        seen.append(raster)
        return np.zeros((10, 10), np.uint8), np.ones((10, 10), np.float16)

    made = dataset(image, "train", classes_of(NAMES).palette, relabel, 0.5)
    np.testing.assert_array_equal(decode_label(made.files["annotations/train/a.png"]), ids_HW)
    assert seen[0].valid_HW is not None
    np.testing.assert_array_equal(seen[0].valid_HW, ids_HW == 0)


def test_an_image_that_is_another_one_by_now_is_not_exported() -> None:
    ids_HW = np.zeros((4, 5), np.uint8)
    image = image_of(ids_HW, file=encode_image(np.zeros((4, 5, 3), np.uint8)))
    with pytest.raises(Cannot, match="100% of its pixels get a different label"):
        dataset(image, "train", classes_of(NAMES).palette, lambda _: (ids_HW + 1, np.ones((4, 5), np.float16)), 0.5)
    other_size = image_of(ids_HW, file=encode_image(np.zeros((5, 4, 3), np.uint8)))
    with pytest.raises(
        Cannot, match="is 4 x 5 pixels, but its mask is 5 x 4; the image has changed since it was labeled"
    ):
        dataset(other_size, "train", classes_of(NAMES).palette, lambda _: (ids_HW, np.ones((4, 5), np.float16)), 0.5)


def test_a_mask_that_cannot_be_decoded_says_what_finds_others() -> None:
    image = image_of(ONE_PIXEL)
    damaged = replace(image, mask=image.mask[:40])
    with pytest.raises(Cannot, match=r"verify\.py --deep"):
        coco.rle(damaged)
    with pytest.raises(Cannot, match=r"its mask has class id 3, but only 3 classes exist; .*verify\.py --deep"):
        coco.rle(replace(image, num_classes=3))
