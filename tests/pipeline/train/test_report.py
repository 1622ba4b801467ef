"""The report of a training run, built from what the run has written down."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config.jobs import TrainConfig
from pipeline.html.pictures import GRAYS, colored, views
from pipeline.train.history import History
from pipeline.train.provenance import describe_run
from pipeline.train.report import POINTS, build_report, curve, smooth
from pipeline.train.tracking import Tracker
from tests.pipeline.run_records import prediction, run_config, step_record, validation_record

ATTACK = "<script>alert(1)</script>"


def resolved(config: TrainConfig, num_train: int = 40) -> dict[str, Any]:
    """Return the content of a run's config.yaml."""
    return {**config.model_dump(mode="json"), "num_images": {"train": num_train, "val": 8}}


def report(output: Path) -> str:
    return Path(build_report(str(output)).removeprefix("file://")).read_text()


def write_run(output: Path, history: History, config: dict[str, Any]) -> None:
    (output / "history.jsonl").write_bytes(history.content())
    (output / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_finished_run_shows_everything(tmp_path: Path) -> None:
    output = str(tmp_path / "my run")
    config = run_config(output, tensorboard=False)
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").write_text(yaml.safe_dump(resolved(config)))
    describe_run(output, ["jobs/train.py", "--config", "a.yaml"], "sha256:0123")
    with Tracker(output, config) as tracker:
        tracker.add([step_record(step) for step in range(10, 201, 10)])
        tracker.add([validation_record(100, 0.4), validation_record(200, 0.5123, epoch=2)])
    page = (tmp_path / "my run" / "report.html").read_text()
    for text in ("my run", "0.5123", "epoch 2, step 200", "skyscraper", "s3://b/val/0000.jpg", "head_rate_factor"):
        assert text in page
    for text in ("jobs/train.py --config a.yaml", "sha256:0123", "Training loss", "Learning rate", "mIoU 0.000"):
        assert text in page
    assert page.count("data:image/jpeg") == 6
    assert page.count("<svg") == 5
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # needs no network


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    config = run_config(str(output), tensorboard=False)
    record = validation_record(100, 0.4)
    record["panel"][0]["image_uri"] = ATTACK
    with Tracker(str(output), config) as tracker:
        tracker.add([record | {"metrics": record["metrics"] | {"iou": {ATTACK: 0.5}}}])
    values = resolved(config)
    values["data"] |= {"root": ATTACK, "classes": [{"name": ATTACK, "color": [1, 2, 3]}]}
    (output / "config.yaml").write_text(yaml.safe_dump(values))
    describe_run(str(output), [ATTACK], ATTACK)
    page = report(output)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_a_run_that_has_written_nothing_has_a_report(tmp_path: Path) -> None:
    assert "Nothing has been validated yet" in report(tmp_path)


def test_a_run_that_has_not_validated_yet_shows_its_curves(tmp_path: Path) -> None:
    history = History()
    for step in range(10, 101, 10):
        history.add(step_record(step, gradient_norm=None, auxiliary_loss=None))
    write_run(tmp_path, history, resolved(run_config("x")))
    page = report(tmp_path)
    assert page.count("<svg") == 3
    assert "Nothing has been validated yet" in page
    assert "boat" in page


def test_the_verdict_of_a_finished_run_names_problems_and_remedies(tmp_path: Path) -> None:
    config = resolved(run_config("x"))
    config["optimization"]["epochs"] = 2
    history = History()
    for epoch, miou in ((1, 0.1), (2, 0.3)):
        record = validation_record(epoch * 100, miou, epoch)
        record["metrics"]["iou"] = {"sky": 0.9, ATTACK: 0.0}
        history.add(record)
    write_run(tmp_path, history, config)
    page = report(tmp_path)
    assert "mIoU was still rising: 0.1000 in epoch 1, 0.3000 in epoch 2" in page
    assert "--epochs 4" in page
    assert "1 of 2 classes have an IoU below 0.01: &lt;script&gt;" in page
    config["optimization"]["epochs"] = 3  # training was interrupted
    write_run(tmp_path, history, config)
    assert "Verdict" not in report(tmp_path)


def test_the_configuration_is_folded(tmp_path: Path) -> None:
    write_run(tmp_path, History(), resolved(run_config("x")))
    before, _, after = report(tmp_path).partition("<details><summary>All settings</summary>")
    assert "head_rate_factor" not in before
    assert "head_rate_factor" in after.partition("</details>")[0]


def test_charts_share_their_epochs_and_their_text_is_legible_on_a_phone(tmp_path: Path) -> None:
    history = History()
    history.add(step_record(10, epoch=0.5))
    history.add(validation_record(40, 0.3, epoch=2))
    write_run(tmp_path, history, resolved(run_config("x")))
    charts = re.findall(r"<svg.*?</svg>", report(tmp_path), re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        assert re.findall(r">([\d.]+)</text>", chart)[:5] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
        width = float(re.findall(r'viewBox="0 0 ([\d.]+)', chart)[0])
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart)]
        assert min(sizes) * 350 / width >= 11  # a page of 390 pixels has 20 on either side


def compared_run(folder: Path, *validations: dict[str, Any]) -> str:
    """Write the history of another run and return its URI."""
    history = History()
    for record in (step_record(50), step_record(100), *validations):
        history.add(record)
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_bytes(history.content())
    return folder.as_uri()


