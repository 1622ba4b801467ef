"""The progress of a segmentation run, as a log and as a terminal have it."""

import io

import pytest

from pipeline.cluster.progress_actor import ProgressUpdate
from pipeline.console import log
from pipeline.segment import progress
from pipeline.segment.progress import ProgressBar
from pipeline.segment.worklist import ListingProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def update(**counts: int) -> ProgressUpdate:
    return ProgressUpdate(counts, [], [])


def test_a_line_tells_rates_time_left_failures_by_kind_and_costs(clock: list[float]) -> None:
    out = io.StringIO()
    line = ProgressBar(ListingProgress(images=1210, done_before=10, ended=True), price_per_hour=36, out=out)
    clock[0] += 50
    line.show(update(ok=97, Corrupt=2, Empty=1))
    clock[0] += 50
    line.show(update(ok=297, Corrupt=2, Empty=1))
    first, second = out.getvalue().splitlines()
    assert first == (
        "100 of 1,200 images · 2.0 images/s now, 2.0 on average · 0:09:10 left · "
        "3 failed (2 Corrupt, 1 Empty) · 0.50 spent"
    )
    assert second.startswith("300 of 1,200 images · 4.0 images/s now, 3.0 on average")
    assert line.seconds_to_first == 50


def test_a_log_gets_a_line_every_half_minute_and_the_last_one(clock: list[float]) -> None:
    out = io.StringIO()
    line = ProgressBar(ListingProgress(images=100, ended=True), out=out)
    for done in range(0, 101):
        clock[0] += 1
        line.show(update(ok=done))
    line.show(update(ok=100))
    told = [int(text.split()[0]) for text in out.getvalue().splitlines()]
    assert told == [1, 31, 61, 91, 100]


def test_what_workers_say_stands_on_lines_of_its_own(clock: list[float]) -> None:
    said = ProgressUpdate({"ok": 1}, ["scene.tif: read 40% of 30,000 x 30,000 pixels"], [])
    log, terminal = io.StringIO(), Terminal()
    for out in (log, terminal):
        line = ProgressBar(ListingProgress(images=2, ended=True), out=out)
        clock[0] += 1
        line.show(update(ok=1))
        line.show(said)
    assert log.getvalue().splitlines()[1] == said.lines[0]
    assert f"\r\x1b[K{said.lines[0]}\n\r\x1b[K█" in terminal.getvalue()


def test_a_log_shows_that_a_run_is_alive_before_its_first_image_and_while_none_is_done(clock: list[float]) -> None:
    out = io.StringIO()
    line = ProgressBar(ListingProgress(images=10, ended=True), price_per_hour=36, seconds_before=100, out=out)
    for _ in range(65):
        line.show(update())
        clock[0] += 1
    line.show(update(ok=5))
    for _ in range(65):
        clock[0] += 1
        line.show(update(ok=5))
    assert out.getvalue().splitlines() == [
        "0 of 10 images · 0:00:30 so far · 1.30 spent",
        "0 of 10 images · 0:01:00 so far · 1.60 spent",
        "5 of 10 images · 0.2 images/s now, 0.1 on average · 0:01:05 left · 0 failed · 1.65 spent",
        "5 of 10 images · 0.0 images/s now, 0.1 on average · 0:01:35 left · 0 failed · 1.95 spent",
        "5 of 10 images · 0.0 images/s now, 0.0 on average · 0:02:05 left · 0 failed · 2.25 spent",
    ]


def test_after_the_last_image_nothing_is_repeated(clock: list[float]) -> None:
    out = io.StringIO()
    line = ProgressBar(ListingProgress(images=2, ended=True), out=out)
    for _ in range(100):
        clock[0] += 1
        line.show(update(ok=2))
    assert len(out.getvalue().splitlines()) == 1


def test_names_do_not_command_the_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    ProgressBar(ListingProgress(images=2), out=out).show(ProgressUpdate({}, ["a\x1b[2J.tif: 40%"], []))
    assert out.getvalue() == "a\\x1b[2J.tif: 40%\n"
    log("a\x07.tif")
    assert capsys.readouterr().out == "a\\x07.tif\n"


def test_while_the_listing_goes_on_no_time_left_is_promised(clock: list[float]) -> None:
    out = io.StringIO()
    line = ProgressBar(ListingProgress(images=1000), out=out)
    clock[0] += 10
    line.show(update(ok=50))
    assert "50 of 1,000 images listed so far · " in out.getvalue()
    assert "time left unknown" in out.getvalue()


def test_a_terminal_gets_a_bar_in_one_place_that_fits_and_ends_with_a_new_line(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    line = ProgressBar(ListingProgress(images=4, ended=True), out=out)
    for done in (1, 2, 4):
        clock[0] += 1
        line.show(update(ok=done))
    line.show(update(ok=4))
    shown = out.getvalue().split("\r\x1b[K")[1:]
    assert [text.count("█") for text in shown] == [5, 10, 20]
    assert all(len(text.rstrip("\n")) < 60 for text in shown)
    assert [text.endswith("\n") for text in shown] == [False, False, True]
