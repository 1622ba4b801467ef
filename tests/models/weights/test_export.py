"""An exported file, run by ONNX Runtime and by torch.export, against full-size logits of the model itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from models import Architecture, Metadata, PSPNet, model_id
from models.batch_norm import fold_batch_norm
from models.inference.preprocessing import padded_size
from models.pyramid import Pyramid, PyramidHead
from models.weights import export as exporter

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
SIZE = (97, 131)
REPOSITORY = str(Path(__file__).parents[3]).encode()


def make_model(num_classes: int = 7, **architecture: Any) -> tuple[PSPNet, Metadata]:
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", num_classes, **architecture)).eval()
    randomize_statistics(model)
    # Logits with enough spread for every class, and for confident and doubtful pixels.
    torch.nn.init.normal_(model.head.classifier.weight, std=0.1)
    names = [f"class {k}" for k in range(num_classes)]
    colors = [[k % 256, 0, 7] for k in range(num_classes)]
    return model, Metadata(names, colors, mean=MEAN, std=STD, preprocessing={"long_side": 1024})


def randomize_statistics(model: torch.nn.Module) -> None:
    """Give every BatchNorm something to fold."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.7, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)


def make_images(num_images: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (num_images, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width])


@torch.no_grad()
def expected(model: PSPNet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class ids and the confidences, both (N, H, W), from full-size logits."""
    height, width = images.shape[1:3]
    align_corners = model.architecture.align_corners
    padded = padded_size((height, width), align_corners)
    x = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    x = F.pad(x.permute(0, 3, 1, 2), (0, padded[1] - width, 0, padded[0] - height))
    logits = F.interpolate(model(x), padded, mode="bilinear", align_corners=align_corners)[:, :, :height, :width]
    confidence, class_ids = logits.softmax(1).max(1)
    return class_ids.numpy(), confidence.numpy()


def assert_agrees(run: exporter.Runner, model: PSPNet, images: np.ndarray) -> None:
    class_ids, confidence = run(images)
    expected_ids, expected_confidence = expected(model, images)
    assert len(np.unique(expected_ids)) > 1
    assert class_ids.dtype == np.uint8
    assert confidence.dtype == np.float32
    assert class_ids.shape == confidence.shape == images.shape[:3]
    assert (class_ids == expected_ids).mean() >= 0.9999
    np.testing.assert_allclose(confidence, expected_confidence, atol=1e-4)


def export(folder: Path, suffix: str, size: tuple[int, int] | None, **architecture: Any) -> tuple[Path, PSPNet]:
    model, metadata = make_model(**architecture)
    path = folder / f"model{suffix}"
    exporter.export(path, model, metadata, size)
    return path, model


@pytest.fixture(scope="module")
def any_size_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PSPNet]:
    return export(tmp_path_factory.mktemp("onnx"), ".onnx", None, align_corners=False)


@pytest.fixture(scope="module")
def fixed_program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PSPNet]:
    return export(tmp_path_factory.mktemp("program"), ".pt2", SIZE, align_corners=True)


def assert_agrees_at_any_size(path: Path, model: PSPNet) -> None:
    run = exporter.load(path)
    assert_agrees(run, model, make_images(1, *SIZE))
    unpadded = (129, 73) if model.architecture.align_corners else (128, 72)
    assert_agrees(run, model, make_images(3, *unpadded))
    assert_agrees(run, model, make_images(1, 30, 200))  # padded to the network's least height


@pytest.mark.slow
def test_onnx_for_any_size_says_what_the_model_says(any_size_onnx: tuple[Path, PSPNet]) -> None:
    assert_agrees_at_any_size(*any_size_onnx)


@pytest.mark.slow
def test_onnx_for_any_size_with_max_pooling_and_aligned_corners(tmp_path: Path) -> None:
    architecture = {"align_corners": True, "pooling": "max", "bins": (1, 4), "reduce": False}
    assert_agrees_at_any_size(*export(tmp_path, ".onnx", None, **architecture))


@pytest.mark.slow
def test_onnx_for_a_size_that_needs_padding_without_bins(tmp_path: Path) -> None:
    path, model = export(tmp_path, ".onnx", SIZE, bins=(), auxiliary=False)
    run = exporter.load(path)
    assert_agrees(run, model, make_images(1, *SIZE))
    assert_agrees(run, model, make_images(3, *SIZE))


@pytest.mark.slow
def test_a_program_for_any_size_says_what_the_model_says(tmp_path: Path) -> None:
    assert_agrees_at_any_size(*export(tmp_path, ".pt2", None, align_corners=False, bins=(1, 3)))


@pytest.mark.slow
def test_a_program_for_a_size_that_needs_padding(fixed_program: tuple[Path, PSPNet]) -> None:
    path, model = fixed_program
    assert_agrees(exporter.load(path), model, make_images(3, *SIZE))


@pytest.mark.slow
def test_an_onnx_file_says_what_its_user_must_know_and_nothing_of_this_machine(
    any_size_onnx: tuple[Path, PSPNet],
) -> None:
    path, model = any_size_onnx
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert about == exporter.describe(model, make_model()[1])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("class_ids", "tensor(uint8)", ["batch", "height", "width"]),
        ("confidence", "tensor(float)", ["batch", "height", "width"]),
    ]
    assert REPOSITORY not in path.read_bytes()


@pytest.mark.slow
def test_a_program_says_what_its_user_must_know_and_nothing_of_this_machine(
    fixed_program: tuple[Path, PSPNet],
) -> None:
    path, model = fixed_program
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["metadata.json"]) == exporter.describe(model, make_model()[1], SIZE)
    assert not any("auxiliary" in name or "running_mean" in name for name in program.state_dict)
    assert REPOSITORY not in path.read_bytes()


def test_the_description_names_everything_that_prepares_an_image_or_reads_a_mask() -> None:
    model, metadata = make_model(2, align_corners=False)
    assert exporter.describe(model, metadata, SIZE) == {
        "model_id": model_id(model, metadata),
        "classes": ["class 0", "class 1"],
        "colors": [[0, 0, 7], [1, 0, 7]],
        "mean": MEAN,
        "std": STD,
        "align_corners": False,
        "preprocessing": {"long_side": 1024},
        "input": {
            "name": "images",
            "dtype": "uint8",
            "layout": "NHWC",
            "channels": "RGB",
            "height": 97,
            "width": 131,
        },
        "outputs": {
            "class_ids": {"dtype": "uint8", "layout": "NHW"},
            "confidence": {"dtype": "float32", "layout": "NHW"},
        },
    }


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (4,), ()])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_exported_head_is_the_pyramid_head(
    bins: tuple[int, ...], pooling: Any, reduce: bool, align_corners: bool
) -> None:
    torch.manual_seed(0)
    head = PyramidHead(32, 5, Pyramid(bins, pooling, reduce), align_corners=align_corners).eval()
    randomize_statistics(head)
    fold_batch_norm(head)
    exportable = exporter.ExportableHead(head, pooling)
    for size in ((9, 17), (8, 8), (13, 60)):
        features = torch.randn(2, 32, *size)
        with torch.no_grad():
            torch.testing.assert_close(exportable(features), head(features), atol=1e-5, rtol=1e-4)


def test_more_classes_than_a_byte_holds_have_wider_ids() -> None:
    model, metadata = make_model(300)
    with torch.no_grad():
        class_ids, _ = exporter.SegmentationGraph(model, metadata).eval()(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert class_ids.dtype == torch.int32
    assert exporter.describe(model, metadata)["outputs"]["class_ids"]["dtype"] == "int32"


def test_the_callers_model_is_left_as_it_was() -> None:
    model, metadata = make_model()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exporter.SegmentationGraph(model, metadata)
    assert model.training
    assert model.auxiliary is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_exported_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, metadata = make_model()
    with pytest.raises(ValueError, match=r"model.tflite: unknown suffix; use .onnx"):
        exporter.export("model.tflite", model, metadata)
    with pytest.raises(ValueError, match=r"63 x 500 pixels is too small; use 64 x 64 or more"):
        exporter.export("model.pt2", model, metadata, (63, 500))
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"needs onnxscript; run pip install 'sceneparse\[export\]'"):
        exporter.export("model.onnx", model, metadata)
    exporter.check("model.pt2")
