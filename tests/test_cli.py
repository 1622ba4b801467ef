"""The command `sceneparse` beside the scripts in jobs/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS
from tests.in_process import REPOSITORY

SHADOWS = "shadows Sceneparse's own"


def sceneparse(*arguments: str, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; a package in `first_on_path` comes before Sceneparse's."""
    first = [str(first_on_path)] if first_on_path else []
    # Without the finder of an editable installation, which finds our modules in another package of that name, too.
    finders = "[finder for finder in sys.meta_path if 'editable' not in repr(finder)]"
    program = f"import sys; sys.path[:0] = {first}; sys.meta_path = {finders}; from jobs.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_job_is_a_command() -> None:
    jobs = {path.stem for path in (REPOSITORY / "jobs").glob("[!_]*.py")}
    assert {module for module, _ in COMMANDS.values()} == jobs


def test_help_lists_the_commands() -> None:
    shown = sceneparse("--help")
    assert shown.returncode == 0
    assert all(f"  {command} " in shown.stdout for command in COMMANDS)
    assert sceneparse().stdout == shown.stdout


def test_an_unknown_command_is_an_error_that_names_all() -> None:
    failed = sceneparse("trian")
    assert failed.returncode == 2
    assert failed.stderr == f"sceneparse: no command 'trian'; use one of {', '.join(COMMANDS)}\n"


def test_a_command_gets_its_arguments_and_shows_its_own_name() -> None:
    assert "class-areas" in sceneparse("query", "--list").stdout
    failed = sceneparse("report", "--gallery", "-1", "labels")
    assert failed.returncode == 2
    assert (
        failed.stderr
        == "error: argument --gallery: -1 must not be negative; sceneparse report --help lists the options\n"
    )


@pytest.mark.parametrize("name", ["models", "pipeline"])
def test_a_package_that_shadows_ours_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    failed = sceneparse("query", "--list", first_on_path=tmp_path)
    assert failed.returncode == 2
    assert f"the package '{name}' in {tmp_path / name / '__init__.py'} {SHADOWS}" in failed.stderr
    assert "Traceback" not in failed.stderr
