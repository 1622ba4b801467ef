"""Datasets that stand still for long: a scene may take hours, and so may the nodes that a cluster waits for."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data

from pipeline.cluster.ray_data import map_tables
from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.datasets import list_pairs
from pipeline.train.batches import BatchSchedule, WorkerShare, put_pairs, training_batches
from tests.scene_data import TRAIN_OPTIONS, write_training_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("connected", "impatient")]

STANDSTILL = 4.0  # seconds


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data ends an execution that has stood still for half an hour, unless it is told otherwise; here for 1 s."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 1.0)


def slowly(rows: pa.Table) -> Iterator[pa.Table]:
    time.sleep(STANDSTILL)
    yield rows


class SlowSchedule(BatchSchedule):
    def crop(self, step: int, pair: Any, index: int) -> Any:
        time.sleep(STANDSTILL)
        return super().load_crop(step, pair, index)


def test_a_slow_task_is_waited_for() -> None:
    rows = pa.table({"n": [1, 2]})
    assert map_tables(slowly, [rows], num_cpus=1).take_all() == rows.to_pylist()


def test_a_slow_batch_is_waited_for(tmp_path: Path) -> None:
    write_training_set(str(tmp_path), num_train=4, num_val=1)
    options = ["--data.root", str(tmp_path), "--output", str(tmp_path / "run"), *TRAIN_OPTIONS]
    config: TrainConfig = load_settings(TrainConfig, options, "test")
    pairs = list_pairs(config.data, "train")
    schedule = SlowSchedule(
        len(pairs), batch_size=4, seed=3, data=config.data, augment=config.augment, fill=(0.0, 0.0, 0.0)
    )
    batches = training_batches(WorkerShare(schedule, put_pairs(pairs), slice(0, schedule.batch_size), 1), 0, 1)
    assert len(list(batches)) == 1
