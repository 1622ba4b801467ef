"""jobs/export_masks.py as it is used: every format's tree read back, alone, on a cluster, from and to a bucket."""

import json
import posixpath
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from jobs.export_masks import main
from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets import list_pairs
from pipeline.errors import UserError
from pipeline.export_masks import run
from pipeline.images.codec import decode_image, decode_label, encode_image
from tests.pipeline.exported_output import KEYS, NAMES, SIZE, ThreeImages, classes_of, tree, write_output


@pytest.fixture
def three(tmp_path: Path) -> ThreeImages:
    return ThreeImages(f"file://{tmp_path}")


def test_masks_mirror_the_keys_byte_by_byte(three: ThreeImages) -> None:
    target = three.export("png")
    assert tree(target) == ["2023/a.png", "2023/b.png", "2024/c 1.png", "classes.csv"]
    for key in KEYS:
        content = storage.read_bytes(f"{target}/{Path(key).with_suffix('.png')}")
        assert (decode_label(content) == three.mask(key)).all()
    assert storage.read_bytes(f"{target}/classes.csv").splitlines()[1] == b"0,sky,0,0,255"


def test_overlays_are_the_image_and_its_classes_colours(three: ThreeImages) -> None:
    target = three.export("overlay", "--opacity", "1")
    assert tree(target) == ["2023/a.jpg", "2023/b.jpg", "2024/c 1.jpg", "classes.csv"]
    found_HW3 = decode_image(storage.read_bytes(f"{target}/2023/a.jpg"))
    wanted_HW3 = classes_of(NAMES).palette[three.mask("2023/a.jpg")]
    assert np.abs(found_HW3.astype(int) - wanted_HW3).mean() < 12


def test_pycocotools_reads_the_masks_back(three: ThreeImages, tmp_path: Path) -> None:
    three.export("coco-rle")
    coco = COCO(tmp_path / "coco-rle/annotations.json")
    assert [coco.cats[k + 1]["name"] for k in range(len(NAMES))] == NAMES
    assert sorted(image["file_name"] for image in coco.imgs.values()) == KEYS
    for number, image in coco.imgs.items():
        back_HW = np.full(SIZE, -1)
        for annotation in coco.loadAnns(coco.getAnnIds(number)):
            back_HW[coco.annToMask(annotation) == 1] = annotation["category_id"] - 1
        assert (back_HW == three.mask(image["file_name"])).all()
        assert image["coco_url"] == f"{three.photos}/{image['file_name']}"


def test_a_panoptic_file_names_its_pngs_things_and_stuff(three: ThreeImages) -> None:
    target = three.export("coco-panoptic", "--things", "person", "--things", "house")
    assert tree(target) == ["panoptic.json", *(f"panoptic/{Path(key).with_suffix('.png')}" for key in KEYS)]
    content = json.loads(storage.read_bytes(f"{target}/panoptic.json"))
    assert {entry["name"] for entry in content["categories"] if entry["isthing"]} == {"person", "house"}
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        assert "id" not in annotation
        image = images.pop(annotation["image_id"])
        colors_HW3 = decode_image(storage.read_bytes(f"{target}/panoptic/{annotation['file_name']}")).astype(int)
        segment_ids_HW = colors_HW3 @ [1, 256, 65536]
        back_HW = np.full(SIZE, -1)
        for segment in annotation["segments_info"]:
            back_HW[segment_ids_HW == segment["id"]] = segment["category_id"] - 1
        assert (back_HW == three.mask(image["file_name"])).all()
    assert images == {}


def test_our_own_reader_of_cityscapes_takes_the_export_for_cityscapes(three: ThreeImages) -> None:
    mapping = '{"grass": 22, "tree": 21, "house": 11}'
    target = three.export("cityscapes", "--label-ids", mapping, "--split", "val")
    data = DataConfig.model_validate({"format": "cityscapes", "root": target})
    pairs = list_pairs(data, "val")
    assert len(pairs) == len(KEYS)
    train_ids_K = np.array([10, 9, 8, 11, 2, 0])  # of NAMES: sky, terrain, vegetation, person, building, road
    for pair, key in zip(pairs, KEYS, strict=True):
        assert storage.read_bytes(pair.image_uri) == storage.read_bytes(f"{three.photos}/{key}")
        found_HW = decode_label(storage.read_bytes(pair.label_uri))
        assert (found_HW == train_ids_K[three.mask(key)]).all()


