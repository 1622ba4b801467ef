"""`make demo`, smaller."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.query import engine
from tests.conftest import REPOSITORY
from tests.requirements import SHM

pytestmark = [pytest.mark.slow, SHM.mark]

SMALL = ["--num-train", "16", "--num-val", "4", "--num-photos", "12", "--optimization.epochs", "1"]


@pytest.mark.timeout(900)
def test_it_takes_an_earlier_demos_place_shows_everything_and_leaves_no_process(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    earlier = [demo / "labels" / "masks" / "part-earlier.parquet", demo / "runs" / "scenes" / "best" / "earlier.json"]
    for path in (*earlier, demo / "mine.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of an earlier demo, or not a demo's")
    mark = {"SCENEPARSE_TEST_MARK": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, "jobs/demo.py", "--to", str(demo), *SMALL],
        cwd=REPOSITORY,
        env={**environment, **mark},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not _processes_with(mark), "the demo left processes behind"
    assert (demo / "mine.txt").exists(), "the demo removed what it had not made"
    assert not [path for path in earlier if path.exists()], "results of an earlier demo are left among the new ones"
    printed = done.stdout
    assert "15 of 15 images" in printed
    assert "broken-text.jpg: NotAnImage at decode" in printed
    assert re.search(r"mIoU of the masks against the ground truth: 0\.\d+", printed)
    assert "images/s" in printed
    assert "percent_of_pixels" in printed
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "demo" / "photos.jpg").stat().st_size > 10_000
    connection = engine.connect(str(tmp_path / "demo" / "labels"))
    assert connection.sql("SELECT status, count(*) FROM masks GROUP BY status ORDER BY status").fetchall() == [
        ("error", 3),
        ("ok", 12),
    ]


def _processes_with(mark: dict[str, str]) -> list[psutil.Process]:
    """Processes, other than zombies, that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and mark.items() <= process.environ().items():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
