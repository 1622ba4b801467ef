"""jobs/train.py reports invalid input before any worker starts."""

import itertools

import numpy as np
import pytest

from pipeline import storage
from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from pipeline.images.codec import encode_mask
from pipeline.train.run import train
from tests.scene_data import PALETTE, TRAIN_OPTIONS, write_training_set


def config(root: str, output: str, *options: str) -> TrainConfig:
    """A small run's, with `options` in place of its own."""
    kept = dict(zip(TRAIN_OPTIONS[::2], TRAIN_OPTIONS[1::2], strict=True))
    kept |= dict(zip(options[::2], options[1::2], strict=True))
    arguments = ["--data.root", root, "--output", output, *itertools.chain(*kept.items())]
    return load_settings(TrainConfig, arguments, "jobs/train.py")


def test_too_few_images_for_a_batch(tmp_path) -> None:
    write_training_set(str(tmp_path / "set"), num_train=3)
    with pytest.raises(UserError, match=r"3 training images are fewer than one batch .*batch_size 4"):
        train(config(str(tmp_path / "set"), str(tmp_path / "run")))


@pytest.mark.parametrize(("length", "steps"), [({"--optimization.epochs": "2"}, 2), ({"--steps": "5"}, 5)])
def test_a_warmup_that_outlasts_the_run(tmp_path, length: dict[str, str], steps: int) -> None:
    write_training_set(str(tmp_path / "set"), num_train=4, num_val=1)
    options = {"--optimization.epochs": "none", "--optimization.warmup-steps": "5"} | length
    with pytest.raises(UserError, match=rf"warmup_steps 5 does not end before the run, which has {steps} steps"):
        train(config(str(tmp_path / "set"), str(tmp_path / "run"), *itertools.chain(*options.items())))


def test_a_bucket_that_does_not_exist_is_neither_read_nor_made(bucket: str, tmp_path) -> None:
    with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
        train(config("s3://no-such-bucket/set", str(tmp_path / "run")))
    write_training_set(bucket, num_train=4, num_val=1)
    with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
        train(config(bucket, "s3://no-such-bucket/run"))


def test_a_wrong_secret_key(bucket: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=r"access denied .* check the AWS credentials"):
            train(config(bucket, str(tmp_path / "run")))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_annotation_of_another_size_than_its_image(tmp_path) -> None:
    root = str(tmp_path / "set")
    write_training_set(root, num_train=4, num_val=1)
    storage.write_bytes(f"{root}/annotations/train/0000.png", encode_mask(np.zeros((9, 12), np.uint8), PALETTE))
    with pytest.raises(UserError, match=r"train/0000.png is 12 x 9 pixels but its image .*0000.jpg is 65 x 65"):
        train(config(root, str(tmp_path / "run")))


def test_annotations_that_count_from_1_name_the_label_map_to_set(tmp_path) -> None:
    root = str(tmp_path / "set")
    write_training_set(root, num_train=4, num_val=1)
    shifted_HW = np.resize(np.arange(1, 12, dtype=np.uint8), (65, 65))
    for number in (1, 3):
        storage.write_bytes(f"{root}/annotations/train/000{number}.png", encode_mask(shifted_HW, PALETTE))
    storage.write_bytes(f"{root}/annotations/train/0000.png", encode_mask(shifted_HW.clip(max=10), PALETTE))
    storage.write_bytes(f"{root}/annotations/train/0002.png", encode_mask(shifted_HW.clip(max=10), PALETTE))
    with pytest.raises(UserError, match=r"11 \(in 2\).*train/0001.png; .* data.label_map: {1: 0, 2: 1, .*11: 10}"):
        train(config(root, str(tmp_path / "run")))


def test_an_image_without_annotation(tmp_path) -> None:
    root = str(tmp_path / "set")
    write_training_set(root, num_train=4, num_val=1)
    storage.remove(f"{root}/annotations/val/1000.png")
    with pytest.raises(UserError, match=r"1000.jpg"):
        train(config(root, str(tmp_path / "run")))


def test_a_crop_too_small_for_the_pyramid_names_the_key(tmp_path) -> None:
    with pytest.raises(UserError, match=r"augment: crop \[33, 33\] is too small for the pyramid; use at least 64"):
        config("set", str(tmp_path / "run"), "--augment.crop", "33,33")


def test_frozen_batch_norm_without_weights(tmp_path) -> None:
    with pytest.raises(UserError, match=r"optimization.batch_norm: frozen .* but no weights are set"):
        config("set", str(tmp_path / "run"), "--optimization.batch-norm", "frozen")


def test_class_weights_for_other_classes(tmp_path) -> None:
    with pytest.raises(UserError, match=r"loss.class_weights has 2 values for 11 classes"):
        config("set", str(tmp_path / "run"), "--loss.class-weights", "1,2")


@pytest.mark.parametrize(
    "options",
    [
        # One image for each of two workers, each normalising alone.
        ["--optimization.batch-size", "2", "--optimization.batch-norm", "plain"],
        # One worker that takes its images one by one.
        ["--workers.count", "1", "--optimization.micro-batch", "1"],
        # Three images in two passes: one goes alone.
        ["--workers.count", "1", "--optimization.batch-size", "3", "--optimization.micro-batch", "2"],
    ],
)
def test_a_batch_norm_that_would_see_one_value(tmp_path, options: list[str]) -> None:
    with pytest.raises(UserError, match=r"BatchNorm of pyramid bin 1 a single value per channel.*micro_batch"):
        config("set", str(tmp_path / "run"), *options)


def test_batch_norms_that_see_enough(tmp_path) -> None:
    for options in (
        ["--optimization.batch-size", "2"],  # synchronized over two workers
        ["--workers.count", "1", "--optimization.micro-batch", "2"],
        ["--workers.count", "1", "--optimization.micro-batch", "1", "--model.bins", "2,3"],
    ):
        config("set", str(tmp_path / "run"), *options)
