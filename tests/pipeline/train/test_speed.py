"""Images per second of training, without the time between laps."""

from types import SimpleNamespace

import pytest

from pipeline.train import speed
from pipeline.train.speed import SpeedMeter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_restart_leaves_out_what_is_not_training(clock: SimpleNamespace) -> None:
    meter = SpeedMeter(batch_size=4)
    meter.step()
    clock.now += 2
    assert meter.lap() == 1 * 4 / 2
    clock.now += 1000  # a checkpoint is written
    meter.restart()
    for _ in range(3):
        meter.step()
    clock.now += 4
    assert meter.lap() == 3 * 4 / 4
    assert meter.overall() == 4 * 4 / 6


def test_a_run_without_steps_has_no_speed(clock: SimpleNamespace) -> None:
    assert SpeedMeter(batch_size=4).overall() is None
