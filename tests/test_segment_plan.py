"""jobs/segment_bucket.py --plan on a Ray cluster and a bucket: what it says, and that it leaves nothing behind."""

import json
import re
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config.jobs import SegmentConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from pipeline.plan.run import _folder_below, make_plan
from tests.conftest import RunJob, make_bucket
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint, upload

NUM_PHOTOS, NUM_BROKEN = 40, 8


class Photos:
    """A bucket of photos and a model, nothing labelled yet."""

    def __init__(self, folder: Path) -> None:
        self.bucket = make_bucket()
        self.output = f"{self.bucket}/labels"
        save_checkpoint(folder)
        self.options = ["--input", f"{self.bucket}/photos", "--output", self.output]
        self.options += ["--checkpoint", upload(folder, f"{self.bucket}/checkpoint")]
        self.uris = write_photos(f"{self.bucket}/photos", NUM_PHOTOS)
        for number in range(NUM_BROKEN):
            self.uris.append(f"{self.bucket}/photos/broken {number}.jpg")
            storage.write_bytes(self.uris[-1], b"not an image")
        storage.write_bytes(f"{self.bucket}/photos/.DS_Store", b"")

    def config(self, *options: str) -> SegmentConfig:
        return load_settings(SegmentConfig, [*self.options, "--plan", *options], prog="test")

    def objects(self) -> dict[str, object]:
        """Everything in the bucket, by its ETag."""
        return {uri: info["ETag"] for uri, info in storage.find(self.bucket).items()}


@pytest.fixture
def photos(swift: object, tmp_path: Path) -> Photos:
    return Photos(tmp_path)


@pytest.mark.slow
def test_a_plan_changes_nothing_and_foretells_what_the_run_then_does(photos: Photos, run_job: RunJob) -> None:
    before = photos.objects()
    options = ["--plan", "--plan-nodes", "4", "--price-per-hour", "2", "--plan-images", "32"]
    planned = run_job("jobs/segment_bucket.py", *photos.options, *options)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert photos.objects() == before

    printed = planned.stdout
    assert f"{NUM_PHOTOS + NUM_BROKEN} to label, 0 already completed" in printed
    assert "Hidden      1 hidden files skipped; --hidden includes them" in printed
    assert "32 images in 0:0" in printed
    assert "bottleneck" in printed
    assert "4 nodes" in printed
    expected = re.search(r"Failures +(\d+) to (\d+) images", printed)
    assert expected
    assert int(expected[1]) <= NUM_BROKEN <= int(expected[2])

    done = run_job("jobs/segment_bucket.py", *photos.options)
    assert done.returncode == 0, done.stdout + done.stderr
    (run_file,) = storage.find(f"{photos.output}/runs")
    stages = json.loads(storage.read_bytes(run_file))["stage_seconds"]
    images = {stage: work["images"] for stage, work in stages.items()}
    total = NUM_PHOTOS + NUM_BROKEN
    tried = {"predict": NUM_PHOTOS, "encode": NUM_PHOTOS, "wait": 0}
    assert images == {"download": total, "decode": total, "write": total, **tried}
    assert all(stages[stage]["seconds"] > 0 for stage in ("download", "decode", "predict", "write", "wait"))
    assert all(stages[stage]["cpu_seconds"] > 0 for stage in ("decode", "predict", "write"))
    assert stages["download"]["bytes"] == sum(storage.find(uri)[uri]["size"] for uri in photos.uris)
    tables = [storage.find(f"{photos.output}/{table}") for table in ("masks", "class_stats")]
    assert stages["write"]["bytes"] == sum(info["size"] for table in tables for info in table.values())

    again = run_job("jobs/segment_bucket.py", *photos.options, "--plan", RAY_ADDRESS="127.0.0.1:1")  # no cluster there
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"0 to label, {total} already completed" in again.stdout
    assert "nothing to do" in again.stdout


@pytest.mark.slow
def test_a_sample_that_fails_altogether_makes_a_plan_too(photos: Photos, connected: None) -> None:
    planned = make_plan(photos.config("--include", "*broken*", "--plan-images", "8"))
    assert planned.plan
    assert planned.plan.tried.outcomes == {"NotAnImage": NUM_BROKEN}
    assert planned.plan.failed.tried == NUM_BROKEN
    assert planned.plan.output_bytes == planned.plan.tried.output_bytes
    assert planned.forecasts[0].seconds < planned.plan.tried.seconds + 10
    assert not storage.find(photos.output)


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_an_output_of_an_unknown_model_is_refused_before_anything_is_tried(photos: Photos) -> None:
    storage.write_bytes(f"{photos.output}/masks/foreign.parquet", b"")
    before = photos.objects()
    with pytest.raises(UserError, match=r"has masks but no classes\.parquet"):
        make_plan(photos.config())
    assert photos.objects() == before


@pytest.mark.parametrize("there", ["", "labels", "deep/labels"], ids=["nothing", "the output", "all above it"])
def test_the_folder_of_the_sample_goes_with_all_that_came_with_it(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / ("labels" if there == "labels" else "deep/labels")

    def fail() -> None:
        with _folder_below(str(output)) as folder:
            storage.write_bytes(f"{folder}/masks/part.parquet", b"rows")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_others_write_meanwhile_stays(tmp_path: Path) -> None:
    output = tmp_path / "labels"
    with _folder_below(str(output)) as folder:
        storage.write_bytes(f"{folder}/masks/part.parquet", b"rows")
        storage.write_bytes(str(output / "classes.parquet"), b"of a run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["classes.parquet"]
