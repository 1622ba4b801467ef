"""jobs/calibrate.py as a user runs it, and what comes of it in jobs/segment_bucket.py."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from jobs.calibrate import main
from pipeline import storage
from pipeline.checkpoints import int8_calibration
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.datasets.scenes import CLASSES
from pipeline.errors import UserError
from pipeline.images.codec import decode_image, decode_label
from tests.conftest import RunJob
from tests.output_checks import check_invariants
from tests.requirements import INT8
from tests.scene_data import write_photos, write_training_set


def save_model(folder: Path, outliers: bool = False) -> None:
    """A network without training, of three clear labels.

    With `outliers`, a channel that nothing uses is a thousand times the others, which int8 cannot resolve any more.
    """
    torch.manual_seed(0)
    architecture = models.Architecture("resnet18", len(CLASSES), bins=(1, 2), auxiliary=False)
    model = models.PSPNet(architecture).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.head.classifier.weight, std=0.6)
        model.head.classifier.bias[3:] = -1000
        for stage in (model.backbone.layer2, model.backbone.layer3, model.backbone.layer4) if outliers else ():
            for block in stage:
                block.bn1.weight[0] = 1000
                block.conv2.weight[:, 0] = 0
    names, colors = [entry.name for entry in CLASSES], [list(entry.color) for entry in CLASSES]
    metrics = {"miou": 0.1}
    models.save(folder, model, models.Metadata(names, colors, preprocessing={"long_side": None}, metrics=metrics))


@dataclass
class Calibrated:
    """Results of one run of the job."""

    scenes: str
    checkpoint: str
    output: str
    printed: str


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("scenes"))
    write_training_set(root, num_train=5, num_val=3)
    return root


@pytest.fixture(scope="module")
def calibrated(scenes: str, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    INT8.check()
    folder = tmp_path_factory.mktemp("checkpoints")
    save_model(folder / "best")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        main(arguments(folder / "best", scenes, folder / "int8", "--calibration-images", "2"))
    return Calibrated(scenes, str(folder / "best"), str(folder / "int8"), "\n".join(lines))


def arguments(checkpoint: object, root: object, output: object, *options: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--data.root", str(root), "--output", str(output), *options]


def test_the_calibration_is_noted_in_a_checkpoint_of_the_same_model(calibrated: Calibrated) -> None:
    _, before = models.load(calibrated.checkpoint)
    _, after = models.load(calibrated.output)
    assert models.model_id(calibrated.output) == models.model_id(calibrated.checkpoint)
    assert before.int8 == {}
    assert after.int8["images"] == 2
    assert after.int8["agreement"] >= 0.98
    assert abs(after.int8["miou"]["int8"] - after.int8["miou"]["float32"]) < 0.005
    after.int8 = {}
    assert after == before


def test_the_figures_are_those_of_the_predictors(calibrated: Calibrated) -> None:
    model = Checkpoint.load(calibrated.output, None)
    exact, quantised = model.predictor("cpu", "float32"), model.predictor("cpu", "int8")
    equal = labelled = 0
    for uri in storage.find(f"{calibrated.scenes}/images/val"):
        image_HW3 = decode_image(storage.read_bytes(uri))
        label_uri = uri.replace("/images/", "/annotations/").replace(".jpg", ".png")
        counted_HW = decode_label(storage.read_bytes(label_uri)) != 255
        exact_HW, int8_HW = (p.predict(image_HW3[None]).class_ids_NHW[0] for p in (exact, quantised))
        equal += (exact_HW == int8_HW)[counted_HW].sum()
        labelled += counted_HW.sum()
    assert model.metadata.int8["agreement"] == pytest.approx(equal / labelled)
    assert 0 < labelled < 3 * 65 * 65, "no pixel is ignored"


def test_the_summary_shows_every_precision_and_the_next_command(calibrated: Calibrated) -> None:
    assert "on 2 images, validating on 3" in calibrated.printed
    for share in ("100.00%", "99.99%", "99.90%"):
        assert f"ranges that cover {share} of the activations: " in calibrated.printed
    assert "  float32              100.00%" in calibrated.printed
    assert "  int8       " in calibrated.printed
    assert f"--checkpoint file://{calibrated.output} --precision int8" in calibrated.printed


def test_a_checkpoint_can_be_calibrated_where_it_lies(
    calibrated: Calibrated, scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_calibration, "SHARES", (1.0,))
    shutil.copytree(calibrated.output, tmp_path / "best")
    weights = tmp_path / "best" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    main(arguments(tmp_path / "best", scenes, tmp_path / "best", "--calibration-images", "1"))
    assert models.load(tmp_path / "best")[1].int8["images"] == 1
    assert weights.stat().st_mtime_ns == written


@INT8.mark
def test_labels_that_differ_too_much_are_refused_with_both_figures(
    scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(int8_calibration, "SHARES", (1.0,))
    save_model(tmp_path / "best", outliers=True)
    with pytest.raises(
        UserError,
        match=r"not accurate enough for this checkpoint: \d\d?\.\d\d% of .* \(98% required\) and mIoU "
        r"changes by [+-]0\.\d+ \(less than 0\.005 required\); nothing was written\. Label with --precision bfloat16",
    ):
        main(arguments(tmp_path / "best", scenes, tmp_path / "int8", "--calibration-images", "1"))
    assert not (tmp_path / "int8").exists()
    assert "  float32              100.00%" in capsys.readouterr().out


def test_a_split_without_labels_is_refused(
    calibrated: Calibrated, scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_calibration, "SHARES", (1.0,))
    void = json.dumps({str(k): 255 for k in range(len(CLASSES))})
    options = ["--calibration-images", "1", "--data.label-map", void]
    with pytest.raises(UserError, match=r"every pixel of split 'val' has the ignore_index 255"):
        main(arguments(calibrated.checkpoint, scenes, tmp_path / "int8", *options))


def test_input_that_cannot_work_is_refused_before_the_work(
    calibrated: Calibrated, scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "predictor", lambda *_: pytest.fail("the work has begun"))
    checkpoint, out = calibrated.checkpoint, tmp_path / "out"
    with pytest.raises(UserError, match=r"nowhere.*config\.json does not exist"):
        main(arguments(tmp_path / "nowhere", scenes, out))
    with pytest.raises(UserError, match=r"data\.root .*/nothing: no such file or folder; check the path"):
        main(arguments(checkpoint, tmp_path / "nothing", out))
    with pytest.raises(UserError, match=r"no images in images/test; check data\.root"):
        main(arguments(checkpoint, scenes, out, "--data.val-split", "test"))
    with pytest.raises(UserError, match=r"ignore_index 3 is the id of class 'person'.* set --data\.ignore-index"):
        main(arguments(checkpoint, scenes, out, "--data.ignore-index", "3"))
    with pytest.raises(UserError, match=r"calibration_images: '0' is not allowed"):
        main(arguments(checkpoint, scenes, out, "--calibration-images", "0"))
    save_model(tmp_path / "other", outliers=True)
    with pytest.raises(UserError, match=r"other: holds a different checkpoint, .*; nothing was written"):
        main(arguments(checkpoint, scenes, tmp_path / "other"))
    (tmp_path / "half").mkdir()
    shutil.copy(Path(checkpoint, "config.json"), tmp_path / "half")
    with pytest.raises(UserError, match=r"half: holds config\.json but no complete checkpoint"):
        main(arguments(checkpoint, scenes, tmp_path / "half"))
    assert not out.exists()


def test_a_machine_without_int8_is_refused_before_the_work(
    scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_calibration, "has_int8", lambda device: False)
    save_model(tmp_path / "best")
    with pytest.raises(UserError, match=r"needs a CPU with VNNI instructions .*; calibrate on such a machine"):
        main(arguments(tmp_path / "best", scenes, tmp_path / "int8"))
    assert not (tmp_path / "int8").exists()


@pytest.mark.slow
def test_a_bucket_is_labelled_in_int8(calibrated: Calibrated, bucket: str, run_job: RunJob, tmp_path: Path) -> None:
    for path in Path(calibrated.output).iterdir():
        storage.write_bytes(f"{bucket}/int8/{path.name}", path.read_bytes())
    uris = write_photos(f"{bucket}/photos", 4)
    options = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", f"{bucket}/int8"]
    done = run_job("jobs/segment_bucket.py", *options, "--precision", "int8")
    assert done.returncode == 0, done.stdout + done.stderr
    predictor = Checkpoint.load(calibrated.output, None).predictor("cpu", "int8")
    for uri, row in check_invariants(f"{bucket}/labels", uris).items():
        expected_HW = predictor.predict(decode_image(storage.read_bytes(uri))[None]).class_ids_NHW[0]
        found_HW = decode_label(row["mask"]["bytes"])
        assert np.mean(found_HW == expected_HW) > 0.999, uri  # the number of threads may move a value's last bit
