"""`make demo`, smaller."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs import demo as demo_job
from pipeline.demo.run import MARK
from pipeline.errors import UserError
from pipeline.query import engine
from tests.conftest import REPOSITORY, RunJob
from tests.in_process import run_script
from tests.requirements import SHM

SMALL = ["--num-train", "16", "--num-val", "4", "--num-photos", "12", "--epochs", "1", "--model.width", "16"]


@pytest.mark.slow
@SHM.mark
@pytest.mark.timeout(900)
def test_it_takes_an_earlier_demos_place_and_leaves_what_it_announces_and_no_process(
    tmp_path: Path, run_job: RunJob
) -> None:
    demo = tmp_path / "demo"
    earlier = [demo / "labels" / "masks" / "part-earlier.parquet", demo / "runs" / "scenes" / "best" / "earlier.json"]
    for path in (*earlier, demo / "mine.txt", demo / MARK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of an earlier demo, or not a demo's")
    mark = {"MARK_OF_DEMO": str(tmp_path)}
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
    assert re.search(r"0\.\d+ at 129 x 129\. The scenes of training and validation are all 129 x 129, ", printed)
    assert "images/s" in printed
    assert "percent_of_pixels" in printed
    results = printed.partition("These results are in")[2].partition("== Run next")[0]
    announced = re.findall(r"^  (\S+)  ", results, re.MULTILINE)
    assert announced == ["report.html", "photos.jpg", "photos", "labels", "runs/scenes", "scenes"]
    assert all((demo / name).exists() for name in announced)
    run = {path.name for path in (demo / "runs" / "scenes").iterdir()}
    assert run > {"best", "last", "report.html", "history.jsonl"}
    assert not [name for name in run if name.startswith("checkpoint_")]
    report = (demo / "report.html").read_text()
    assert "data:image" in report
    assert "s3://" not in report, "the report leads to the deleted bucket"
    assert (demo / "photos.jpg").stat().st_size > 10_000
    rows = engine.connect(str(demo / "labels")).sql("SELECT image_uri, status FROM masks").fetchall()
    assert {uri for uri, _ in rows} == {path.as_uri() for path in (demo / "photos").iterdir()}
    assert sorted(status for _, status in rows) == ["error"] * 3 + ["ok"] * 12

    for command in re.findall(r"^  (\S+ jobs/.*)$", printed.partition("== Run next")[2], re.MULTILINE):
        _, script, *options = shlex.split(command)
        done = run_job(script, *options)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (demo / "evaluation" / "evaluation.html").exists()
    assert engine.connect(str(demo / "more-labels")).sql("SELECT count(*) FROM masks").fetchall() == [(4,)]
    # The photos are where the rows lead, so that jobs that read them again work without the bucket.
    for script, *options in (
        ("jobs/verify.py", "--input", str(demo / "photos")),
        ("jobs/export_masks.py", "--format", "overlay", "--to", str(demo / "overlays")),
    ):
        done = run_script(script, str(demo / "labels"), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    # The command that is printed for the scenes makes the same files elsewhere.
    (command,) = re.findall(r"^== python (jobs/make_scenes\.py .*)$", printed, re.MULTILINE)
    script, *options = shlex.split(command.replace(str(demo / "scenes"), str(tmp_path / "again")))
    assert run_script(script, *options).returncode == 0
    assert _files(tmp_path / "again") == _files(demo / "scenes")


def test_a_folder_that_may_be_the_users_own_is_refused_and_kept(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "holiday.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"/photos exists and may be your own.* choose another"):
        demo_job.main(["--to", str(tmp_path)])
    assert photo.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_unknown_option_of_training_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"unknown option --epoch \(did you mean --epochs\?\)"):
        demo_job.main(["--to", str(tmp_path / "demo"), "--epoch", "4"])
    assert not (tmp_path / "demo").exists()
    assert capsys.readouterr().out == "Loading PyTorch and Ray\n"


def test_a_misspelled_option_of_the_demo_is_answered_with_the_demos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option --num-phtos \(did you mean --num-photos\?\); .*jobs/demo.py"):
        demo_job.main(["--to", str(tmp_path / "demo"), "--epochs", "4", "--num-workers", "2", "--num-phtos", "12"])


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
