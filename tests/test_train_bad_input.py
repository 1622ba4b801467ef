"""What jobs/train.py says, before any worker starts, about input that cannot work."""

import pytest

from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.settings import load_settings
from pipeline.training import train
from tests.scene_data import TRAIN_OPTIONS, write_training_set


def config(root: str, output: str, *options: str) -> TrainConfig:
    arguments = ["--data.root", root, "--output", output, *TRAIN_OPTIONS, *options]
    return load_settings(TrainConfig, arguments, "jobs/train.py")


def test_too_few_images_for_a_batch(tmp_path) -> None:
    write_training_set(str(tmp_path / "set"), num_train=3)
    with pytest.raises(UserError, match=r"3 training images are fewer than one batch .*batch_size 4"):
        train(config(str(tmp_path / "set"), str(tmp_path / "run")))


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
