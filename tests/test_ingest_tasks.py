"""Training batches made by Ray Data on a cluster."""

from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline.cluster import connection
from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.datasets import list_pairs
from pipeline.errors import UserError, user_error
from pipeline.train import batches as ingest
from pipeline.train.batches import Batch, BatchSchedule, WorkerShare, put_pairs, share, training_batches
from tests.scene_data import SIZE, TRAIN_OPTIONS, write_training_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    root = tmp_path_factory.mktemp("set")
    write_training_set(str(root), num_train=9, num_val=3)
    arguments = ["--data.root", str(root), "--output", str(root / "run"), *TRAIN_OPTIONS]
    return load_settings(TrainConfig, arguments, "test")


PER_EPOCH = 2  # steps; the ninth pair is left out


def plan_of(config: TrainConfig) -> BatchSchedule:
    pairs = list_pairs(config.data, "train")
    return BatchSchedule(
        len(pairs), batch_size=4, seed=3, data=config.data, augment=config.augment, fill=(0.0, 0.0, 0.0)
    )


def batches(
    config: TrainConfig, first: int = 0, total: int = PER_EPOCH, rank: int = 0, world_size: int = 1, cpus: int = 2
) -> list[Batch]:
    plan = plan_of(config)
    part = share(plan.batch_size, rank, world_size)
    worker = WorkerShare(plan, put_pairs(list_pairs(config.data, "train")), part, cpus)
    found = training_batches(worker, first, total)
    # Copied: what Ray hands out is a view of its store.
    return [Batch(*(array.copy() for array in batch)) for batch in found]


def test_workers_share_what_one_worker_would_see(connected: None, config: TrainConfig) -> None:
    alone = batches(config)
    assert [batch.images_NHW3.shape for batch in alone] == [(4, SIZE, SIZE, 3)] * PER_EPOCH
    assert {batch.labels_NHW.dtype for batch in alone} == {np.dtype(np.uint8)}
    shares = [batches(config, rank=rank, world_size=3, cpus=1) for rank in range(3)]
    for step, whole in enumerate(alone):
        assert np.array_equal(np.concatenate([share[step].images_NHW3 for share in shares]), whole.images_NHW3)
        assert np.array_equal(np.concatenate([share[step].labels_NHW for share in shares]), whole.labels_NHW)


def test_a_resumed_run_sees_what_an_uninterrupted_one_does_and_epochs_differ(
    connected: None, config: TrainConfig
) -> None:
    """Nine steps of four epochs and a half: more than one task makes."""
    monkey = pytest.MonkeyPatch()
    whole = batches(config, total=9)
    with monkey.context() as patch:
        patch.setattr(ingest, "TASK_STEPS", 2)  # other tasks and datasets, the same batches
        patch.setattr(ingest, "DATASET_STEPS", 4)
        resumed = batches(config, first=3, total=9)
    assert len(whole) == 9
    assert len(resumed) == 6
    for before, after in zip(whole[3:], resumed, strict=True):
        assert np.array_equal(before.images_NHW3, after.images_NHW3)
        assert np.array_equal(before.labels_NHW, after.labels_NHW)
    assert len({batch.images_NHW3.tobytes() for batch in whole}) == 9


def test_nothing_is_left_to_do_after_the_last_step(connected: None, config: TrainConfig) -> None:
    assert batches(config, first=4, total=4) == []


def test_a_failure_arrives_with_the_users_message(connected: None, config: TrainConfig) -> None:
    label = Path(list_pairs(config.data, "train")[0].label_uri.removeprefix("file://"))
    content = label.read_bytes()
    label.write_bytes(b"")
    try:
        with pytest.raises(ray.exceptions.RayError) as raised:
            batches(config, total=4 * PER_EPOCH)  # each epoch leaves out one pair of nine
        assert f"annotation {label.as_uri()}: the file has no bytes" in str(user_error(raised.value))
    finally:
        label.write_bytes(content)


def test_an_address_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS 127.0.0.1:1: no Ray cluster answers at this address"):
        connection.connect()
