"""Output of `make setup`, with stand-ins for Python and uv that print as much as the real ones."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LINES = 400
# `PYTHON -m venv .venv` makes a .venv whose programs print much, and fail if their arguments contain $FAILING.
PYTHON = f"""#!/bin/sh
case "$1" in -c) exit 0 ;; esac
case "$*" in "-m venv .venv") ;; *) exit 3 ;; esac
mkdir -p .venv/bin
cat > .venv/bin/python << 'END'
#!/bin/sh
seq -f '+ package==%g' {LINES}
case "$0 $*" in *"${{FAILING:-no argument}}"*) echo 'error: no such index' >&2; exit 2 ;; esac
END
chmod +x .venv/bin/python
cp .venv/bin/python .venv/bin/uv
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/install.sh", tmp_path / "scripts")
    shutil.copy(REPOSITORY / "constraints.txt", tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def install(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/install.sh", str(checkout / "python"), "demo"],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_installation_prints_a_line_with_seconds_for_each_phase_and_logs_the_rest(checkout: Path) -> None:
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    phases = [line.rpartition(": ") for line in done.stdout.splitlines()]
    assert [name.strip() for name, _, _ in phases] == [
        "Creating .venv",
        "Installing uv",
        "Installing sceneparse[demo] with uv",
    ]
    assert all(time.endswith(" s") and time[:-2].isdecimal() for _, _, time in phases)
    assert (checkout / ".venv/install.log").read_text().count("+ package==") == 2 * LINES


def test_a_failed_installation_shows_the_end_of_the_log_and_names_it_in_the_last_line(checkout: Path) -> None:
    done = install(checkout, FAILING="--editable")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "  Installing sceneparse[demo] with uv: failed"
    shown = done.stderr.splitlines()
    assert len(shown) < 20
    assert "error: no such index" in shown
    assert shown[-1].startswith("error: the installation failed")
    assert shown[-1].endswith(".venv/install.log")


def test_without_uv_pip_installs_and_the_missing_check_of_hashes_is_reported(checkout: Path) -> None:
    done = install(checkout, FAILING="--require-hashes")
    assert done.returncode == 0, done.stderr
    assert "  Installing uv: failed\n" in done.stdout
    assert "does not check hashes" in done.stdout
    assert "Installing sceneparse[demo] with pip: " in done.stdout


def test_a_second_installation_keeps_the_environment_and_replaces_the_log(checkout: Path) -> None:
    assert install(checkout, FAILING="--editable").returncode == 1
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    assert "Creating" not in done.stdout
    assert "no such index" not in (checkout / ".venv/install.log").read_text()
