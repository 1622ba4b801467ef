"""Export of a model to a single file that runs without Sceneparse: ONNX, or a torch.export program.

The graph covers everything from photo to mask. It takes `images`, uint8 RGB (N, H, W, 3), and returns
`class_ids` (N, H, W), uint8 for up to 256 classes and int32 beyond, and `confidence` (N, H, W), float32, each
pixel's largest softmax probability. These are the results of Predictor at the images' own size, in float32. The graph
includes normalization, padding and the checkpoint's temperature; BatchNorm is folded and the auxiliary head removed.

Shape suffixes: N batch, C channels, H W rows and columns of an image or a feature map, K classes, L channels
of one level, O channels of the head, B cells along one side of a level, R rows (dy, i) of all levels together.
"""

import copy
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models.batch_norm import fold_batch_norm
from models.pspnet import MIN_SIZE, PSPNet
from models.pyramid import Pooling, PyramidHead
from models.weights.checkpoint import Metadata, model_id

SUFFIXES = (".onnx", ".pt2")
# The oldest opset that torch writes without conversion, and so the one that most runtimes support.
ONNX_OPSET = 18
METADATA_FILE = "metadata.json"

Size = tuple[int, int]
Runner = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], NDArray[np.float32]]]


def export(path: str | Path, model: PSPNet, metadata: Metadata, size: Size | None = None) -> None:
    """Write the model to `path` as ONNX or as a torch.export program, by its suffix, .onnx or .pt2.

    `size` (rows, columns) fixes the size of the images; without it, any size is accepted. The batch may have any size
    in either case. The result of `describe` is included: in ONNX as metadata properties, each a JSON text, in a
    program as the extra file metadata.json.

    Raises ValueError for another suffix or a size below 64, and ImportError if the packages for ONNX are not
    installed.
    """
    check(path, size)
    about = describe(model, metadata, size)
    program = to_program(model, metadata, size)
    if is_onnx(path):
        _write_onnx(Path(path), program, about)
    else:
        torch.export.save(program, path, extra_files={METADATA_FILE: _json(about)})


