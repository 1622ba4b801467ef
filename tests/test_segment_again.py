"""jobs/segment_bucket.py on an output that has rows already, and on an input that it should give up."""

import subprocess
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.datasets.scenes import scene
from pipeline.images.codec import encode_image
from tests.conftest import RunJob, make_bucket
from tests.output_checks import check_invariants
from tests.ray_head import RayHead
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint

pytestmark = pytest.mark.slow


def segment(run_job: RunJob, photos: str, output: str, checkpoint: Path, *options: str) -> subprocess.CompletedProcess:
    places = ["--input", photos, "--output", output, "--checkpoint", str(checkpoint)]
    return run_job("jobs/segment_bucket.py", *places, *options)


def test_failures_and_changed_images_are_labelled_again_on_request_and_nothing_else(
    head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    bucket = make_bucket()
    photos, output = f"{bucket}/photos", f"{bucket}/labels"
    save_checkpoint(tmp_path)
    uris = write_photos(photos, 12)
    broken, mended = f"{photos}/broken.jpg", f"{photos}/mended.jpg"
    for uri in (broken, mended):
        storage.write_bytes(uri, b"no image yet")
    first = segment(run_job, photos, output, tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    before = check_invariants(output, [*uris, broken, mended])

    larger_HW3, _ = scene(2, 0, 96, 96)
    for uri in (mended, uris[0]):
        storage.write_bytes(uri, encode_image(larger_HW3))
    plain = segment(run_job, photos, output, tmp_path)
    assert "14 in the input, 14 already completed, 0 in this run" in plain.stdout

    again = segment(run_job, photos, output, tmp_path, "--retry-errors", "NotAnImage", "--relabel-changed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "14 in the input, 11 already completed, 3 in this run" in again.stdout
    after = check_invariants(output, [*uris, broken, mended])
    assert {uri for uri in after if after[uri]["run_id"] != before[uri]["run_id"]} == {broken, mended, uris[0]}
    assert (after[broken]["status"], after[mended]["status"]) == ("error", "ok")
    assert (after[uris[0]]["height"], after[uris[0]]["width"]) == (96, 96)
    assert after[uris[0]]["etag"] != before[uris[0]]["etag"]


def test_a_prefix_of_other_files_is_given_up_early_with_what_they_are(
    head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint")
    for number in range(1200):
        storage.write_bytes(f"{tmp_path}/notes/{number}.txt", b"a line of text")
    given_up = segment(run_job, f"{tmp_path}/notes", f"{tmp_path}/out", tmp_path / "checkpoint")
    assert given_up.returncode == 2, given_up.stdout + given_up.stderr
    assert "images failed (" in given_up.stderr
    assert "NotAnImage); check the input, filter out files that are not images with --include" in given_up.stderr
