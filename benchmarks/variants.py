"""Variants of running one PSPNet on one batch of images: the textbook formulation and ours.

Shape suffixes: N batch, H W rows and columns, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import textbook
from models import Architecture, Calibration, Predictor, PSPNet
from models.inference.activation_ranges import activation_ranges
from models.training.step import StepOptions, TrainingStep, sgd
from models.weights.checkpoint import IMAGENET_MEAN, IMAGENET_STD

TASKS = ("forward", "labels", "training")
BASELINE = "textbook float32"
RECIPE = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}


def seeded_model(backbone: str, num_classes: int) -> PSPNet:
    """Return a network with He-normal convolutions and batch norms that differ from the identity."""
    torch.manual_seed(0)
    # The released models have the deep stem.
    model = PSPNet(Architecture(backbone, num_classes, stem="deep"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert isinstance(module.running_mean, Tensor)
            assert isinstance(module.running_var, Tensor)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def seeded_images(batch: int, size: int) -> Tensor:
    """Return images (N, H, W, 3), uint8, with structure at many scales, like photographs."""
    torch.manual_seed(1)
    images_N3HW = torch.zeros(batch, 3, size, size)
    for cells in (4, 16, 64, size):
        noise = torch.rand(batch, 3, cells, cells)
        images_N3HW += nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return (images_N3HW * (255 / 4)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Case:
    """One network, one batch of images and one device; `calls` returns the variants to measure."""

    def __init__(self, backbone: str, num_classes: int, size: int, batch: int, device: str) -> None:
        self.device = torch.device(device)
        self.model = seeded_model(backbone, num_classes).to(self.device)
        self.images_NHW3 = seeded_images(batch, size)
        blocks = torch.randint(0, num_classes, (batch, 1, 9, 9)).float()
        self.labels_NHW = nn.functional.interpolate(blocks, (size, size))[:, 0].long().to(self.device)

    def calls(self, task: str) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Return, by variant and baseline first, a function that prepares the task and returns a function to run it."""
        textbooks: dict[str, dict[str, Any]] = {BASELINE: {}}
        if self.device.type == "cuda":
            textbooks["textbook TF32"] = {"tf32": True}
        textbooks["textbook bfloat16 autocast"] = {"autocast": True}
        calls = {name: partial(self._textbook, task, **options) for name, options in textbooks.items()}
        if self.device.type == "cuda":
            precisions = ["bfloat16"]
        else:
            precisions = ["float32", "bfloat16"] if task == "training" else ["float32", "bfloat16", "int8"]
        ours = self._our_step if task == "training" else partial(self._our_inference, task)
        return calls | {f"ours {precision}": partial(ours, precision) for precision in precisions}

    def normalised(self) -> Tensor:
        """Return normalized images (N, 3, H, W), float32, on the device."""
        mean, std = (torch.tensor(values, device=self.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((self.images_NHW3.to(self.device).float() - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _textbook(self, task: str, tf32: bool = False, autocast: bool = False) -> Callable[[], Any]:
        model, images_N3HW = self._copy(), self.normalised()
        optimizer = torch.optim.SGD(model.train(task == "training").parameters(), **RECIPE)
        function: Callable[[], Any] = {
            "forward": lambda: textbook.logits(model, images_N3HW),
            "labels": lambda: [map_NHW.cpu() for map_NHW in textbook.labels(model, images_N3HW)],
            "training": lambda: textbook.training_step(model, optimizer, images_N3HW, self.labels_NHW),
        }[task]

        def call() -> Any:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            with (
                torch.set_grad_enabled(task == "training"),
                torch.autocast(self.device.type, torch.bfloat16, enabled=autocast),
            ):
                return function()

        return call

    def _our_inference(self, task: str, precision: str) -> Callable[[], Any]:
        ranges = None
        if precision == "int8":
            ranges = activation_ranges(self.model, IMAGENET_MEAN, IMAGENET_STD, [self.images_NHW3])
        predictor = Predictor(
            self.model,
            IMAGENET_MEAN,
            IMAGENET_STD,
            self.device,
            precision,  # type: ignore[arg-type]
            calibration=Calibration(activation_ranges=ranges),
        )
        if task == "forward":
            return lambda: predictor.logits(self.images_NHW3)
        return lambda: predictor.predict(self.images_NHW3, with_confidence_map=True)

    def _our_step(self, precision: str) -> Callable[[], Any]:
        model = self._copy()
        optimizer = sgd(model, RECIPE["lr"], 1, RECIPE["momentum"], RECIPE["weight_decay"])
        options = StepOptions(precision=precision)  # type: ignore[arg-type]
        step = TrainingStep(model, optimizer, IMAGENET_MEAN, IMAGENET_STD, self.device, options)
        images_NHW3, labels_NHW = self.images_NHW3.to(self.device), self.labels_NHW.cpu()
        return lambda: step(images_NHW3, labels_NHW, RECIPE["lr"])

    def _copy(self) -> PSPNet:
        copy = PSPNet(self.model.architecture)
        copy.load_state_dict(self.model.state_dict())
        return copy.to(self.device).eval()
