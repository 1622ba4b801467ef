"""Export of a checkpoint to a single file, which is kept only if its results agree with Predictor's."""

import re
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.errors import UserError

# Two float32 programs may differ where two classes tie, and Predictor's confidences are float16.
LEAST_AGREEMENT = 0.9999
TIES = 2  # pixels that may differ, however small the images are
CONFIDENCE_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Agreement:
    """Agreement of an exported file with Predictor, in float32, on random images."""

    pixels: int
    differing: int
    max_confidence_difference: float

    @property
    def holds(self) -> bool:
        allowed = max(TIES, (1 - LEAST_AGREEMENT) * self.pixels)
        return self.differing <= allowed and self.max_confidence_difference <= CONFIDENCE_TOLERANCE

    def __str__(self) -> str:
        return (
            f"{1 - self.differing / self.pixels:.4%} of {self.pixels:,} pixels have Predictor's class, "
            f"confidence within {self.max_confidence_difference:.1e} (Predictor rounds to float16, by up to 2.4e-04)"
        )


@dataclass(frozen=True)
class ExportSummary:
    """Summary of an export; `agreement` is None if onnxruntime is not installed to run the file."""

    output: str
    size_bytes: int
    about: dict[str, Any]
    agreement: Agreement | None

    def lines(self) -> list[str]:
        """Return lines for the user, with example code that runs the file."""
        import torch

        from models.weights.export import ONNX_OPSET, is_onnx

        about, onnx = self.about, is_onnx(self.output)
        height, width = (about["input"][name] or name for name in ("height", "width"))
        outputs = ", ".join(f"{name} {output['dtype']}" for name, output in about["outputs"].items())
        lines = [
            f"Wrote      {self.output}, {self.size_bytes / 1e6:,.1f} MB",
            f"Format     {f'ONNX, opset {ONNX_OPSET}' if onnx else f'program of torch.export {torch.__version__}'}",
            f"Input      images uint8 (batch, {height}, {width}, 3), RGB",
            f"Outputs    {outputs}, (batch, {height}, {width}) each",
            f"Agreement  {self.agreement or 'not checked; to check it, pip install onnxruntime and export again'}",
        ]
        if long_side := about["preprocessing"].get("long_side"):
            lines.append(f"Before it  shrink images to a long side of at most {long_side} pixels by area averaging")
        return [*lines, "", *_usage(Path(self.output).name, onnx)]


def export(checkpoint: str, output: str, size: tuple[int, int] | None) -> ExportSummary:
    """Export a checkpoint to ONNX or to a torch.export program, depending on the suffix of `output`.

    `checkpoint` and `output` may be URIs. `size` (rows, columns) fixes the image size. The file is written to `output`
    only if it agrees with Predictor.

    Raises: UserError if the checkpoint is missing or damaged, the suffix is unknown, the size is below 64, or the
    packages for ONNX are not installed.
    """
    from models.weights import export as exporter

    try:
        exporter.check(output, size)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    storage.open_filesystem(output)
    loaded = Checkpoint.load(checkpoint, None)
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        path = Path(folder) / f"model{Path(output).suffix}"
        exporter.export(path, loaded.network, loaded.metadata, size)
        agreement = _compare(path, loaded, size)
        if agreement is not None and not agreement.holds:
            raise UserError(f"{output}: not written, because the exported file disagrees with Predictor: {agreement}")
        content = path.read_bytes()
    storage.write_bytes(output, content)
    return ExportSummary(output, len(content), exporter.describe(loaded.network, loaded.metadata, size), agreement)


def parse_size(text: str) -> tuple[int, int]:
    """Return (480, 640), rows and columns, for `480x640`. Raises UserError."""
    if not (match := re.fullmatch(r"(\d+)[x×](\d+)", text)):
        raise UserError(f"--size {text}: give HEIGHTxWIDTH in pixels, for example 480x640")
    return int(match[1]), int(match[2])


def _compare(path: Path, loaded: Checkpoint, size: tuple[int, int] | None) -> Agreement | None:
    from models.weights import export as exporter

    if exporter.is_onnx(path) and find_spec("onnxruntime") is None:
        return None
    run, predictor = exporter.load(path), loaded.predictor("cpu", "float32")
    pixels, differing, difference = 0, 0, 0.0
    for shape in [(1, *size)] if size else [(2, 131, 193), (1, 80, 65)]:
        images = _random_images(*shape)
        class_ids, confidence = run(images)
        expected = predictor.predict(images, with_confidence_map=True)
        pixels += class_ids.size
        differing += int(np.count_nonzero(class_ids != expected.class_ids_NHW))
        difference = max(difference, float(np.abs(confidence - expected.confidence_NHW).max()))
    return Agreement(pixels, differing, difference)


def _random_images(num_images: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return images of random colored squares with noise, which have flat regions, edges and texture."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 226, (num_images, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    images = squares.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return images + rng.integers(0, 31, images.shape, dtype=np.uint8)


def _usage(name: str, onnx: bool) -> list[str]:
    if onnx:
        return [
            f'  session = onnxruntime.InferenceSession("{name}")',
            '  class_ids, confidence = session.run(None, {"images": images})',
            '  classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        ]
    return [
        f'  about = {{"metadata.json": ""}}; program = torch.export.load("{name}", extra_files=about)',
        "  class_ids, confidence = program.module()(images)",
        '  classes = json.loads(about["metadata.json"])["classes"]',
    ]
