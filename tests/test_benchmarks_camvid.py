"""benchmarks/camvid.py: its augmentation on the device, its metrics, and one run from images to a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import models
from benchmarks import camvid
from benchmarks.device_data import (
    Augment,
    Split,
    augmented,
    blurred,
    jittered,
    load_split,
    median_frequency_weights,
    random_theta,
    training_batches,
)
from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from models.weights.checkpoint import IMAGENET_STD as STD
from pipeline.config.training import AugmentConfig
from pipeline.metrics.confusion import Metrics, confusion_matrix
from pipeline.train.augmentation import Draw, crop_of
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
HEIGHT, WIDTH = 90, 120
IGNORE = 11


def picture(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Smooth colours and patches of labels, some void."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    patches = Image.fromarray(rng.integers(0, 12, (6, 8)).astype(np.uint8))
    resized = patches.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    return np.array(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)), np.array(resized)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(count):
            image_HW3, label_HW = picture(100 * len(split) + index)
            Image.fromarray(image_HW3).save(tmp_path / "images" / split / f"{index}.png")
            Image.fromarray(label_HW).save(tmp_path / "annotations" / split / f"{index}.png")
    return tmp_path


def split_of(count: int) -> Split:
    pictures = [picture(index) for index in range(count)]
    images_N3HW = torch.from_numpy(np.stack([image for image, _ in pictures])).permute(0, 3, 1, 2).contiguous()
    return Split(
        images_N3HW, torch.from_numpy(np.stack([label for _, label in pictures])), list(map(str, range(count)))
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks/camvid.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_an_augmentation_that_changes_nothing_returns_the_image() -> None:
    split, still = split_of(3), Augment((HEIGHT, WIDTH), scale=(1, 1), rotation=0, mirror=0)
    images_NHW3, labels_NHW = augmented(split, np.arange(3), still, MEAN, IGNORE, np.random.default_rng(0))
    assert torch.equal(images_NHW3.permute(0, 3, 1, 2), split.images_N3HW)
    assert torch.equal(labels_NHW, split.labels_NHW)


@pytest.mark.parametrize("crop", [(65, 97), (161, 145)])
def test_the_device_crops_as_the_pipeline_does(crop: tuple[int, int]) -> None:
    """The same draws through grid_sample and through OpenCV."""
    split, count = split_of(12), 12
    images_Nhw3, labels_Nhw = augmented(
        split, np.arange(count), Augment(crop, rotation=20), MEAN, IGNORE, np.random.default_rng(5)
    )
    rng = np.random.default_rng(5)
    scale, angle = rng.uniform(0.5, 2, count), np.radians(rng.uniform(-20, 20, count))
    mirrored, shift_N2 = rng.random(count) < 0.5, rng.uniform(-0.5, 0.5, (count, 2))
    config = AugmentConfig(crop=crop)
    for n in range(count):
        draw = Draw(scale[n], angle[n], bool(mirrored[n]), shift_N2[n, 0], shift_N2[n, 1], False)
        image_HW3, label_HW = picture(n)
        crop_HW3, crop_HW = crop_of(image_HW3, label_HW, draw, config, MEAN, IGNORE)
        same = labels_Nhw[n].numpy() == crop_HW
        assert same.mean() > 0.99, "patch borders may move by rounding, nothing else"
        inside = (crop_HW != IGNORE) & same
        difference = np.abs(images_Nhw3[n].numpy().astype(int) - crop_HW3)[inside]
        assert np.quantile(difference, 0.99) <= 2
    assert len(set(mirrored)) == 2


def test_reflection_leaves_no_padding_in_the_image_and_the_label_ignored() -> None:
    split = split_of(2)
    split.images_N3HW.fill_(200)
    split.labels_NHW.fill_(3)
    augment = Augment((181, 241), scale=(1, 1), rotation=0, padding="reflect")
    images_Nhw3, labels_Nhw = augmented(split, np.arange(2), augment, MEAN, IGNORE, np.random.default_rng(0))
    assert images_Nhw3.unique().tolist() == [200]
    assert (labels_Nhw == 3).sum((1, 2)).tolist() == [HEIGHT * WIDTH] * 2
    assert labels_Nhw.unique().tolist() == [3, IGNORE]


def test_draws_stay_within_their_limits_and_use_them() -> None:
    theta = random_theta(Augment((45, 60), scale=(0.5, 2), rotation=10), (HEIGHT, WIDTH), 500, np.random.default_rng(0))
    pixels = theta[:, :, :2] * np.array([[WIDTH / 2], [HEIGHT / 2]]) / np.array([60 / 2, 45 / 2])  # image px a crop px
    scales = 1 / np.sqrt(np.abs(np.linalg.det(pixels)))
    assert 0.5 <= scales.min() < 0.52
    assert 1.98 < scales.max() <= 2
    angles = np.degrees(np.arctan2(pixels[:, 0, 1], pixels[:, 1, 1]))
    assert 9.8 < np.abs(angles).max() <= 10
    assert 0.4 < np.mean(np.linalg.det(pixels) < 0) < 0.6


def test_blur_keeps_the_mean_and_softens() -> None:
    images_N3HW = torch.randint(0, 256, (2, 3, 40, 50)).float()
    soft_N3HW = blurred(images_N3HW)
    assert abs(soft_N3HW.mean() - images_N3HW.mean()) < 1
    assert soft_N3HW.std() < 0.5 * images_N3HW.std()
    torch.testing.assert_close(blurred(torch.full((1, 3, 9, 9), 7.0)), torch.full((1, 3, 9, 9), 7.0))


def test_jitter_by_one_changes_nothing_and_each_factor_does_its_own() -> None:
    image_N3HW = torch.from_numpy(picture(0)[0]).permute(2, 0, 1)[None].float() / 2 + 40
    one, half = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)
    torch.testing.assert_close(jittered(image_N3HW, one, one, one), image_N3HW, atol=1e-3, rtol=0)
    torch.testing.assert_close(jittered(image_N3HW, half, one, one), image_N3HW / 2, atol=1e-3, rtol=0)
    flat_N3HW = jittered(image_N3HW, one, half, one)
    assert abs(flat_N3HW.std() / image_N3HW.std() - 0.5) < 0.05
    gray_N3HW = jittered(image_N3HW, one, one, 0 * one)
    torch.testing.assert_close(gray_N3HW[:, 0], gray_N3HW[:, 2], atol=1e-3, rtol=0)


def test_each_pass_visits_every_image_once_across_batches() -> None:
    split = split_of(5)
    for index in range(5):
        split.images_N3HW[index] = 50 * index
    still = Augment((HEIGHT, WIDTH), scale=(1, 1), rotation=0, mirror=0)
    batches = training_batches(split, still, MEAN, IGNORE, batch_size=2, seed=0)
    seen = torch.cat([next(batches)[0][:, 0, 0, 0] // 50 for _ in range(10)]).tolist()
    for start in range(0, 20, 5):
        assert sorted(seen[start : start + 5]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:10]


def test_median_frequency_weights_are_those_of_the_formula() -> None:
    labels_NHW = torch.full((2, 10, 10), IGNORE, dtype=torch.uint8)
    labels_NHW[0, :8] = 0  # 80 of the 200 pixels of the images it is in
    labels_NHW[1, :2] = 0
    labels_NHW[1, 2:6] = 1  # 40 of 100
    labels_NHW[1, 6] = 2  # 10 of 100
    frequencies = np.array([0.5, 0.4, 0.1])
    expected = [*(0.4 / frequencies), 1.0]
    np.testing.assert_allclose(median_frequency_weights(labels_NHW, 4, 1.0), expected)
    np.testing.assert_allclose(median_frequency_weights(labels_NHW, 4, 0.5), np.sqrt(expected))
    assert median_frequency_weights(labels_NHW, 4, 0.0) == [1.0] * 4


def test_bad_data_is_refused_by_name(folder: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 12, np.uint8)).save(folder / "annotations/val/1.png")
    with pytest.raises(ValueError, match=r"val/1.png: label ids \[12\]"):
        load_split(folder, "val", 11, IGNORE, CPU)
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(folder / "annotations/val/1.png")
    with pytest.raises(ValueError, match=r"val/1.png: the annotation is \(90, 121\)"):
        load_split(folder, "val", 11, IGNORE, CPU)
    (folder / "annotations/val/1.png").unlink()
    with pytest.raises(ValueError, match=r"needs an annotation of the same name: 1"):
        load_split(folder, "val", 11, IGNORE, CPU)


def test_validation_counts_what_the_predictor_labels(folder: Path) -> None:
    torch.manual_seed(0)
    network = models.PSPNet(models.Architecture("resnet18", 11)).eval()
    val = load_split(folder, "val", 11, IGNORE, CPU)
    predicted = models.Predictor(network, MEAN, STD).predict(val.images_N3HW.permute(0, 2, 3, 1).contiguous())
    expected_KK = confusion_matrix(val.labels_NHW.numpy(), predicted.class_ids_NHW, 11, IGNORE)
    found_KK = camvid.confusion(network, val, CPU).numpy()
    assert found_KK.sum() == (val.labels_NHW != IGNORE).sum()
    # In bfloat16, where the processor computes in it, some pixels between two classes change sides.
    assert np.abs(found_KK - expected_KK).sum() / 2 < 0.02 * found_KK.sum()
    scores, expected = camvid.metrics(torch.from_numpy(expected_KK)), Metrics.of(expected_KK)
    assert scores["miou"] == pytest.approx(expected.miou)
    assert scores["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy)


@pytest.mark.slow
def test_it_runs_where_torch_and_pillow_are_all_there_is() -> None:
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['ray', 'pydantic', 'cv2', 'fsspec', 'pyarrow', 'pipeline']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}; import benchmarks.camvid"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_ends_with_a_checkpoint_and_a_result_without_paths(folder: Path) -> None:
    result, checkpoint = folder / "result.json", folder / "checkpoint"
    done = run(
        *("--data", str(folder), "--output", str(checkpoint), "--json", str(result), "--minutes", "0.2"),
        *("--backbone", "resnet18", "--crop", "65", "65", "--batch", "2", "--every", "5", "--ema", "0.9"),
        *("--jitter", "0.2", "--blur", "0.5", "--protocol-scales", "1", "--protocol-crop", "97"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(result.read_text())
    assert str(folder) not in result.read_text()
    assert report["seconds"]["train"] >= 12
    assert report["steps"] >= 2
    assert report["history"][-1]["seconds"] >= 12
    best = max(entry["miou"] for entry in report["history"])
    assert report["metrics"]["network"]["miou"] == pytest.approx(best, abs=1e-6)
    assert set(report["metrics"]) == {"network", "predictor", "protocol"}
    assert abs(report["metrics"]["predictor"]["miou"] - best) < 0.02
    network, metadata = models.load(checkpoint, list(camvid.CLASSES))
    val = load_split(folder, "val", 11, IGNORE, CPU)
    assert camvid.metrics(camvid.confusion(network, val, CPU))["miou"] == pytest.approx(best, abs=1e-6)
    assert metadata.ignore_index == IGNORE