def check(path: str | Path, size: Size | None = None) -> None:
    """Raise the errors of `export` for this path and size before anything is loaded."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown suffix; use .onnx, or .pt2 for a torch.export program.")
    if size is not None and min(size) < MIN_SIZE:
        raise ValueError(
            f"{path}: an image size of {size[0]} x {size[1]} pixels is too small; use {MIN_SIZE} x {MIN_SIZE} or "
            "more, or do not fix the size."
        )
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if is_onnx(path) and missing:
        raise ImportError(
            f"{path}: ONNX needs {' and '.join(missing)}; run pip install 'sceneparse[export]', or export to .pt2."
        )


def is_onnx(path: str | Path) -> bool:
    """Return True if `path` names an ONNX file."""
    return Path(path).suffix == ".onnx"


def describe(model: PSPNet, metadata: Metadata, size: Size | None = None) -> dict[str, Any]:
    """Return the metadata for users of the file, as JSON types. `mean` and `std` are in units of 0 to 255."""
    height, width = size or (None, None)
    shape = {"height": height, "width": width}
    return {
        "model_id": model_id(model, metadata),
        "classes": metadata.classes,
        "colors": metadata.colors,
        "mean": metadata.mean,
        "std": metadata.std,
        "align_corners": model.architecture.align_corners,
        "preprocessing": metadata.preprocessing,
        "input": {"name": "images", "dtype": "uint8", "layout": "NHWC", "channels": "RGB", **shape},
        "outputs": {
            "class_ids": {"dtype": _id_name(model), "layout": "NHW"},
            "confidence": {"dtype": "float32", "layout": "NHW"},
        },
    }


def to_program(model: PSPNet, metadata: Metadata, size: Size | None = None) -> ExportedProgram:
    """Return the graph described in the module docstring, on the CPU."""
    graph = SegmentationGraph(model, metadata).eval()
    # Example sizes must not be 1, which torch.export would treat as a constant, nor equal, nor multiples of 8.
    height, width = size or (97, 131)
    images_NHW3 = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    program = torch.export.export(graph, (images_NHW3,), dynamic_shapes=_dynamic_shapes(size is None))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine, which must not be in the file
    return program


def load(path: str | Path) -> Runner:
    """Return a function that runs an exported file on the CPU, from images to class ids and confidences.

    Raises ImportError for ONNX without onnxruntime.
    """
    if is_onnx(path):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images_NHW3: tuple(session.run(["class_ids", "confidence"], {"images": images_NHW3}))
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images_NHW3: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        class_ids_NHW, confidence_NHW = module(torch.tensor(images_NHW3))
        return class_ids_NHW.numpy(), confidence_NHW.numpy()

    return run


class SegmentationGraph(nn.Module):
    """Module that is exported: uint8 images to class ids and confidences; see the module docstring."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, model: PSPNet, metadata: Metadata) -> None:
        super().__init__()
        self.align_corners = model.architecture.align_corners
        self.id_dtype = getattr(torch, _id_name(model))
        self.register_buffer("mean_3", torch.tensor(metadata.mean, dtype=torch.float32))
        self.register_buffer("std_3", torch.tensor(metadata.std, dtype=torch.float32))
        network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        network.auxiliary = None
        fold_batch_norm(network)
        for parameter in network.head.classifier.parameters():
            parameter.div_(metadata.temperature)
        network.head = ExportableHead(network.head, model.architecture.pooling)  # type: ignore[assignment]
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[1], images.shape[2]
        pixels_N3HW = ((images.float() - self.mean_3) / self.std_3).permute(0, 3, 1, 2)
        padded_N3HW = F.pad(pixels_N3HW, (0, self._padded(width) - width, 0, self._padded(height) - height))
        logits_NKHW = F.interpolate(
            self.network(padded_N3HW),
            padded_N3HW.shape[2:],
            mode="bilinear",
            align_corners=self.align_corners,
        )
        class_ids_NHW = logits_NKHW.argmax(1).to(self.id_dtype)
        confidence_NHW = logits_NKHW.softmax(1).amax(1)
        return _crop(class_ids_NHW, height, width), _crop(confidence_NHW, height, width)

    def _padded(self, length: int) -> int:
        """Return the same as padded_size of models/inference, also for a dynamic length in torch.export."""
        extra = 1 if self.align_corners else 0
        # The dividend stays positive, since ONNX rounds divisions towards zero and Python rounds down.
        return torch.sym_max(MIN_SIZE + extra, (length - extra + 7) // 8 * 8 + extra)  # type: ignore[return-value]


class ExportableHead(nn.Module):
    """Folded PyramidHead in evaluation mode, with operations that ONNX supports for dynamic sizes.

    It computes the same function of (N, C, H, W), but pools by the membership of pixels in cells instead of adaptive
    pooling, which ONNX lacks, and computes interpolation matrices arithmetically instead of by resizing.
    """

    def __init__(self, head: PyramidHead, pooling: Pooling) -> None:
        super().__init__()
        self.bins = head.bins
        self.align_corners = head.align_corners
        self.pooling = pooling
        self.levels = head.levels
        feature_weight_OC33, *level_weights_OL33 = head.split(head.conv.weight.detach())
        self.weight_OC33 = _constant(feature_weight_OC33)
        self.bias_O = head.conv.bias
        # Weights of a 1x1 convolution to every output channel and tap, in the order (O, dy, dx).
        self.tap_weights = nn.ParameterList(
            _constant(w.permute(0, 2, 3, 1).reshape(-1, w.shape[1], 1, 1)) for w in level_weights_OL33
        )
        self.classify = nn.Sequential(head.bn, head.relu, head.classifier)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        height, width = features_NCHW.shape[2:]
        fused_NOHW = F.conv2d(features_NCHW, self.weight_OC33, self.bias_O, padding=1)
        if self.bins:
            strips = []
            for bin_, level, weight in zip(self.bins, self.levels, self.tap_weights, strict=True):
                level_NLBB = level(_pool(features_NCHW, bin_, self.pooling))
                columns_WB = _tap_matrix(width, bin_, self.align_corners)
                strips.append(_tap_products(level_NLBB, weight) @ columns_WB.T)
            rows_HR = torch.cat([_tap_matrix(height, bin_, self.align_corners) for bin_ in self.bins], dim=1)
            fused_NOHW = fused_NOHW + rows_HR @ torch.cat(strips, dim=2)
        return self.classify(fused_NOHW)


def _tap_products(level_NLBB: Tensor, weight: Tensor) -> Tensor:
    """Return the product of the level with the kernel at every tap and cell, (N, O, 3B, 3B), rows (dy, i)."""
    num_images, bin_ = level_NLBB.shape[0], level_NLBB.shape[3]
    products = F.conv2d(level_NLBB, weight).view(num_images, -1, 3, 3, bin_, bin_)
    return products.permute(0, 1, 2, 4, 3, 5).reshape(num_images, -1, 3 * bin_, 3 * bin_)


def _tap_matrix(length: int, bin_: int, align_corners: bool) -> Tensor:
    """Return (length, 3B): the weight of each tap and cell at a pixel, zero if the tap is outside the map."""
    pixel_T1 = torch.arange(length)[:, None, None] + torch.arange(-1, 2)[:, None]
    if align_corners:
        position = pixel_T1 * (bin_ - 1) / (length - 1)
    else:
        position = ((pixel_T1 + 0.5) * bin_ / length - 0.5).clamp(0, bin_ - 1)
    weights = (1 - (position - torch.arange(bin_)).abs()).clamp(min=0)
    return (weights * ((pixel_T1 >= 0) & (pixel_T1 < length))).flatten(1)


def _pool(features_NCHW: Tensor, bin_: int, pooling: Pooling) -> Tensor:
    """Return the adaptively pooled features, (N, C, B, B)."""
    rows_BH, columns_BW = (_cells(length, bin_) for length in features_NCHW.shape[2:])
    if pooling == "average":
        rows_BH, columns_BW = (cells / cells.sum(1, keepdim=True) for cells in (rows_BH, columns_BW))
        # A single product over all pixels: the reshape between one product per axis would make sizes static.
        weights_BBP = (rows_BH[:, None, :, None] * columns_BW[:, None]).flatten(2)
        pooled = features_NCHW.flatten(2) @ weights_BBP.flatten(0, 1).T
        return pooled.view(*features_NCHW.shape[:2], bin_, bin_)
    strips = [_masked_max(features_NCHW, row_H[:, None], dim=2) for row_H in rows_BH]
    strips_NCBW = torch.cat(strips, dim=2)
    return torch.cat([_masked_max(strips_NCBW, column_W, dim=3) for column_W in columns_BW], dim=3)


def _cells(length: int, bin_: int) -> Tensor:
    """Return the pixels of each cell, (B, length) bool: cell i is from floor(i n / B) to ceil((i + 1) n / B)."""
    # Comparing products is exact and needs far fewer ONNX operations than divisions with rounding.
    pixel = torch.arange(length) * bin_
    start_B1 = torch.arange(bin_)[:, None] * length
    return (pixel + bin_ > start_B1) & (pixel < start_B1 + length)


def _masked_max(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    return x.masked_fill(~mask, -torch.inf).amax(dim, keepdim=True)


def _crop(x_NHW: Tensor, height: int, width: int) -> Tensor:
    # A slice would make torch.export distinguish padded sizes from others and reject one of them.
    return x_NHW.index_select(1, torch.arange(height)).index_select(2, torch.arange(width))


def _write_onnx(path: Path, program: ExportedProgram, about: dict[str, Any]) -> None:
    onnx_program = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=["class_ids", "confidence"],
        opset_version=ONNX_OPSET,
        dynamic_shapes=_dynamic_shapes(about["input"]["height"] is None),  # for the names of the dimensions
        dynamo=True,
        verbose=False,
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props.update({name: _json(value) for name, value in about.items()})
    onnx_program.save(path, external_data=False)


def _dynamic_shapes(any_size: bool) -> dict[str, dict[int, Any]]:
    names = ["batch", "height", "width"] if any_size else ["batch"]
    return {"images": {axis: Dim(name, min=1) for axis, name in enumerate(names)}}


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _id_name(model: PSPNet) -> str:
    return "uint8" if model.architecture.num_classes <= 256 else "int32"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