def test_yolo_labels_lie_beside_their_images(three: ThreeImages) -> None:
    target = three.export("yolo-seg", "--min-area", "1")
    # All are JPEGs, 2023/b.png too.
    images = [f"images/train/{Path(key).with_suffix('.jpg')}" for key in KEYS]
    labels = [f"labels/train/{Path(key).with_suffix('.txt')}" for key in KEYS]
    assert tree(target) == ["data.yaml", *images, *labels]
    for key, label in zip(KEYS, labels, strict=True):
        back_HW = np.full(SIZE, 255, np.uint8)
        for line in storage.read_bytes(f"{target}/{label}").decode().splitlines():
            k, *shares = line.split()
            points_P2 = (np.array(shares, float).reshape(-1, 2) * SIZE[::-1]).astype(np.int32)
            cv2.fillPoly(back_HW, [points_P2], int(k))
        assert (back_HW == three.mask(key)).all()
    without = three.export("yolo-seg", "--no-copy-images", target=f"{target}-labels")
    assert tree(without) == ["data.yaml", *labels]


def test_fiftyone_finds_masks_by_the_names_of_the_images(three: ThreeImages) -> None:
    """Its importer of ImageSegmentationDirectory pairs data/NAME.* with labels/NAME.*."""
    target = three.export("fiftyone")
    names = [Path(key).with_suffix("") for key in KEYS]
    assert tree(target) == [
        *(f"data/{key}" for key in KEYS),
        *(f"labels/{name}.png" for name in names),
        "mask_targets.json",
    ]
    for key, name in zip(KEYS, names, strict=True):
        found_HW = decode_label(storage.read_bytes(f"{target}/labels/{name}.png"))
        assert (found_HW == three.mask(key) + 1).all()


def test_a_dataset_is_one_that_training_reads(three: ThreeImages) -> None:
    target = three.export("dataset")
    recipe = yaml.safe_load(storage.read_bytes(f"{target}/dataset.yaml"))
    data = DataConfig.model_validate(recipe["data"])
    assert [entry.name for entry in data.classes] == NAMES
    for pair, key in zip(list_pairs(data, "train"), KEYS, strict=True):
        assert (decode_label(storage.read_bytes(pair.label_uri)) == three.mask(key)).all()


# With a cluster, a bucket, a model


@pytest.mark.parametrize("kind", ["fiftyone", "yolo-seg", "dataset"])
def test_images_of_any_name_keep_their_labels(kind: str, tmp_path: Path) -> None:
    """Readers pair files by all of the path before the last dot."""
    uris = [f"file://{tmp_path}/photos/{key}" for key in ("a.b.jpg", "scan.2024", "no ending", "x/y.tar.gz", ".z.jpg")]
    for uri in uris:
        storage.write_bytes(uri, encode_image(np.zeros((1, 1, 3), np.uint8)))
    write_output(tmp_path / "labels", {uri: np.zeros((1, 1), np.uint8) for uri in uris})
    assert main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target", "--format", kind]) == 0
    folders = {
        "fiftyone": ("data/", "labels/"),
        "yolo-seg": ("images/", "labels/"),
        "dataset": ("images/", "annotations/"),
    }
    images, labels = (
        [
            posixpath.splitext(name.removeprefix(folder))[0]
            for name in tree(f"{tmp_path}/target")
            if name.startswith(folder)
        ]
        for folder in folders[kind]
    )
    assert len(images) == len(uris)
    assert sorted(images) == sorted(labels)


