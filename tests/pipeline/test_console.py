"""The end of a job: its exit code and its last message."""

import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NoReturn

import pytest

from jobs import import_weights, segment_bucket, train
from pipeline.console import START_OVER, run_job
from pipeline.errors import UserError


def test_control_characters_of_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def job(argv: list[str]) -> None:
        raise UserError("manifest m.csv: no column '\x1b[2J\x07'\n  é, 世界\tstay")

    with pytest.raises(SystemExit) as ended:
        run_job(job)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: manifest m.csv: no column '\\x1b[2J\\x07'\n  é, 世界\tstay\n"


@pytest.fixture
def _own_sigterm() -> Iterator[None]:
    """Restore the handler that run_job replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_own_sigterm")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_ends_with_one_line_and_the_exit_code_of_its_signal(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job(lambda argv: signal.raise_signal(number))
    assert ended.value.code == code
    assert capsys.readouterr().err == f"Interrupted. {START_OVER}\n"


@pytest.mark.usefixtures("_own_sigterm")
def test_in_a_terminal_the_line_behind_a_progress_bar_is_ended_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        run_job(lambda argv: signal.raise_signal(signal.SIGINT))
    assert capsys.readouterr().err == f"\nInterrupted. {START_OVER}\n"


@pytest.mark.usefixtures("_own_sigterm")
@pytest.mark.parametrize(
    ("job", "step", "options", "message"),
    [
        (
            train,
            "log",
            ["--config", "configs/scenes_pspnet18.yaml", "--root", "scenes", "--output"],
            "training resumes from its last ",
        ),
        (segment_bucket, "log", ["--input", "photos", "--checkpoint", "best", "--output"], "again to label the rest."),
        (import_weights, "published.downloaded", ["resnet50-imagenet", "--to"], "the download continues where it "),
    ],
)
def test_a_job_that_resumes_says_so_if_it_is_stopped_while_it_loads_libraries_or_weights(
    job: ModuleType,
    step: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{job.__name__}.{step}", interrupted)
    with pytest.raises(SystemExit):
        run_job(job.main, [*options, "/elsewhere"])
    assert message in capsys.readouterr().err
