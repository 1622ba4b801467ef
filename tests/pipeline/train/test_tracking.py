"""TensorBoard's event files and MLflow's run, read back as their own tools read them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from pipeline import storage
from pipeline.cluster.packages import ROOT, code
from pipeline.errors import UserError
from pipeline.images.codec import decode_image
from pipeline.train import tensorboard_files, tracking
from pipeline.train.history import read_history
from pipeline.train.mlflow_run import MlflowRun, flattened, metric_name
from pipeline.train.provenance import describe_run, read_starts
from pipeline.train.tracking import Tracker
from tests.pipeline.run_records import run_config, step_record, validation_record


def tensors(folder: Path, tag: str) -> list[tuple[int, Any]]:
    """(step, value) of a tag, by the classes that TensorBoard itself reads with."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0}, tensor_size_guidance={"images": 0})
    accumulator.Reload()
    return [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(step, float(value)) for step, value in tensors(folder, tag)]


def track(output: str, *records: dict[str, Any], **settings: Any) -> None:
    with Tracker(output, run_config(output, **settings)) as tracker:
        tracker.add(list(records))


# TensorBoard


def test_tensorboard_finds_both_runs_with_all_their_numbers_and_pictures(tmp_path: Path) -> None:
    step, validation = step_record(10), validation_record(10, 0.5)
    track(str(tmp_path), {"kind": "resume", "step": 0}, step, step_record(20, gradient_norm=None), validation)
    found = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Runs()) == {"train", "validation"}
    train, val = tmp_path / "tensorboard" / "train", tmp_path / "tensorboard" / "validation"
    assert scalars(train, "loss/main")[0] == (10, pytest.approx(step["loss"]))
    assert [point for point, _ in scalars(train, "loss/auxiliary")] == [10, 20]
    assert [point for point, _ in scalars(train, "optimization/gradient_norm")] == [10]
    for tag in ("optimization/learning_rate", "speed/images_per_second", "speed/epoch"):
        assert len(scalars(train, tag)) == 2
    assert scalars(val, "metrics/miou") == [(10, 0.5)]
    assert scalars(val, "iou/boat") == [(10, pytest.approx(validation["metrics"]["iou"]["boat"]))]
    ((_, (width, height, jpeg)),) = tensors(val, "panel/00 0000.jpg")
    assert (int(height), int(width)) == (64, 3 * 96 + 2 * 4)
    shown_HW3 = decode_image(jpeg)
    assert shown_HW3.shape == (64, 296, 3)
    np.testing.assert_allclose(shown_HW3[:, :96].mean(), validation["panel"][0]["image"].mean(), atol=3)


def test_events_after_the_step_that_a_run_resumed_from_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    track(str(tmp_path), *(step_record(step, loss=1.0) for step in (10, 20, 30)), validation_record(30, 0.9))
    assert [point for point, _ in scalars(folder / "train", "loss/main")] == [10, 20, 30]
    track(str(tmp_path), {"kind": "resume", "step": 20}, step_record(30, loss=2.0), validation_record(30, 0.5))
    assert scalars(folder / "train", "loss/main") == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert scalars(folder / "validation", "metrics/miou") == [(30, 0.5)]
    history = read_history(str(tmp_path))
    assert [record["loss"] for record in history.steps] == [1.0, 1.0, 2.0]


def test_workers_that_start_again_under_the_same_driver_void_what_they_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files of one second are read in the order of this number's digits: 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    first = [step_record(step, loss=1.0) for step in (10, 20, 30)]
    track(str(tmp_path), *first, {"kind": "resume", "step": 10}, step_record(20, loss=2.0))
    assert scalars(tmp_path / "tensorboard" / "train", "loss/main") == [(10, 1.0), (20, 2.0)]


def test_a_growing_run_can_be_read_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "EVERY", 0.2)
    with Tracker(str(tmp_path), run_config(str(tmp_path))) as tracker:
        for step in (10, 20):
            tracker.add([step_record(step)])
            deadline = time.monotonic() + 20
            while [record["step"] for record in read_history(str(tmp_path)).steps][-1:] != [step]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert not (tmp_path / "report.html").exists()
        while len(scalars(tmp_path / "tensorboard" / "train", "loss/main")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_validation_is_written_down_at_once(tmp_path: Path) -> None:
    tracker = Tracker(str(tmp_path), run_config(str(tmp_path), tensorboard=False))
    tracker.add([step_record(10), validation_record(10, 0.5)])
    deadline = time.monotonic() + tracking.EVERY / 2
    while not read_history(str(tmp_path)).validations:  # what a killed driver leaves
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "pictures" / "best.json").exists()
    tracker.close()


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    track(str(tmp_path), step_record(10), validation_record(10, 0.5), tensorboard=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "pictures", "report.html"]