@pytest.mark.slow
def test_many_images_are_exported_by_the_cluster_into_a_bucket(
    connected: None, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "FEW", 0)
    many = ThreeImages(bucket)
    target = many.export("coco-panoptic")
    assert "3 exported, 0 already exported, 0 failed" in capsys.readouterr().out
    assert tree(target) == ["panoptic.json", *(f"panoptic/{Path(key).with_suffix('.png')}" for key in KEYS)]
    many.export("coco-panoptic")
    assert "0 exported, 3 already exported, 0 failed" in capsys.readouterr().out
    storage.remove(f"{many.photos}/{KEYS[0]}")
    many.export("fiftyone", code=1)
    assert f"{many.photos}/{KEYS[0]}: NotFound" in capsys.readouterr().out


@pytest.mark.slow
def test_a_task_that_meets_a_damaged_part_tells_the_user_which(
    connected: None, three: ThreeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "FEW", 0)
    real = run._on_ray
    uri = f"{three.labels}/masks/{three.parts[0]}"

    def damaged_meanwhile(*arguments: Any) -> Any:
        storage.write_bytes(uri, storage.read_bytes(uri)[:-100])
        return real(*arguments)

    monkeypatch.setattr(run, "_on_ray", damaged_meanwhile)
    with pytest.raises(UserError, match=r"is damaged or truncated: .*; run python jobs/verify.py --repair"):
        three.export("png")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "on Ray"])
def test_pixels_of_low_confidence_are_ignored_in_a_dataset(
    where: str, connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "on Ray":
        monkeypatch.setattr(run, "FEW_TO_PREDICT", 0)
    import torch

    import models
    from pipeline.checkpoints.checkpoint import Checkpoint

    torch.manual_seed(0)
    network = models.PSPNet(models.Architecture("resnet18", len(NAMES), auxiliary=False, width=16)).eval()
    palette = classes_of(NAMES).palette.tolist()
    models.save(tmp_path / "checkpoint", network, models.Metadata(NAMES, palette, preprocessing={"long_side": None}))
    model = Checkpoint.load(f"{tmp_path}/checkpoint", None)
    uris = [f"file://{tmp_path}/photos/{n}.png" for n in range(3)]
    masks, confidences = {}, {}
    for n, uri in enumerate(uris):
        image_HW3 = np.random.default_rng(n).integers(0, 256, (65, 97, 3), dtype=np.uint8)
        storage.write_bytes(uri, encode_image(image_HW3, 100))
        read_HW3 = decode_image(storage.read_bytes(uri))
        found = model.predictor("cpu", "auto").predict(read_HW3[None], with_confidence_map=True)
        masks[uri], confidences[uri] = found.class_ids_NHW[0], found.confidence_NHW[0]
    least = float(np.median(np.stack([*confidences.values()])))
    write_output(tmp_path / "labels", masks, model_id=model.model_id)
    arguments = [f"{tmp_path}/labels", "--to", f"{tmp_path}/t", "--format", "dataset"]
    arguments += ["--min-confidence", str(least), "--checkpoint", f"{tmp_path}/checkpoint"]
    assert main(arguments) == 0
    data = DataConfig.model_validate(yaml.safe_load((tmp_path / "t/dataset.yaml").read_text())["data"])
    ignored = 0
    for pair, uri in zip(list_pairs(data, "train"), uris, strict=True):
        label_HW = decode_label(storage.read_bytes(pair.label_uri))
        unsure_HW = confidences[uri] < least
        assert (label_HW[~unsure_HW] == masks[uri][~unsure_HW]).mean() > 0.99
        assert (label_HW[unsure_HW] == data.ignore_index).mean() > 0.99
        ignored += int(unsure_HW.sum())
    assert 0.3 < ignored / (3 * 65 * 97) < 0.7

    other = tmp_path / "other"
    torch.manual_seed(1)
    network = models.PSPNet(models.Architecture("resnet18", len(NAMES), auxiliary=False, width=16)).eval()
    models.save(other, network, models.Metadata(NAMES, palette, preprocessing={"long_side": None}))
    with pytest.raises(UserError, match="differs from the output's model"):
        main([*arguments[:-1], str(other), "--to", f"{tmp_path}/t2"])
