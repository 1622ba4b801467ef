"""The built-in scenes as a dataset on disk, by the job that writes it."""

from pathlib import Path

import numpy as np
import pytest

from jobs import make_scenes
from pipeline.config.data import ClassEntry, DataConfig
from pipeline.datasets import list_pairs, load_pair
from pipeline.datasets.scene_files import FIRST_VAL
from pipeline.datasets.scenes import CLASSES, scene
from pipeline.errors import UserError
from pipeline.images.codec import encode_image


def test_scenes_are_read_back_as_a_training_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "scenes")
    counts, size = ["--num-train", "3", "--num-val", "2"], ["--height", "129", "--width", "65"]
    make_scenes.main(["--to", root, *counts, *size, "--seed", "5"])
    count = "3 training and 2 validation scenes"
    assert capsys.readouterr().out == f"Writing {count} to file://{root}\nWrote {count}\n"
    data = DataConfig(root=root, classes=[ClassEntry(name=entry.name, color=entry.color) for entry in CLASSES])
    for split, first, count in (("train", 0, 3), ("val", FIRST_VAL, 2)):
        pairs = list_pairs(data, split)
        assert len(pairs) == count
        for index, pair in enumerate(pairs, start=first):
            image_HW3, label_HW = load_pair(pair, data)
            expected_HW3, expected_HW = scene(5, index, 129, 65)
            np.testing.assert_array_equal(label_HW, expected_HW)
            # JPEG smooths the noise; two scenes differ by 40 and more.
            assert np.abs(image_HW3.astype(int) - expected_HW3).mean() < 8


def test_the_share_of_right_cues_is_that_of_the_option(tmp_path: Path) -> None:
    make_scenes.main(["--to", str(tmp_path), "--num-train", "1", "--num-val", "1", "--cues-right", "0.9"])
    image_HW3, _ = scene(0, 0, cues_right=0.9)
    assert (tmp_path / "images/train/000000.jpg").read_bytes() == encode_image(image_HW3)
    assert not np.array_equal(image_HW3, scene(0, 0)[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--width", "63"], "'63' is not an integer from 64 to 4096"),
        (["--num-train", "0"], "'0' is not an integer from 1 to 100000"),
        (["--num-val", "many"], "'many' is not an integer"),
        (["--cues-right", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--cues-right", "most"], "'most' is not a number from 0 to 1"),
    ],
)
def test_a_wrong_number_is_refused(tmp_path: Path, options: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_scenes.main(["--to", str(tmp_path), *options])