def test_curves_of_compared_runs_are_gray_and_named_in_the_legend(tmp_path: Path) -> None:
    own = tmp_path / "own"
    history = History()
    history.add(step_record(100))
    history.add(validation_record(100, 0.5, epoch=1))
    long_name = "a-long-name-of-a-run-with-every-setting-lr0.001"
    others = [
        compared_run(tmp_path / "first" / "run", validation_record(300, 0.4, epoch=3)),
        compared_run(tmp_path / "second" / "run"),  # not validated yet
        compared_run(tmp_path / "second" / long_name, validation_record(100, 0.3)),
        (tmp_path / "deleted").as_uri(),
    ]
    own.mkdir()
    write_run(own, history, resolved(run_config("x")))
    alone = charts_of(own)
    write_run(own, history, resolved(run_config("x", compare=(*others, others[0]))))
    loss, validation, rate, *_ = charts_of(own)
    for name in ("first/run: main", "second/run: main", "-lr0.001: main"):
        assert name in loss
        assert name not in alone[0]
    assert long_name not in loss
    assert "first/run: mIoU" in validation
    assert "second/run: mIoU" not in validation
    assert "deleted" not in loss + validation
    assert num_gray(loss) == 3
    assert num_gray(validation) == 2
    assert num_gray(rate) == num_gray(alone[0]) == 0
    assert re.findall(r">([\d.]+)</text>", rate)[:4] == ["0", "1", "2", "3"], "all charts end with the longest run"


def charts_of(output: Path) -> list[str]:
    return re.findall(r"<svg.*?</svg>", report(output), re.DOTALL)


def num_gray(chart: str) -> int:
    """Return the number of gray curves. Other gray lines, of the frame and the grid, have no label in the legend."""
    legend = chart.partition('<g id="legend_1">')[2]
    return len(re.findall(r'<path d="[^"]*" style="[^"]*stroke: var\(--soft', legend))


def test_150_classes_and_100_000_steps_stay_small(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(150)]
    history = History()
    record = step_record(1)
    for step in range(5, 100_001, 5):
        history.add(record | {"step": step, "epoch": step / 1000, "loss": 1 + step % 7})
    for epoch in range(1, 101):
        history.add(validation_record(epoch * 1000, epoch / 200, epoch, names, pictures=0))
    config = resolved(run_config("x"))
    config["data"]["classes"] = [{"name": name, "color": [1, 2, 3]} for name in names]
    write_run(tmp_path, history, config)
    page = report(tmp_path)
    assert len(page) < 500_000
    assert all(f"</span>{name}<" in page for name in names)


def test_pictures_of_the_best_validation_survive_worse_ones_and_a_resumed_run(tmp_path: Path) -> None:
    config = run_config(str(tmp_path), tensorboard=False)
    with Tracker(str(tmp_path), config) as tracker:
        tracker.add([validation_record(100, 0.6, epoch=1)])
    first = re.findall('data:image[^"]*', report(tmp_path))
    with Tracker(str(tmp_path), config) as tracker:
        other = validation_record(200, 0.5, epoch=2)
        other["panel"] = [prediction(7, 96)]
        tracker.add([{"kind": "resume", "step": 100}, other])
    with Tracker(str(tmp_path), config) as tracker:  # nothing is left to train
        tracker.add([{"kind": "resume", "step": 200}])
    page = report(tmp_path)
    assert re.findall('data:image[^"]*', page) == first
    assert "labeled after epoch 1" in page


def test_a_curve_of_many_points_keeps_its_mean() -> None:
    records = [{"epoch": step / 10, "loss": float(step % 3)} for step in range(9_999)]
    x, y = curve([*records, {"epoch": 2000.0, "loss": None}], "loss")
    assert len(x) == len(y) == POINTS
    assert y.mean() == pytest.approx(1.0, abs=1e-2)
    assert (np.diff(x) > 0).all()


def test_a_smoothed_line_keeps_a_straight_one() -> None:
    line = np.linspace(3, 1, 200)
    np.testing.assert_allclose(smooth(line), line)
    noisy = np.random.default_rng(0).normal(size=400)
    assert smooth(noisy).std() < noisy.std() / 2


def test_masks_have_their_classes_colours_and_stripes_where_there_is_none() -> None:
    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    ids_HW = np.array([[0, 1], [255, -1]])
    colors_HW3 = colored(ids_HW, palette)
    assert colors_HW3[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert all(color in GRAYS.tolist() for color in colors_HW3[1].tolist())
    assert len({tuple(color) for color in colored(np.full((32, 32), 9), palette).reshape(-1, 3)}) == 2


def test_pictures_are_small_and_of_one_size_whatever_the_mask_has() -> None:
    entry = {
        "image": np.zeros((300, 1000, 3), np.uint8),
        "truth": np.repeat([[0, 1]], 600, axis=0).repeat(1000, axis=1),  # 600 x 2000
        "predicted": np.zeros((300, 1000), np.int64),
    }
    pictures = views(entry, np.array([[255, 0, 0], [0, 0, 255]], np.uint8), long_side=200)
    assert {picture.shape for picture in pictures.values()} == {(59, 200, 3)}
    assert pictures["truth"][30, 99].tolist() == [255, 0, 0]
    assert pictures["truth"][30, 100].tolist() == [0, 0, 255]