@pytest.mark.slow
def test_a_bucket_gets_the_same_events_and_no_file_without_end(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "EVERY", 0.2)
    monkeypatch.setattr(tensorboard_files, "LARGEST", 20_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = f"{bucket}/run"
    with Tracker(output, run_config(output)) as tracker:
        tracker.add([{"kind": "resume", "step": 0}])
        for step in range(10, 100, 10):
            tracker.add([step_record(step), validation_record(step, 0.5, pictures=2, size=129)])
            time.sleep(0.3)
    assert not list(tmp_path.iterdir())  # nothing stays behind on this machine
    files = [uri for uri in storage.find(f"{output}/tensorboard") if "/validation/" in uri]
    assert len(files) > 1
    for uri in storage.find(f"{output}/tensorboard"):
        copy = tmp_path / uri.removeprefix(f"{output}/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(storage.read_bytes(uri))
    for run, tag in (("train", "loss/main"), ("validation", "iou/sky")):
        assert [step for step, _ in scalars(tmp_path / "tensorboard" / run, tag)] == list(range(10, 100, 10))
    assert [record["step"] for record in read_history(output).steps] == list(range(10, 100, 10))
    assert b"</html>" in storage.read_bytes(f"{output}/report.html")


# Failures


def test_storage_that_fails_for_a_while_is_announced_once_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "EVERY", 0.05)
    output = tmp_path / "run"
    output.mkdir()
    with Tracker(str(output), run_config(str(output), tensorboard=False)) as tracker:
        output.rmdir()
        output.write_text("in the way")
        tracker.add([step_record(10)])
        time.sleep(0.5)
        output.unlink()
        tracker.add([step_record(20)])
    assert capsys.readouterr().out.count("cannot be written at the moment") == 1
    assert [record["step"] for record in read_history(str(output)).steps] == [10, 20]


def test_storage_that_fails_at_the_end_is_an_error(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.write_text("in the way")
    tracker = Tracker(str(output), run_config(str(output), tensorboard=False))
    tracker.add([step_record(10)])
    with pytest.raises(UserError, match="run"):
        tracker.close()


def test_the_error_that_ended_a_training_is_not_hidden_by_storage_that_fails_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    output.write_text("in the way")
    config = run_config(str(output), tensorboard=False)

    def train() -> None:
        with Tracker(str(output), config) as tracker:
            tracker.add([step_record(10)])
            raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        train()
    printed = capsys.readouterr()
    assert "The run's history could not be written" in printed.out + printed.err


def test_a_record_that_cannot_be_used_is_an_error_at_the_end(tmp_path: Path) -> None:
    tracker = Tracker(str(tmp_path), run_config(str(tmp_path)))
    tracker.add([{"kind": "step", "step": 10}])
    with pytest.raises(KeyError):
        tracker.close()


# MLflow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store in a folder, and no trace of it in this process's environment."""
    from pipeline.train.mlflow_run import PATIENCE

    for variable in PATIENCE:
        monkeypatch.setenv(variable, PATIENCE[variable])
    return f"file://{tmp_path}/mlruns"


def client(store: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=store)


def only_run(store: str) -> Any:
    (run,) = client(store).search_runs([client(store).get_experiment_by_name("sceneparse").experiment_id])
    return run


def test_mlflow_has_parameters_metrics_and_the_report(store: str, tmp_path: Path) -> None:
    output = str(tmp_path / "runs" / "small")
    storage.write_bytes(f"{output}/config.yaml", b"")
    record = validation_record(20, 0.5)
    record["metrics"]["iou"] |= {"<a/b> & c": 0.25, "never seen": None}
    track(output, step_record(10), step_record(20), record, mlflow=store)
    run = only_run(store)
    assert run.info.run_name == "small"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.backbone"] == "resnet50"
    assert run.data.params["optimization.head_rate_factor"] == "10.0"
    assert run.data.params["augment.crop"] == "[473, 473]"
    assert run.data.metrics["metrics/miou"] == 0.5
    assert run.data.metrics["iou/_a_b_ _ c"] == 0.25
    assert "iou/never seen" not in run.data.metrics
    assert [point.step for point in client(store).get_metric_history(run.info.run_id, "loss/main")] == [10, 20]
    files = {file.path for file in client(store).list_artifacts(run.info.run_id)}
    assert files == {"report.html", "config.yaml"}


def test_a_resumed_training_goes_on_with_its_mlflow_run(store: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    stopping = Tracker(output, run_config(output, mlflow=store))
    stopping.add([step_record(10)])
    stopping.__exit__(RuntimeError, RuntimeError(), None)
    assert only_run(store).info.status == "FAILED"
    track(output, step_record(20), mlflow=store)
    assert only_run(store).info.status == "FINISHED"
    run_id = only_run(store).info.run_id
    assert [point.step for point in client(store).get_metric_history(run_id, "loss/main")] == [10, 20]


def test_a_run_that_the_server_no_longer_has_is_begun_anew(store: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    track(output, step_record(10), mlflow=store)
    before = only_run(store).info.run_id
    client(store).delete_run(before)
    track(output, step_record(20), mlflow=store)
    assert only_run(store).info.run_id != before


def test_mlflow_that_fails_later_is_announced_once_and_training_goes_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "EVERY", 0.05)
    output = str(tmp_path / "run")
    with Tracker(output, run_config(output, tensorboard=False, mlflow=store)) as tracker:
        shutil.rmtree(tmp_path / "mlruns")
        for step in (10, 20, 30):
            tracker.add([step_record(step)])
            time.sleep(0.2)
    printed = capsys.readouterr().out
    assert printed.count("does not accept metrics") == 1
    assert "is missing 18 metrics" in printed
    assert [record["step"] for record in read_history(output).steps] == [10, 20, 30]
    assert (tmp_path / "run" / "report.html").exists()


def test_mlflow_that_comes_back_gets_what_it_missed(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = MlflowRun(store, "a", {})
    run.metrics(1, {"loss/main": 1.0})
    (tmp_path / "mlruns").rename(tmp_path / "away")
    assert not run.flush()
    assert not run.flush()
    run.metrics(2, {"loss/main": 2.0})
    (tmp_path / "away").rename(tmp_path / "mlruns")
    assert run.flush()
    assert [point.value for point in client(store).get_metric_history(run.run_id, "loss/main")] == [1.0, 2.0]
    told = re.findall("does not accept metrics|accepts metrics again", capsys.readouterr().out)
    assert told == ["does not accept metrics", "accepts metrics again"]


@pytest.mark.slow
def test_a_server_that_refuses_or_never_answers_is_an_error_within_seconds(store: str, tmp_path: Path) -> None:
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        refused = run_config(str(tmp_path), mlflow=f"http://127.0.0.1:{port}")
        with pytest.raises(
            UserError, match=rf"tracking\.mlflow http://127\.0\.0\.1:{port}: cannot create or resume a run"
        ):
            Tracker(str(tmp_path), refused)
        silent.listen()
        started = time.monotonic()
        with pytest.raises(UserError, match="cannot create or resume a run"):
            Tracker(str(tmp_path), refused)
        assert time.monotonic() - started < 30


def test_a_store_that_this_mlflow_does_not_know_is_an_error_that_says_so(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.mlflow foo://x: cannot create or resume a run: .*foo"):
        Tracker(str(tmp_path), run_config(str(tmp_path), mlflow="foo://x"))


def test_without_mlflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'sceneparse\[mlflow\]'"):
        Tracker(str(tmp_path), run_config(str(tmp_path), mlflow="http://127.0.0.1:1"))


def test_a_run_to_compare_with_that_has_no_history_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    other = (tmp_path / "nowhere").as_uri()
    with pytest.raises(UserError, match=rf"^tracking\.compare {other}: has no history\.jsonl; give the output"):
        Tracker(str(tmp_path / "own"), run_config("out", compare=(other,)))
    assert not (tmp_path / "own").exists()


def test_a_password_in_the_tracking_uri_is_refused() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        run_config("out", mlflow="https://me:secret@tracking.example.org")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("loss/main", "loss/main"), ("iou/<sky>", "iou/_sky_"), ("iou/a/b", "iou/a_b"), ("iou/..", "iou/__")],
)
def test_metric_names_are_what_mlflow_takes(name: str, expected: str) -> None:
    assert metric_name(name) == expected


def test_parameters_are_flat_and_not_too_long() -> None:
    nested = {"a": {"b": 1, "c": {"d": "x"}}, "map": {"0": 255}, "none": None, "list": [1] * 1000, "empty": {}}
    flat = flattened(nested)
    assert {key: flat[key] for key in flat if key != "list"} == {
        "a.b": "1",
        "a.c.d": "x",
        "map": '{"0": 255}',
        "none": "null",
        "empty": "{}",
    }
    assert len(flat["list"]) == 500


# What a run was made with


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_and_changes_after_it_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    (tmp_path / "models").mkdir()
    source = tmp_path / "models" / "a.py"
    source.write_text("a = 1\n")
    assert code(tmp_path)["git_commit"] is None  # no repository
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = code(tmp_path)
    assert (clean["git_commit"], clean["git_dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    source.write_text("a = 2\n")
    changed = code(tmp_path)
    assert changed["git_dirty"] is True
    assert changed["code_sha256"] != clean["code_sha256"]
    assert code(tmp_path / "models")["git_commit"] is None  # another's repository around the code


def test_without_git_the_commit_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert code(ROOT)["git_commit"] is None
    monkeypatch.setenv("GIT_COMMIT", "0123abc")
    assert code(ROOT)["git_commit"] == "0123abc"


def test_each_start_of_a_run_is_noted_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    describe_run(str(tmp_path), ["jobs/train.py", "--tracking.mlflow", "https://me:hush-hush@host/"], "sha256:1")
    describe_run(str(tmp_path), ["jobs/train.py"], "sha256:1")
    first, second = read_starts(str(tmp_path))
    assert first["command"] == ["jobs/train.py", "--tracking.mlflow", "https://***@host/"]
    assert second["dataset"] == "sha256:1"
    assert {"python", "torch", "torchvision", "ray", "pyarrow", "numpy"} <= set(first["packages"])
    assert all(first["packages"].values())
    assert "hush-hush" not in (tmp_path / "environment.json").read_text()
    assert os.environ["AWS_SECRET_ACCESS_KEY"]
