"""PSPNet prepared for inference: BatchNorm folded, auxiliary head removed, weights packed.

Small images run layer by layer. If the feature maps of an image would not fit in memory, the same layers run on strips
of rows, with each row computed once. Only one map of the head, 512 channels for PSPNet50, is stored as a whole, since
the pyramid needs all features before the head can finish.

Shape suffixes: N batch, C channels, H W rows and columns of the image, h w those at stride 8, S rows of a strip,
O channels of the head, K classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_norm import folded
from models.inference.fallback import or_uncompiled
from models.inference.head import InferenceHead, RowPooling, averaging
from models.inference.malloc import return_large_blocks
from models.inference.preprocessing import NetworkInputs
from models.inference.strips import RowBuffer, convolved, row_windows
from models.kernels.convolution import Convolution
from models.kernels.selection import Maker
from models.pspnet import PSPNet, feature_size
from models.pyramid import constant_interpolation_matrices

# Strips of features of about this size keep matrix products large and memory small.
STRIP_BYTES = 8 * 2**20
COMPILED_SIZES = 8  # batch sizes, as many as torch compiles one function for


@dataclass(frozen=True)
class Block:
    """Convolutions with a shortcut; `shortcut` is None if the input itself is added."""

    convolutions: list[Convolution]
    shortcut: Convolution | None

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        *first, last = self.convolutions
        y_NCHW = x_NCHW
        for convolution in first:
            y_NCHW = convolution(y_NCHW)
        return last(y_NCHW, x_NCHW if self.shortcut is None else self.shortcut(x_NCHW))


class InferenceNetwork:
    """Network that maps images (N, 3, H, W), RGB 0 to 255 minus the mean, float32, to logits (N, h, w, K), float32.

    `std` is that of R, G, B. `make` creates the implementation of each folded convolution; the model does not change.
    The logits are divided by `temperature`.
    """

    def __init__(self, model: PSPNet, std: Tensor, make: Maker, device: torch.device, temperature: float = 1.0) -> None:
        # The head comes first, since packing its weight has the highest peak memory.
        self.head = InferenceHead(model.head, make, device, temperature)
        self.stem = list(_stem(model, std, make))
        self.blocks = list(_blocks(model, make))
        self.num_features = model.backbone.res5_channels

    def __call__(self, images_N3HW: Tensor) -> Tensor:
        x_NCHW = images_N3HW
        for convolution in self.stem:
            x_NCHW = convolution(x_NCHW)
        x_NCHW = F.max_pool2d(x_NCHW, 3, 2, 1)
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        pooling = self.head.pooling(*x_NCHW.shape[2:])
        pooling.add(x_NCHW)
        return self.head.finish(self.head.convolve(x_NCHW).permute(0, 2, 3, 1), pooling)

    def streamed(self, inputs: NetworkInputs) -> Tensor:
        """Return the same logits, one image at a time, without storing all features or float pixels of an image."""
        return_large_blocks()
        logits_1hwK = [self._streamed(inputs[n]) for n in range(len(inputs))]
        return torch.cat(logits_1hwK) if len(logits_1hwK) > 1 else logits_1hwK[0]

    def _streamed(self, inputs: NetworkInputs) -> Tensor:
        height, width = inputs.size
        feature_height, feature_width = feature_size(height, width)
        pooling = self.head.pooling(feature_height, feature_width)
        strip = max(1, STRIP_BYTES // (4 * feature_width * self.num_features))

        starts = range(0, height, 8 * strip)
        strips: Iterator[Tensor] = (inputs.rows(start, min(start + 8 * strip, height)) for start in starts)
        for convolution in self.stem:
            strips = convolved(strips, convolution, 4 * strip)
        strips = _max_pooled(strips, 2 * strip)
        for block in self.blocks:
            strips = _through_block(strips, block, 2 * strip)
        features = _pooled_too(strips, pooling)

        done = 0
        for fused_1OSw in convolved(features, self.head.convolve, strip):
            fused_1SwO = fused_1OSw.permute(0, 2, 3, 1)
            if not done:
                fused_1hwO = fused_1SwO.new_empty(1, feature_height, feature_width, fused_1SwO.shape[-1])
            fused_1hwO[:, done : done + fused_1SwO.shape[1]] = fused_1SwO
            done += fused_1SwO.shape[1]
        assert done == feature_height
        return self.head.finish(fused_1hwO, pooling)


def compiled(network: InferenceNetwork, **options: Any) -> Callable[[Tensor], Tensor]:
    """Compile the network with torch and `options`: one graph per input size, which includes the matrices as constants.

    Batches are padded to a power of two, so that there are few sizes. After COMPILED_SIZES sizes, further sizes run
    uncompiled: torch would not compile them, and compiling takes longer than predicting a few images. Where torch
    cannot compile, all run uncompiled, after a warning. Results are copies.
    """
    for function in (constant_interpolation_matrices, averaging):
        # Called here, since a decorator would load the compiler in every process.
        torch.compiler.assume_constant_result(function)
    # A code object of its own, because torch limits the graphs of a code object, whatever network they are of.
    call = InferenceNetwork.__call__
    own_call = MethodType(FunctionType(call.__code__.replace(), call.__globals__), network)
    graphs = torch.compile(own_call, fullgraph=True, dynamic=False, **options)
    run = or_uncompiled(graphs, network.__call__)
    sizes: set[torch.Size] = set()

    def compiled_or_not(images_N3HW: Tensor) -> Tensor:
        num_images = len(images_N3HW)
        shape = torch.Size((1 << (num_images - 1).bit_length(), *images_N3HW.shape[1:]))
        if len(sizes) < COMPILED_SIZES:
            sizes.add(shape)
        if shape not in sizes:
            return network(images_N3HW)
        # The output of a CUDA graph is overwritten by its next replay.
        return run(F.pad(images_N3HW, (0, 0) * 3 + (0, shape[0] - num_images)))[:num_images].clone()

    return compiled_or_not


def _through_block(strips_NCSW: Iterator[Tensor], block: Block, max_rows: int) -> Iterator[Tensor]:
    shortcut = RowBuffer()
    to_project = RowBuffer()

    def project(rows: int) -> None:
        if rows and block.shortcut is not None:
            shortcut.put(block.shortcut(to_project.take(rows), pad_rows=False))

    def remembered() -> Iterator[Tensor]:
        for strip_NCSW in strips_NCSW:
            if block.shortcut is None:
                # Copy the strip if the first convolution may still need rows that the last one overwrites.
                in_place = block.convolutions[0].kernel_size == 1
                shortcut.put(strip_NCSW if in_place else strip_NCSW.clone())
            else:
                to_project.put(strip_NCSW)
                project(len(to_project) // block.shortcut.stride * block.shortcut.stride)
            yield strip_NCSW
            del strip_NCSW
        project(len(to_project))

    *first, last = block.convolutions
    strips: Iterator[Tensor] = remembered()
    for convolution in first:
        strips = convolved(strips, convolution, max_rows)
    return convolved(strips, last, max_rows, shortcut)


def _max_pooled(strips_NCSW: Iterator[Tensor], max_rows: int) -> Iterator[Tensor]:
    for window_NCSW, _ in row_windows(strips_NCSW, 3, 2, 1, max_rows):
        # After a ReLU, zero rows above and below do not change the maxima.
        yield F.max_pool2d(window_NCSW, 3, 2, (0, 1))
        del window_NCSW


def _pooled_too(features_NCSW: Iterator[Tensor], pooling: RowPooling) -> Iterator[Tensor]:
    for strip_NCSW in features_NCSW:
        pooling.add(strip_NCSW)
        yield strip_NCSW
        del strip_NCSW


def convolution_names(model: PSPNet) -> dict[str, bool]:
    """Return the names of the convolutions that `InferenceNetwork` makes, each with True if it adds a shortcut."""
    names = {"head.conv": False, "head.classifier": False}
    names |= {f"stem.{conv}": False for conv, _ in _layers(model.backbone)}
    for name, block in _named_blocks(model):
        layers = _layers(block)
        names |= {f"{name}.{conv}": (conv, bn) == layers[-1] for conv, bn in layers}
        if block.downsample is not None:
            names[f"{name}.downsample"] = False
    return names


def _layers(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the convolutions of a stem or block, each with that of its batch norm."""
    return [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(module, f"conv{i}")]


def _named_blocks(model: PSPNet) -> Iterator[tuple[str, Any]]:
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(model.backbone, stage)):
            yield f"{stage}.{index}", block


def _stem(model: PSPNet, std: Tensor, make: Maker) -> Iterator[Convolution]:
    backbone = model.backbone
    for index, (conv_name, bn_name) in enumerate(_layers(backbone)):
        conv = folded(getattr(backbone, conv_name), getattr(backbone, bn_name))
        if index == 0:
            conv.weight /= std.to(conv.weight).view(1, 3, 1, 1)
        yield make(f"stem.{conv_name}", conv, True)


def _blocks(model: PSPNet, make: Maker) -> Iterator[Block]:
    for name, block in _named_blocks(model):
        convs = [make(f"{name}.{c}", folded(getattr(block, c), getattr(block, b)), True) for c, b in _layers(block)]
        shortcut = None
        if block.downsample is not None:
            shortcut = make(f"{name}.downsample", folded(*block.downsample), False)
        yield Block(convs, shortcut)
