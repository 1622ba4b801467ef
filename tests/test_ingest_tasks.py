"""Training batches made by tasks of a Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline import cluster
from pipeline.config import TrainConfig
from pipeline.datasets import list_pairs
from pipeline.errors import UserError, user_error
from pipeline.ingest import Batch, training_batches, validation_pairs
from pipeline.settings import load_settings
from tests.ray_head import RayHead
from tests.scene_data import SIZE, TRAIN_OPTIONS, write_training_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def connected(head: RayHead) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        cluster.connect()
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    root = tmp_path_factory.mktemp("set")
    write_training_set(str(root), num_train=9, num_val=3)
    arguments = ["--data.root", str(root), "--output", str(root / "run"), *TRAIN_OPTIONS]
    return load_settings(TrainConfig, arguments, "test")


def batches(config: TrainConfig, epoch: int, rank: int, world_size: int, cpus: int = 2) -> list[Batch]:
    return list(
        training_batches(
            list_pairs(config.data, "train"),
            config.data,
            config.augment,
            (0.0, 0.0, 0.0),
            seed=3,
            epoch=epoch,
            batch_size=4,
            rank=rank,
            world_size=world_size,
            cpus=cpus,
        )
    )


def test_workers_share_what_one_worker_would_see(connected: None, config: TrainConfig) -> None:
    alone = batches(config, epoch=0, rank=0, world_size=1)
    assert [batch.images_NHW3.shape for batch in alone] == [(4, SIZE, SIZE, 3)] * 2  # the ninth pair is left out
    shares = [batches(config, epoch=0, rank=rank, world_size=3, cpus=1) for rank in range(3)]
    for step, whole in enumerate(alone):
        assert np.array_equal(np.concatenate([share[step].images_NHW3 for share in shares]), whole.images_NHW3)
        assert np.array_equal(np.concatenate([share[step].labels_NHW for share in shares]), whole.labels_NHW)


def test_epochs_differ_and_repeat_exactly(connected: None, config: TrainConfig) -> None:
    first, again, second = (batches(config, epoch=epoch, rank=0, world_size=1) for epoch in (0, 0, 1))
    assert np.array_equal(first[1].images_NHW3, again[1].images_NHW3)
    assert not np.array_equal(first[1].images_NHW3, second[1].images_NHW3)


def test_validation_keeps_order_and_size(connected: None, config: TrainConfig) -> None:
    pairs = list_pairs(config.data, "val")
    found = list(validation_pairs(pairs, config.data, cpus=2))
    assert [batch.images_NHW3.shape for batch in found] == [(1, SIZE, SIZE, 3)] * 3


def test_a_failure_arrives_with_the_users_message(connected: None, config: TrainConfig) -> None:
    label = Path(list_pairs(config.data, "train")[0].label_uri.removeprefix("file://"))
    content = label.read_bytes()
    label.write_bytes(b"")
    try:
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            # Each epoch leaves out one pair of nine.
            _ = [batches(config, epoch=epoch, rank=0, world_size=1) for epoch in range(4)]
        assert f"annotation {label.as_uri()}: the file has no bytes" in str(user_error(raised.value))
    finally:
        label.write_bytes(content)


def test_an_address_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS 127.0.0.1:1: no Ray cluster answers there"):
        cluster.connect()
