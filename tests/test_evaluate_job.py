"""jobs/evaluate.py as a user runs it: figures, tables, pictures, the page, and the temperature."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import pytest

import models
from jobs.evaluate import main
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate import run
from pipeline.images.codec import decode_image
from tests.conftest import RunJob
from tests.evaluation_samples import save_model
from tests.scene_data import write_training_set

FILES = {
    "metrics.json",
    "confusion.parquet",
    "confusion.png",
    "reliability.png",
    "images.parquet",
    "evaluation.html",
}


def arguments(checkpoint: object, root: object, *options: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--data.root", str(root), *options]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "best")


@dataclass
class Evaluated:
    """Results of one run of the job, and its printed text."""

    output: Path
    fitted: Path
    printed: str

    @property
    def metrics(self) -> dict:
        return json.loads((self.output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(run_job: RunJob, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    write_training_set(str(folder / "scenes"), num_train=0, num_val=5)
    options = ["--output", str(folder / "out"), "--fit-temperature", str(folder / "fitted"), "--worst", "2"]
    protocol = ["--protocol.mirror", "--protocol.scales", "0.75,1.25"]
    done = run_job("jobs/evaluate.py", *arguments(checkpoint, folder / "scenes", *options, *protocol))
    assert done.returncode == 0, done.stdout + done.stderr
    return Evaluated(folder / "out", folder / "fitted", done.stdout)


@pytest.mark.slow
def test_everything_is_written(evaluated: Evaluated) -> None:
    assert {path.name for path in evaluated.output.iterdir()} == FILES
    for name in ("confusion.png", "reliability.png"):
        picture = decode_image((evaluated.output / name).read_bytes())
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, name


@pytest.mark.slow
def test_the_tables_and_the_figures_agree(evaluated: Evaluated) -> None:
    metrics, folder = evaluated.metrics, evaluated.output
    total, right = duckdb.sql(
        f"SELECT sum(pixels), sum(pixels) FILTER (true_id = predicted_id) FROM '{folder}/confusion.parquet'"
    ).fetchall()[0]
    assert total == metrics["labelled_pixels"] == sum(row["true_pixels"] for row in metrics["classes"])
    assert metrics["pixel_accuracy"] == pytest.approx(right / total, abs=1e-6)
    assert duckdb.sql(f"SELECT true_class FROM '{folder}/confusion.parquet' WHERE true_id = 3").fetchall()[0] == (
        "person",
    )
    ious = duckdb.sql(f"""
        WITH t AS (SELECT true_id AS id, sum(pixels) AS n FROM '{folder}/confusion.parquet' GROUP BY ALL),
        p AS (SELECT predicted_id AS id, sum(pixels) AS n FROM '{folder}/confusion.parquet' GROUP BY ALL)
        SELECT id, pixels / (t.n + p.n - pixels) FROM '{folder}/confusion.parquet' JOIN t ON id = true_id
        JOIN p USING (id) WHERE true_id = predicted_id AND t.n + p.n > 0 ORDER BY id""").fetchall()
    by_job = [(row["id"], row["iou"]) for row in metrics["classes"] if row["iou"] is not None]
    assert [k for k, _ in ious] == [k for k, _ in by_job]
    assert [iou for _, iou in by_job] == pytest.approx([iou for _, iou in ious], abs=1e-6)
    assert metrics["miou"] == pytest.approx(np.mean([iou for _, iou in ious]), abs=1e-6)
    images, labelled = duckdb.sql(
        f"SELECT count(*), sum(labelled_pixels) FROM '{folder}/images.parquet' WHERE miou BETWEEN 0 AND 1"
    ).fetchall()[0]
    assert (images, labelled) == (metrics["images"], total) == (5, total)
    assert sum(entry["pixels"] for entry in metrics["confidence_bins"]) == total
    assert sum(entry["correct"] for entry in metrics["confidence_bins"]) == right


@pytest.mark.slow
def test_the_summary_shows_the_figures_and_every_class(evaluated: Evaluated) -> None:
    metrics = evaluated.metrics
    assert re.search(rf"mIoU +{metrics['miou']:.4f}", evaluated.printed)
    assert re.search(rf"Boundary IoU +{metrics['boundary_iou']:.4f}", evaluated.printed)
    for row in metrics["classes"]:
        if row["iou"] is not None:
            assert re.search(rf"  {row['name']} +{row['iou']:.4f} ", evaluated.printed), row["name"]
    assert "evaluation.html" in evaluated.printed


@pytest.mark.slow
def test_the_temperature_is_in_a_new_checkpoint_and_makes_confidences_honest(
    evaluated: Evaluated, checkpoint: str
) -> None:
    before, metadata = models.load(checkpoint)
    after, fitted = models.load(evaluated.fitted)
    assert metadata.temperature == 1
    assert fitted.temperature == evaluated.metrics["temperature"]
    assert not 0.95 < fitted.temperature < 1.05
    assert models.model_id(after, fitted) == evaluated.metrics["model_id"] != models.model_id(before, metadata)
    fitted.temperature = 1.0
    assert models.model_id(after, fitted) == models.model_id(before, metadata)
    error, error_before = (
        evaluated.metrics[key] for key in ("expected_calibration_error", "expected_calibration_error_before")
    )
    assert error < error_before
    assert f"{error:.4f} with temperature {evaluated.metrics['temperature']:.4f}, {error_before:.4f} before" in (
        evaluated.printed
    )


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.slow
def test_the_page_needs_no_network_and_shows_the_worst_images(evaluated: Evaluated) -> None:
    text = (evaluated.output / "evaluation.html").read_text()
    page = Page(text)
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert sum(reference.startswith("data:image/jpeg") for reference in page.references) == 2
    assert sum(reference.startswith("data:image/png") for reference in page.references) == 2 * 2  # masks
    assert "url(http" not in text
    for figure in (f"{evaluated.metrics['miou']:.4f}", "skyscraper", "whole images; scales 0.75, 1.25; with mirroring"):
        assert figure in text


def test_input_that_cannot_work_is_refused_before_the_work(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.connection, "connect", lambda *_: pytest.fail("the work has begun"))
    write_training_set(str(tmp_path / "scenes"), num_train=0, num_val=1)
    scenes = tmp_path / "scenes"
    with pytest.raises(UserError, match=r"nowhere.*config\.json does not exist"):
        main(arguments(tmp_path / "nowhere", scenes))
    with pytest.raises(UserError, match="'test'"):
        main(arguments(checkpoint, scenes, "--data.val-split", "test"))
    with pytest.raises(UserError, match=r"is not calibrated, but precision int8 requires it"):
        main(arguments(checkpoint, scenes, "--precision", "int8"))
    with pytest.raises(UserError, match="precision int8 runs on CPUs only"):
        main(arguments(checkpoint, scenes, "--precision", "int8", "--gpu"))
    with pytest.raises(
        UserError, match=r"fit_temperature .*best: already contains model\.safetensors and config\.json"
    ):
        main(arguments(checkpoint, scenes, "--fit-temperature", checkpoint))
    with pytest.raises(UserError, match=r"protocol\.scales"):
        main(arguments(checkpoint, scenes, "--protocol.scales", "0"))


@pytest.mark.slow
def test_a_bucket_is_evaluated_by_sliding_crops(bucket: str, checkpoint: str, run_job: RunJob) -> None:
    write_training_set(bucket, num_train=0, num_val=2)
    for name in ("model.safetensors", "config.json"):
        storage.write_bytes(f"{bucket}/best/{name}", Path(checkpoint, name).read_bytes())
    protocol = ["--protocol.mode", "sliding", "--protocol.crop", "65", "--protocol.base-size", "80", "--no-boundary"]
    done = run_job("jobs/evaluate.py", *arguments(f"{bucket}/best", bucket, *protocol, "--output", f"{bucket}/out"))
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads(storage.read_bytes(f"{bucket}/out/metrics.json"))
    assert (metrics["images"], metrics["boundary_iou"], metrics["temperature"]) == (2, None, 1.0)
    assert metrics["dataset"] == bucket
    assert {uri.rpartition("/")[2] for uri in storage.find(f"{bucket}/out")} == FILES
