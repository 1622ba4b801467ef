"""jobs/segment_bucket.py on a Ray cluster and a bucket, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models
from pipeline import storage
from pipeline.datasets.scenes import scene
from pipeline.images.codec import decode_image, decode_label, shrink
from tests.conftest import REPOSITORY, RunJob, make_bucket
from tests.output_checks import check_invariants, read
from tests.pipeline.samples import encoded
from tests.ray_head import RayHead
from tests.scene_data import PALETTE, write_photos

pytestmark = pytest.mark.slow

BROKEN: dict[str, bytes | None] = {"empty.jpg": b"", "text.jpg": b"not an image", "half.jpg": None}


def save_checkpoint(folder: Path, seed: int = 0, width: int = 16) -> models.PSPNet:
    """Save an untrained network; a wider one takes longer for an image, where a run has to last."""
    torch.manual_seed(seed)
    model = models.PSPNet(models.Architecture("resnet18", len(PALETTE), auxiliary=False, width=width)).eval()
    names = [f"class {k}" for k in range(len(PALETTE))]
    models.save(folder, model, models.Metadata(names, PALETTE.tolist(), preprocessing={"long_side": None}))
    return model


def upload(folder: Path, uri: str) -> str:
    for path in folder.iterdir():
        storage.write_bytes(f"{uri}/{path.name}", path.read_bytes())
    return uri


class Labelled:
    """A bucket that one run has labelled."""

    def __init__(self, run_job: RunJob, folder: Path) -> None:
        bucket = make_bucket()
        self.photos, self.output = f"{bucket}/photos", f"{bucket}/labels"
        self.model = save_checkpoint(folder)
        self.checkpoint = upload(folder, f"{bucket}/checkpoint")
        self.uris = write_photos(self.photos, 25)
        half = storage.read_bytes(self.uris[0])[:1500]
        for name, content in BROKEN.items():
            self.uris.append(f"{self.photos}/{name}")
            storage.write_bytes(self.uris[-1], half if content is None else content)
        self.run_job = run_job
        self.first = self.run()

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["--input", self.photos, "--output", self.output, "--checkpoint", self.checkpoint]
        return self.run_job("jobs/segment_bucket.py", *arguments, *options)


@pytest.fixture(scope="module")
def labelled(head: RayHead, run_job: RunJob, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    labelled = Labelled(run_job, tmp_path_factory.mktemp("checkpoint"))
    assert labelled.first.returncode == 0, labelled.first.stdout + labelled.first.stderr
    return labelled


def test_every_image_has_one_row_and_bad_ones_say_why(labelled: Labelled) -> None:
    rows = check_invariants(labelled.output, labelled.uris)
    kinds = {Path(uri).name: row["error_type"] for uri, row in rows.items() if row["status"] == "error"}
    assert kinds == {"empty.jpg": "Empty", "text.jpg": "NotAnImage", "half.jpg": "Corrupt"}
    assert {(row["height"], row["width"]) for row in rows.values() if row["status"] == "ok"} == {
        (65, 97),
        (97, 65),
        (65, 65),
        (80, 64),
    }


def test_masks_are_what_the_predictor_says(labelled: Labelled) -> None:
    rows = check_invariants(labelled.output, labelled.uris)
    # The job computes in bfloat16 where the processor does, and so does this.
    predictor = models.Predictor(
        labelled.model, models.Metadata([], []).mean, models.Metadata([], []).std, precision="auto"
    )
    for uri in labelled.uris[:4]:
        image_HW3 = decode_image(storage.read_bytes(uri))
        expected_HW = predictor.predict(image_HW3[None]).class_ids_NHW[0]
        found_HW = decode_label(rows[uri]["mask"]["bytes"])
        assert (found_HW == expected_HW).mean() > 0.99


def test_prints_progress_failures_and_where_the_output_lies(labelled: Labelled) -> None:
    printed = labelled.first.stdout
    assert "28 images in" in printed
    assert "28 of 28 images" in printed
    assert "images/s" in printed
    assert "3 failed (1 Corrupt, 1 Empty, 1 NotAnImage)" in printed
    assert f"{labelled.photos}/text.jpg: NotAnImage at decode" in printed
    assert labelled.output in printed


def test_the_run_file_tells_what_ran(labelled: Labelled) -> None:
    runs = [json.loads(storage.read_bytes(uri)) for uri in storage.find(f"{labelled.output}/runs")]
    first = min(runs, key=lambda run: run["run_id"])
    assert first["images"] == 28
    assert first["outcomes"] == {"ok": 25, "Empty": 1, "NotAnImage": 1, "Corrupt": 1}
    assert first["configuration"]["checkpoint"] == labelled.checkpoint
    assert "testing" not in json.dumps(first)  # the secret key


def test_a_second_run_predicts_new_images_alone(labelled: Labelled) -> None:
    before = {row["image_uri"]: row["run_id"] for row in read(labelled.output, "masks").to_pylist()}
    labelled.uris += write_photos(labelled.photos, 3, first=100)
    again = labelled.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "31 images in" in again.stdout
    assert "28 already completed" in again.stdout
    rows = check_invariants(labelled.output, labelled.uris)
    new = {uri for uri, row in rows.items() if row["run_id"] not in before.values()}
    assert new == set(labelled.uris[-3:])


def test_nothing_new_starts_no_cluster(labelled: Labelled) -> None:
    again = labelled.run_job(
        *("jobs/segment_bucket.py", "--input", f"{labelled.photos}/photo 000*.jpg", "--output", labelled.output),
        *("--checkpoint", labelled.checkpoint),
        RAY_ADDRESS="127.0.0.1:1",  # where no cluster is
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "10 in the input, 10 already completed, 0 in this run" in again.stdout


def test_an_output_of_another_model_is_refused(labelled: Labelled, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, seed=1)
    other = labelled.run("--checkpoint", str(tmp_path))
    assert other.returncode == 2
    assert f"output {labelled.output} belongs to another model" in other.stderr
    smaller = labelled.run("--long-side", "64")
    assert smaller.returncode == 2
    assert "belongs to another model" in smaller.stderr


def test_images_of_several_sizes_share_a_batch_and_have_masks_of_their_own_size(
    head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    bucket = make_bucket()
    model = save_checkpoint(tmp_path)
    sizes = [(90, 120), (180, 240), (91, 121), (120, 90)]
    photos = {f"{bucket}/photos/{n}.png": scene(5, n, *sizes[n % 4])[0] for n in range(12)}
    for uri, photo_HW3 in photos.items():
        storage.write_bytes(uri, encoded(photo_HW3, "PNG"))
    places = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", str(tmp_path)]
    done = run_job("jobs/segment_bucket.py", *places, "--long-side", "64")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = check_invariants(f"{bucket}/labels", list(photos))
    metadata = models.Metadata([], [])
    predictor = models.Predictor(model, metadata.mean, metadata.std, precision="auto")
    for uri, photo_HW3 in photos.items():
        small_HW3 = shrink(photo_HW3, 64)
        assert sorted(small_HW3.shape[:2]) == [48, 64]
        expected_HW = predictor.predict(small_HW3[None], photo_HW3.shape[:2]).class_ids_NHW[0]
        found_HW = decode_label(rows[uri]["mask"]["bytes"])
        assert found_HW.shape == photo_HW3.shape[:2]
        assert (found_HW == expected_HW).mean() > 0.99


def test_killed_twice_it_ends_with_one_row_for_each_image(head: RayHead, run_job: RunJob, tmp_path: Path) -> None:
    bucket = make_bucket()
    save_checkpoint(tmp_path)
    uris = write_photos(f"{bucket}/photos", 120)
    options = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", str(tmp_path)]
    options += ["--rows-per-part", "8"]
    finished: set[str] = set()
    for _ in range(2):
        driver = subprocess.Popen(
            [sys.executable, "jobs/segment_bucket.py", *options],
            cwd=REPOSITORY,
            env={**os.environ, **head.environment},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while len(storage.find(f"{bucket}/labels/masks")) <= len(finished) and driver.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        finished = set(storage.find(f"{bucket}/labels/masks"))
    done = run_job("jobs/segment_bucket.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = check_invariants(f"{bucket}/labels", uris)
    assert all(row["status"] == "ok" for row in rows.values())
    assert len({row["run_id"] for row in rows.values()}) >= 2, "nothing of the killed runs was kept"


def test_images_that_fail_and_sort_first_do_not_end_a_run_of_as_many_good_ones(run_job: RunJob, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint")
    good = write_photos(f"{tmp_path.as_uri()}/photos", 104)
    bad = [f"{tmp_path.as_uri()}/photos/broken {number:03}.jpg" for number in range(103)]
    for uri in bad:
        storage.write_bytes(uri, b"not an image")
    storage.write_bytes(f"{tmp_path.as_uri()}/photos/._broken.jpg", b"resource fork")
    places = ["--input", str(tmp_path / "photos"), "--output", str(tmp_path / "labels")]
    done = run_job("jobs/segment_bucket.py", *places, "--checkpoint", str(tmp_path / "checkpoint"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hidden      1 hidden files skipped; --hidden includes them" in done.stdout
    rows = check_invariants(f"{tmp_path.as_uri()}/labels", good + bad)
    assert sum(row["status"] == "ok" for row in rows.values()) == len(good)
    verified = run_job("jobs/verify.py", str(tmp_path / "labels"), *places[:2])
    assert verified.returncode == 0, verified.stdout + verified.stderr
