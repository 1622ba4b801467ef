"""Jobs on Parquet files of somebody else, whose values would run a command as the job's user: none does."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import RunJob
from tests.pipeline.pickled_columns import add_pickles, pickled, pickled_struct
from tests.small_output import write_small_output
from tests.test_segment_job import save_checkpoint

pytestmark = pytest.mark.slow


def segment(folder: Path, made: Path) -> list[str]:
    save_checkpoint(folder / "checkpoint")
    label = pa.StructArray.from_arrays([pickled(made)], ["x"])
    pq.write_table(pa.table({"image_uri": ["a.jpg"], "label": label}), folder / "rows.parquet")
    places = ["--manifest", f"{folder}/rows.parquet", "--output", f"{folder}/labels"]
    return ["jobs/segment_bucket.py", *places, "--carry", "label", "--checkpoint", f"{folder}/checkpoint"]


def segment_inventory(folder: Path, made: Path) -> list[str]:
    save_checkpoint(folder / "checkpoint")
    data = folder / "photos" / "daily" / "data"
    (folder / "photos" / "daily" / "2024-05-01").mkdir(parents=True)
    data.mkdir()
    pq.write_table(pa.table({"key": ["a.jpg"], "e_tag": pickled(made)}), data / "0.parquet")
    content = (data / "0.parquet").read_bytes()
    files = [{"key": "photos/daily/data/0.parquet", "MD5checksum": hashlib.md5(content).hexdigest()}]
    about = {"sourceBucket": "photos", "fileFormat": "Parquet", "fileSchema": "message s3.inventory {}", "files": files}
    manifest = folder / "photos" / "daily" / "2024-05-01" / "manifest.json"
    manifest.write_text(json.dumps(about))
    places = ["--inventory", str(manifest), "--allow", "s3://photos/", "--output", f"{folder}/labels"]
    return ["jobs/segment_bucket.py", *places, "--checkpoint", f"{folder}/checkpoint"]


def validate_dataset(folder: Path, made: Path) -> list[str]:
    pq.write_table(pa.table({"image": pickled_struct(made), "label": [b""]}), folder / "train.parquet")
    classes = json.dumps([{"name": "sky", "color": [0, 0, 255]}, {"name": "road", "color": [90, 90, 90]}])
    options = ["--data.root", str(folder), "--data.format", "parquet", "--data.classes", classes]
    return ["jobs/validate_dataset.py", *options, "--output", f"{folder}/check"]


def output_with(pattern: str, folder: Path, made: Path) -> str:
    write_small_output(folder / "labels")
    (file,) = (folder / "labels").glob(pattern)
    add_pickles(file, made)
    return str(folder / "labels")


def export_masks(folder: Path, made: Path) -> list[str]:
    labels = output_with("masks/*.parquet", folder, made)
    return ["jobs/export_masks.py", labels, "--to", f"{folder}/exported", "--format", "png"]


def export_classes(folder: Path, made: Path) -> list[str]:
    labels = output_with("classes.parquet", folder, made)
    return ["jobs/export_masks.py", labels, "--to", f"{folder}/exported", "--format", "png"]


def report(folder: Path, made: Path) -> list[str]:
    return ["jobs/report.py", output_with("classes.parquet", folder, made)]


def verify(folder: Path, made: Path) -> list[str]:
    return ["jobs/verify.py", output_with("class_stats/*.parquet", folder, made), "--deep"]


@pytest.mark.parametrize(
    "job", [segment, segment_inventory, validate_dataset, export_masks, export_classes, report, verify]
)
def test_a_job_refuses_the_file_and_runs_nothing(
    job: Callable[[Path, Path], list[str]], run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    done = run_job(*job(tmp_path / "files", tmp_path / "made"))
    assert done.returncode in (1, 2), done.stdout
    assert "has the extension type ray.data.arrow_pickled_object" in done.stdout + done.stderr
    assert ".parquet" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


def test_a_query_takes_the_value_for_the_bytes_that_it_is(run_job: RunJob, tmp_path: Path) -> None:
    output = output_with("masks/*.parquet", tmp_path, tmp_path / "made")
    done = run_job("jobs/query.py", output, "SELECT count(planted) AS n FROM masks", "--format", "csv")
    assert done.stdout == "n\n3\n", done.stderr
    assert not (tmp_path / "made").exists()
