"""Timing reports of processes, and their sums."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.segment import prometheus
from pipeline.segment.stage_timing import Report, Spent, StageSeconds


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not reported yet."""
    prometheus.report()
    monkeypatch.setattr(prometheus, "_reported", set())


def test_a_report_has_the_work_since_the_last_one_by_stage() -> None:
    for num_bytes in (10, 20):
        with prometheus.timed("decode", images=2) as work:
            work.bytes = num_bytes
    prometheus.count_wait(1.5)
    spent, first = prometheus.report()
    assert (spent["decode"].images, spent["decode"].bytes) == (4, 30)
    assert spent["decode"].seconds > 0
    assert spent["wait"] == Spent(seconds=1.5)
    assert first == {"decode", "wait"}
    assert prometheus.report() == ({}, set())


def test_work_that_fails_is_counted_and_its_error_raised() -> None:
    with pytest.raises(ValueError, match="broken"), prometheus.timed("decode"):
        raise ValueError("broken")
    assert prometheus.report().spent["decode"].images == 1


def test_a_stage_is_reported_for_the_first_time_once() -> None:
    firsts = []
    for stage in ("decode", "decode", "write"):
        with prometheus.timed(stage):
            pass
        firsts.append(prometheus.report().first)
    assert firsts == [{"decode"}, set(), {"write"}]


def test_no_work_of_another_thread_is_lost() -> None:
    def work(_: int) -> None:
        with prometheus.timed("download", images=1):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(2000)))
    assert prometheus.report().spent["download"].images == 2000


def test_processor_time_is_that_of_work_and_not_of_waiting() -> None:
    begin = since = time.process_time()
    time.sleep(0.3)
    since = prometheus.count_processor("wait", since)
    while time.process_time() < since + 0.1:
        pass
    end = prometheus.count_processor("predict", since)
    spent = prometheus.report().spent
    assert spent["wait"].cpu_seconds == since - begin < 0.2
    assert spent["predict"].cpu_seconds == end - since >= 0.1


def test_reports_add_up_and_first_ones_are_told_apart() -> None:
    total = StageSeconds()
    total.add(Report({"decode": Spent(5.0, 4.0, 16, 100)}, {"decode"}))
    total.add(Report({"decode": Spent(1.0, 0.5, 16, 200), "write": Spent(2.0, 1.0, 32, 10)}, {"write"}))
    total.add(Report({"decode": Spent(1.0, 0.5, 16, 300)}, set()))
    assert total.spent == {"decode": Spent(7.0, 5.0, 48, 600), "write": Spent(2.0, 1.0, 32, 10)}
    assert total.warm == {"decode": Spent(2.0, 1.0, 32, 500)}
    assert total.as_json()["write"] == {"seconds": 2.0, "cpu_seconds": 1.0, "images": 32, "bytes": 10}
