"""How a job ends: its exit code, and what its user is told."""

import pytest

from pipeline.console import run_job
from pipeline.errors import UserError


def test_control_characters_of_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def job(argv: list[str]) -> None:
        raise UserError("manifest m.csv: no column '\x1b[2J\x07'\n  é, 世界\tstay")

    with pytest.raises(SystemExit) as ended:
        run_job(job)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: manifest m.csv: no column '\\x1b[2J\\x07'\n  é, 世界\tstay\n"
