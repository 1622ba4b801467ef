"""benchmarks/ingest.py: the single warp and the textbook chain crop the same, and both are measured."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ingest, textbook_augment
from pipeline.config.training import AugmentConfig
from pipeline.datasets.scenes import scene
from pipeline.train.augmentation import Draw, crop_of, random_draw
from tests.conftest import REPOSITORY

FILL, IGNORE = ingest.FILL, ingest.IGNORE


@pytest.mark.parametrize("crop", [(65, 97), (161, 161)])
@pytest.mark.parametrize("seed", range(12))
def test_every_pixel_of_both_comes_from_the_same_place_to_a_pixel(crop: tuple[int, int], seed: int) -> None:
    """The chain rounds the scaled size, the padding and the crop's place to whole pixels, half a pixel each."""
    draw = random_draw(AugmentConfig(crop=crop), np.random.default_rng(seed))
    place_HW2, inside_HW = ingest.displacement((120, 160), draw, crop)
    assert inside_HW.mean() > 0.05
    assert np.abs(place_HW2[inside_HW]).max() < 1.1


def test_neither_lies_to_one_side_of_the_other() -> None:
    """Over many draws the chain's rounding cancels out."""
    augment, offsets = AugmentConfig(crop=(65, 97)), []
    for seed in range(80):
        draw = random_draw(augment, np.random.default_rng(seed))
        place_HW2, inside_HW = ingest.displacement((240, 320), draw, augment.crop)
        offsets.append(place_HW2[inside_HW].mean(0))
    assert np.abs(np.mean(offsets, 0)).max() < 0.12


@pytest.mark.parametrize("angle", [0.0, 0.15])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_wrong_turn_or_mirror_would_be_seen(angle: float, mirrored: bool) -> None:
    draw = Draw(1.25, angle, mirrored, 0.2, -0.3, False)
    place_HW2, inside_HW = ingest.displacement((120, 160), draw, (65, 97))
    assert np.abs(place_HW2[inside_HW]).max() < 1.1
    image_HW3, label_HW = scene(0, 0, 120, 160)
    ours = crop_of(image_HW3, label_HW, draw, AugmentConfig(crop=(65, 97)), FILL, IGNORE)
    for wrong in (draw._replace(mirrored=not mirrored), draw._replace(angle=angle + 0.1)):
        theirs = textbook_augment.crop_of(image_HW3, label_HW, wrong, (65, 97), FILL, IGNORE)
        assert (ours[1] == theirs[1]).mean() < 0.9
    theirs = textbook_augment.crop_of(image_HW3, label_HW, draw, (65, 97), FILL, IGNORE)
    assert (ours[1] == theirs[1]).mean() > 0.95


def test_a_chain_without_changes_is_the_image() -> None:
    image_HW3, label_HW = scene(0, 1, 120, 160)
    still = Draw(1.0, 0.0, False, 0.0, 0.0, False)
    same_HW3, same_HW = textbook_augment.crop_of(image_HW3, label_HW, still, (120, 160), FILL, IGNORE)
    np.testing.assert_array_equal(same_HW3, image_HW3)
    np.testing.assert_array_equal(same_HW, label_HW)
    padded_HW3, padded_HW = textbook_augment.crop_of(image_HW3, label_HW, still, (130, 181), FILL, IGNORE)
    np.testing.assert_array_equal(padded_HW3[5:125, 10:170], image_HW3)
    np.testing.assert_array_equal(padded_HW, np.pad(label_HW, ((5, 5), (10, 11)), constant_values=IGNORE))
    assert padded_HW3[0, 0].tolist() == [round(value) for value in FILL]


@pytest.mark.slow
def test_the_benchmark_writes_its_figures_without_paths(tmp_path: Path) -> None:
    result = tmp_path / "ingest.json"
    options = ["--images", "2", "--draws", "3", "--rounds", "2", "--sizes", "90x120", "--crops", "65x97"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/ingest.py"), *options, "--consume", "1e6", "--json", str(result)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert str(tmp_path) not in result.read_text()
    assert [(row["variant"], row["decode"]) for row in report["rows"]] == [
        (variant, decode) for decode in (False, True) for variant in ("chain, uint8", "chain, float32", "one warp")
    ]
    for row in report["rows"]:
        assert row["speedups"][0] <= row["speedup"] <= row["speedups"][1]
        assert row["cores_needed"] == math.ceil(1e6 / row["crops_per_s"])
        assert row["feeds"]["16"] == pytest.approx(16 * row["crops_per_s"])
    assert report["agreement"][0]["largest_distance"] < 1.1
