"""jobs/export.py from its arguments to the file, its messages and its refusals."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from jobs.export import main
from models.weights import export
from pipeline import storage
from pipeline.checkpoints import exporting
from pipeline.console import run_job
from pipeline.errors import UserError
from tests.test_segment_job import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return str(folder)


@pytest.mark.slow
def test_a_checkpoint_becomes_one_onnx_file(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "model.onnx"
    main([checkpoint, "--to", str(output), "--size", "97x131"])
    printed = capsys.readouterr().out
    assert "ONNX, opset 18" in printed
    assert "images uint8 (batch, 97, 131, 3), RGB" in printed
    assert "100.0000% of 12,707 pixels have Predictor's class" in printed
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]

    session = onnxruntime.InferenceSession(output)
    class_ids, confidence = session.run(None, {"images": np.zeros((2, 97, 131, 3), np.uint8)})
    assert class_ids.shape == confidence.shape == (2, 97, 131)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert classes[:2] == ["class 0", "class 1"]


@pytest.mark.slow
def test_buckets_hold_checkpoints_and_exports(
    bucket: str, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.copy_files(checkpoint, f"{bucket}/checkpoint", ["config.json", "model.safetensors"])
    main([f"{bucket}/checkpoint", "--to", f"{bucket}/exports/model.pt2", "--size", "65x90"])
    printed = capsys.readouterr().out
    assert "images uint8 (batch, 65, 90, 3), RGB" in printed
    assert 'torch.export.load("model.pt2"' in printed

    (tmp_path / "model.pt2").write_bytes(storage.read_bytes(f"{bucket}/exports/model.pt2"))
    about = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=about)
    class_ids, _ = program.module()(torch.zeros(3, 65, 90, 3, dtype=torch.uint8))
    assert class_ids.shape == (3, 65, 90)
    assert len(json.loads(about["metadata.json"])["classes"]) == 11


def without_exporting(monkeypatch: pytest.MonkeyPatch, class_id: int) -> None:
    """Let an export write any bytes, and running it give one class everywhere."""

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(images.shape[:3], class_id, np.uint8), np.ones(images.shape[:3], np.float32)

    monkeypatch.setattr(export, "export", lambda path, *_: path.write_bytes(b"exported"))
    monkeypatch.setattr(export, "load", lambda path: run)


def test_a_file_that_disagrees_with_the_predictor_is_not_left(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exporting(monkeypatch, class_id=200)
    with pytest.raises(UserError, match=r"not written, because .* disagrees with Predictor: 0.0000% of"):
        main([checkpoint, "--to", str(tmp_path / "model.pt2")])
    assert not list(tmp_path.iterdir())


def test_a_file_that_nothing_here_can_run_is_written_and_said_to_be_unchecked(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_exporting(monkeypatch, class_id=200)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    main([checkpoint, "--to", str(tmp_path / "model.onnx")])
    assert "not checked; to check it, pip install onnxruntime" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").read_bytes() == b"exported"


@pytest.mark.parametrize(("differing", "difference", "holds"), [(5, 1e-3, True), (11, 0.0, False), (0, 0.1, False)])
def test_agreement_allows_ties_and_rounding_only(differing: int, difference: float, holds: bool) -> None:
    assert exporting.Agreement(100_000, differing, difference).holds == holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CHECKPOINT", "--to", "model.tflite"], "unknown suffix; use .onnx, or .pt2"),
        (["CHECKPOINT", "--to", "model.onnx", "--size", "63x400"], "63 x 400 pixels is too small"),
        (["CHECKPOINT", "--to", "model.onnx", "--size", "large"], "--size large: give HEIGHTxWIDTH in pixels"),
        (["nowhere", "--to", "model.pt2"], "config.json does not exist; use a folder that jobs/train.py"),
        (["CHECKPOINT", "--to", "gopher://model.pt2"], "gopher://model.pt2: cannot be opened"),
    ],
)
def test_what_the_user_can_mend_is_said_and_exits_2(
    arguments: list[str],
    message: str,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [checkpoint if argument == "CHECKPOINT" else argument for argument in arguments]
    monkeypatch.setattr("sys.argv", ["jobs/export.py", *given])
    with pytest.raises(SystemExit) as raised:
        run_job(main)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_onnx_without_its_packages_says_what_to_install(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript; run pip install 'sceneparse\[export\]'"):
        main([checkpoint, "--to", "model.onnx"])
