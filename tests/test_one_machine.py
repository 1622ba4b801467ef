"""The two terminals of docs/cluster.md, typed as they are printed into shells that know nothing of this project."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline.demo.server_process import LOOPBACK, ServerProcess, free_ports
from tests.conftest import REPOSITORY
from tests.documented_blocks import BLOCKS, TWO_TERMINALS
from tests.evaluation_samples import save_model
from tests.output_checks import check_invariants
from tests.ray_head import STARTED_TOO_SLOWLY, STARTS
from tests.requirements import SHM
from tests.scene_data import write_photos

pytestmark = pytest.mark.slow


def test_a_job_submitted_from_a_second_terminal_labels_the_demos_photos(tmp_path: Path) -> None:
    SHM.check()
    first, second = (block.code for block in BLOCKS if block.title == TWO_TERMINALS)
    # Other Rays run on the machine of a test. The options are those that the page names for this.
    options = re.findall(r"--[a-z-]+port", (REPOSITORY / "docs/cluster.md").read_text().partition("## One machine")[2])
    ports = dict(zip(options, map(str, free_ports(len(options))), strict=True))
    first = " ".join([first.strip(), *(f"{name} {port}" for name, port in ports.items())])
    dashboard = f"http://{LOOPBACK}:{ports['--dashboard-port']}"
    # As `make demo` leaves them.
    save_model(tmp_path / "demo/runs/scenes/best")
    uris = write_photos((tmp_path / "demo/photos").as_uri(), 3)
    second = second.replace("http://127.0.0.1:8265", dashboard).replace("$PWD/build", str(tmp_path))
    (tmp_path / "home").mkdir()

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sessions:
        bare = ["env", "-i", f"HOME={tmp_path / 'home'}", "PATH=/usr/bin:/bin", f"RAY_TMPDIR={sessions}"]
        shell = [*bare, "bash", "-exo", "pipefail", "-c"]
        head = _served([*shell, f"cd {REPOSITORY}\n{first}"], dashboard, tmp_path / "log")
        try:
            # A submission that does not show the token is refused in a few lines.
            refused = _typed(shell, second.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"))
            assert refused.returncode != 0
            assert "oken" in refused.stderr
            done = _typed(shell, second)
            assert done.returncode == 0, done.stdout + done.stderr
            relative = _typed(shell, second.replace(f'--output "{tmp_path}/labels"', "--output labels"))
        finally:
            head.stop()
    rows = check_invariants((tmp_path / "labels").as_uri(), uris)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert relative.returncode != 0
    assert "output: labels is a relative path, but a submitted job runs in a temporary copy" in relative.stdout


def _typed(shell: list[str], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*shell, code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def _served(command: list[str], url: str, log: Path) -> ServerProcess:
    """Start a head that answers, or raise. Ray gives up on a busy machine, where it may be started again."""
    for attempt in range(1, STARTS + 1):
        head = ServerProcess("ray head", command, url, log, {"PWD": os.getcwd()})
        head.start()
        try:
            head.wait_until_it_answers(180)
            return head
        except RuntimeError:
            head.stop()
            if attempt == STARTS or STARTED_TOO_SLOWLY not in log.read_text():
                raise
    raise AssertionError("STARTS is positive")
