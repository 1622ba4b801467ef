"""Jobs that Ctrl-C or SIGTERM interrupts say what is saved, and the same command completes their work."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from pipeline import storage
from pipeline.train.run_folder import recorded_checkpoints
from tests.conftest import REPOSITORY, RunJob
from tests.output_checks import check_invariants
from tests.ray_head import RayHead
from tests.scene_data import TRAIN_OPTIONS, write_photos, write_training_set
from tests.test_segment_job import save_checkpoint

pytestmark = pytest.mark.slow

LIMIT = 240.0  # seconds to wait for a job's progress, and for its end


@dataclass(frozen=True)
class Interrupted:
    """End of an interrupted job."""

    code: int
    printed: str
    errors: str


def interrupt(
    command: list[str], environment: dict[str, str], number: signal.Signals, is_under_way: Callable[[], bool]
) -> Interrupted:
    """Run a script, and send its process group a signal, as a terminal does, once it is under way."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + LIMIT
        while not is_under_way() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number)
        printed, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return Interrupted(process.returncode, printed, errors)


def test_an_interrupted_segmentation_keeps_its_parts_and_the_same_command_completes_it(
    head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint", width=64)
    output = f"{tmp_path.as_uri()}/labels"
    uris = write_photos(f"{tmp_path.as_uri()}/photos", 160)
    command = ["jobs/segment_bucket.py", "--input", str(tmp_path / "photos"), "--output", output]
    command += ["--checkpoint", str(tmp_path / "checkpoint"), "--rows-per-part", "8"]
    kept = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):

        def has_new_part(before: int = kept) -> bool:
            return len(storage.find(f"{output}/masks")) > before

        ended = interrupt(command, head.environment, number, has_new_part)
        assert (ended.code, ended.errors) == (
            code,
            "Interrupted. Labeled images are saved part by part; run the same command again to label the rest.\n",
        ), ended.printed
        kept = len(storage.find(f"{output}/masks"))
    done = run_job(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    completed = re.search(r"160 in the input, (\d+) already completed", done.stdout)
    assert completed
    assert 0 < int(completed[1]) < len(uris)
    assert {row["status"] for row in check_invariants(output, uris).values()} == {"ok"}


def test_a_training_that_is_stopped_at_any_time_resumes_from_its_last_checkpoint(head: RayHead, tmp_path: Path) -> None:
    root, output = f"{tmp_path.as_uri()}/set", f"{tmp_path.as_uri()}/run"
    write_training_set(root, num_train=12, num_val=1)
    command = ["jobs/train.py", *TRAIN_OPTIONS, "--checkpoint-every", "1", "--data.root", root, "--output", output]
    command += ["--optimization.epochs", "100"]  # more than are trained before the signal arrives
    printed = []
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        kept = recorded_checkpoints(output)

        def has_new_checkpoint(before: set[str] = kept) -> bool:
            return bool(recorded_checkpoints(output) - before)

        ended = interrupt(command, head.environment, number, has_new_checkpoint)
        assert (ended.code, ended.errors) == (
            code,
            "Interrupted. Run the same command again: training resumes from its last checkpoint, or starts over if it "
            "has none yet.\n",
        ), ended.printed
        printed.append(ended.printed)
    assert ["Resumed after step " in lines for lines in printed] == [False, True]


def test_a_stopped_submission_of_a_segmentation_says_what_is_saved(
    head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint", width=64)
    output = f"{tmp_path.as_uri()}/labels"
    uris = write_photos(f"{tmp_path.as_uri()}/photos", 400)  # more than are labeled before the stop arrives
    command = ["jobs/segment_bucket.py", "--input", str(tmp_path / "photos"), "--output", output]
    command += ["--checkpoint", str(tmp_path / "checkpoint"), "--rows-per-part", "8"]

    submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--no-wait", "--submission-id", "stopped"]
    subprocess.run(
        [*submit, "--working-dir", ".", "--", "python", *command],
        cwd=REPOSITORY,
        env={**os.environ, **head.environment, "RAY_ADDRESS": head.dashboard},
        check=True,
    )
    # What `ray job stop` calls, which takes seconds to start.
    client = JobSubmissionClient(head.dashboard)
    deadline = time.monotonic() + LIMIT
    while not storage.find(f"{output}/masks"):
        assert time.monotonic() < deadline, client.get_job_logs("stopped")
        time.sleep(0.1)
    client.stop_job("stopped")
    while not client.get_job_status("stopped").is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs("stopped")
        time.sleep(0.1)
    printed = client.get_job_logs("stopped")
    assert "Interrupted. Labeled images are saved part by part; run the same command again to label" in printed
    assert "Traceback" not in printed
    done = run_job(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    check_invariants(output, uris)
