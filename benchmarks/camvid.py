"""Training of PSPNet on CamVid from scratch, on one device, in a given number of minutes, without Ray.

    python benchmarks/camvid.py --data FOLDER --minutes 10 --device cuda --ema 0.999 --json result.json

FOLDER has images/{train,val} and annotations/{train,val}, all of one size; label ids are 0 to 10, and 11 for void.
Requires only torch, torchvision, NumPy, Pillow and safetensors. All images are kept in the device's memory and are
augmented there. The clock starts before the first step, so it includes compilation and validations. The result is the
weights with the highest validation mIoU. They are measured again with the Predictor that labels buckets and, with
--protocol-scales, with the paper's test protocol of several scales and mirrored images.

Shape suffixes: N batch, H W rows and columns of an image, h w those of a crop, K classes.
"""

import argparse
import copy
import json
import math
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import models
from benchmarks import machine
from benchmarks.device_data import Augment, Split, load_split, median_frequency_weights, training_batches
from models.inference.predictor import has_native_bfloat16
from models.inference.preprocessing import padded_size
from models.training.losses import LossOptions
from models.training.step import Precision, StepOptions, TrainingStep, sgd
from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from models.weights.checkpoint import IMAGENET_STD as STD

CLASSES = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}
IGNORE = 11
STEPS_AT_ONCE = 10  # steps between reads of the loss, each of which waits for the device
VALIDATION_BATCH = 8
PATHS = ("data", "output", "json")  # options that are locations and do not belong in the report


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")

    begin = time.perf_counter()
    train, val = (load_split(Path(options.data), name, len(CLASSES), IGNORE, device) for name in ("train", "val"))
    on_gpu = device.type == "cuda"
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": options.commit or machine.commit(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else machine.processor(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "images": {"train": len(train.names), "val": len(val.names), "size": list(train.labels_NHW.shape[1:])},
        "options": {key: value for key, value in vars(options).items() if key not in PATHS},
        "seconds": {"load": time.perf_counter() - begin},
    }
    log(f"{len(train.names)} training and {len(val.names)} validation images; {report['machine']}")

    run = Run(options, train, val, device)
    run.train()
    run.add_to(report)
    # Save the result before anything else can fail.
    write(report, options.json)
    if options.output:
        models.save(options.output, run.best, metadata(report["metrics"]))
    add_predictions(report, run.best, val, options, device)
    write(report, options.json)
    show(report["metrics"])


class Run:
    """Training run with a time limit. `best` is the network with the highest validation mIoU so far."""

    def __init__(self, options: argparse.Namespace, train: Split, val: Split, device: torch.device) -> None:
        self.options, self.val, self.device = options, val, device
        architecture = models.Architecture(
            options.backbone, len(CLASSES), stem=options.stem, auxiliary=options.auxiliary > 0, dropout=options.dropout
        )
        network = models.PSPNet(architecture).to(device)
        self.best, self.best_miou = copy.deepcopy(network).to(memory_format=torch.channels_last).eval(), -1.0
        self.step = training_step(network, train, options, device)
        crop, scale = tuple(options.crop), tuple(options.scale)
        augment = Augment(crop, scale, options.rotation, options.mirror, options.blur, options.jitter, options.padding)
        self.batches = training_batches(train, augment, MEAN, IGNORE, options.batch, options.seed)
        self.num_images = len(train.names)
        self.history: list[dict[str, float]] = []
        self.num_steps, self.seconds_stepping = 0, 0.0

    def train(self) -> None:
        """Train until the time is up, and validate at intervals. The schedule follows the time, not the steps."""
        options, budget = self.options, 60 * self.options.minutes
        started, next_validation = time.perf_counter(), options.every
        while True:
            begin = time.perf_counter()
            loss = self._some_steps(started, budget)
            end = time.perf_counter()
            self.seconds_stepping += end - begin
            if not math.isfinite(loss):
                raise SystemExit(f"The loss became {loss} by step {self.num_steps}; lower --learning-rate.")
            seconds = end - started
            if seconds >= min(next_validation, budget):
                self._validate(loss, seconds)
                next_validation = time.perf_counter() - started + options.every
            if seconds >= budget:
                return

    def _some_steps(self, started: float, budget: float) -> float:
        """Run STEPS_AT_ONCE steps, or as many as the time allows but at least one. Return their mean loss."""
        losses: list[Tensor] = []
        while len(losses) < STEPS_AT_ONCE:
            passed = (time.perf_counter() - started) / budget
            if passed >= 1 and losses:
                break
            rate = self.options.learning_rate * (1 - min(passed, 1.0)) ** self.options.power
            rate *= min(1.0, (self.num_steps + 1) / (self.options.warmup + 1))
            losses.append(self.step(*next(self.batches), rate).main)
            self.num_steps += 1
        return float(torch.stack(losses).mean())

    def _validate(self, loss: float, seconds: float) -> None:
        network = self.step.averaged
        scores = metrics(confusion(network, self.val, self.device))
        if scores["miou"] > self.best_miou:
            self.best_miou = scores["miou"]
            self.best.load_state_dict(network.state_dict())
        epochs = self.num_steps * self.options.batch / self.num_images
        self.history.append(
            {"seconds": seconds, "steps": self.num_steps, "epochs": epochs, "loss": loss, "miou": scores["miou"]}
        )
        log(
            f"{seconds:6.0f} s · step {self.num_steps} · epoch {epochs:.1f} · loss {loss:.4f} · "
            f"mIoU {scores['miou']:.4f} · pixel accuracy {scores['pixel_accuracy']:.4f}"
        )

    def add_to(self, report: dict[str, Any]) -> None:
        """Add times, rate, history, and the metrics of the best network in the precision of training."""
        report["seconds"] |= {"train": self.history[-1]["seconds"], "steps": self.seconds_stepping}
        report |= {"steps": self.num_steps, "history": self.history, "last_miou": self.history[-1]["miou"]}
        report["images_per_second"] = self.num_steps * self.options.batch / self.seconds_stepping
        if self.device.type == "cuda":
            report["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        report["metrics"] = {"network": metrics(confusion(self.best, self.val, self.device))}


def training_step(
    network: models.PSPNet, train: Split, options: argparse.Namespace, device: torch.device
) -> TrainingStep:
    """Return the training step for the options."""
    weights = median_frequency_weights(train.labels_NHW, len(CLASSES), options.balance) if options.balance else []
    loss = LossOptions(
        auxiliary_weight=options.auxiliary,
        class_weights=tuple(weights),
        label_smoothing=options.smoothing,
        ohem_threshold=options.ohem,
        dice_weight=options.dice,
        lovasz_weight=options.lovasz,
        ignore_index=IGNORE,
    )
    step_options = StepOptions(
        loss=loss,
        batch_norm="plain",
        precision=options.precision,
        clip_norm=options.clip,
        ema_decay=options.ema,
        compile=options.compile,
    )
    optimizer = sgd(network, options.learning_rate, options.head_factor, options.momentum, options.weight_decay)
    return TrainingStep(network, optimizer, MEAN, STD, device, step_options)


@torch.inference_mode()
def confusion(network: models.PSPNet, split: Split, device: torch.device) -> Tensor:
    """Return pixel counts (K, K), rows are the truth, of whole images labeled as by the Predictor.

    Does not use a Predictor, which would be compiled again for every validation on a GPU.
    """
    mean_311, std_311 = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    height, width = split.labels_NHW.shape[1:]
    align_corners = network.architecture.align_corners
    rows, columns = padded_size((height, width), align_corners)
    counts = torch.zeros(len(CLASSES) ** 2, dtype=torch.int64, device=device)
    was_training = network.training
    network.eval()
    for part_N3HW, labels_NHW in zip(
        split.images_N3HW.split(VALIDATION_BATCH), split.labels_NHW.split(VALIDATION_BATCH), strict=True
    ):
        images_N3HW = F.pad((part_N3HW - mean_311) / std_311, (0, columns - width, 0, rows - height))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_native_bfloat16(device)):
            # forward() instead of __call__(), which may be compiled for the training crops.
            logits_NKhw = network.forward(images_N3HW.contiguous(memory_format=torch.channels_last))
        assert isinstance(logits_NKhw, Tensor)
        logits_NKHW = F.interpolate(logits_NKhw.float(), (rows, columns), mode="bilinear", align_corners=align_corners)
        class_ids_NHW = logits_NKHW[..., :height, :width].argmax(1)
        counts += counted(labels_NHW, class_ids_NHW)
    network.train(was_training)
    return counts.view(len(CLASSES), len(CLASSES)).cpu()


def counted(labels_NHW: Tensor, class_ids_NHW: Tensor) -> Tensor:
    """Return pixel counts by true and predicted class, (K * K,)."""
    labelled_NHW = labels_NHW != IGNORE
    pairs = labels_NHW[labelled_NHW].long() * len(CLASSES) + class_ids_NHW[labelled_NHW].long()
    return torch.bincount(pairs, minlength=len(CLASSES) ** 2)


def metrics(confusion_KK: Tensor) -> dict[str, Any]:
    """Return pixel accuracy, IoU by class, and mIoU over the classes that occur in truth or prediction."""
    correct_K = confusion_KK.diagonal().double()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - correct_K
    iou_K = correct_K / union_K
    return {
        "miou": float(iou_K[union_K > 0].mean()),
        "pixel_accuracy": float(correct_K.sum() / confusion_KK.sum()),
        "iou": {name: float(iou) for name, iou, union in zip(CLASSES, iou_K, union_K, strict=True) if union},
    }


def add_predictions(
    report: dict[str, Any], network: models.PSPNet, val: Split, options: argparse.Namespace, device: torch.device
) -> None:
    """Add the metrics of the best network with models.Predictor and, with protocol_scales, models.SlidingPredictor."""
    predictor = models.Predictor(network, MEAN, STD, device, "auto")
    predictors: dict[str, Any] = {"predictor": predictor}
    if options.protocol_scales:
        protocol = models.Protocol(
            base_size=None, crop=options.protocol_crop, mirror=True, scales=tuple(options.protocol_scales)
        )
        predictors["protocol"] = models.SlidingPredictor(predictor, protocol)
    for name, each in predictors.items():
        begin = time.perf_counter()
        counts = torch.zeros(len(CLASSES) ** 2, dtype=torch.int64)
        for image_3HW, label_HW in zip(val.images_N3HW, val.labels_NHW.cpu(), strict=True):
            prediction = each.predict(image_3HW.permute(1, 2, 0)[None].contiguous())
            counts += counted(label_HW[None], torch.from_numpy(prediction.class_ids_NHW))
        report["metrics"][name] = metrics(counts.view(len(CLASSES), len(CLASSES)))
        report["seconds"][name] = time.perf_counter() - begin


def metadata(found: dict[str, Any]) -> models.Metadata:
    colors = list(CLASSES.values())
    return models.Metadata(list(CLASSES), colors, ignore_index=IGNORE, metrics={"split": "val", **found["network"]})


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a table with a column for each predictor and a row for each class."""
    log("".join(f"{name:>12}" for name in ("", *found)))
    for row in ("miou", "pixel_accuracy"):
        log("".join([f"{row.replace('_', ' '):>14}", *(f"{scores[row]:12.4f}" for scores in found.values())]))
    for name in CLASSES:
        log("".join([f"{name:>14}", *(f"{scores['iou'].get(name, math.nan):12.4f}" for scores in found.values())]))


def write(report: dict[str, Any], path: str | None) -> None:
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n")


def log(line: str) -> None:
    print(line, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="folder with images/ and annotations/")
    add("--output", help="checkpoint folder to write")
    add("--json", help="file to write the result to")
    add("--commit", help="commit of the code, if git is not available")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device (cuda if available, else cpu)")
    add("--minutes", type=float, default=10, help="minutes of training (10)")
    add("--every", type=float, default=60, help="seconds between validations (60)")
    add("--seed", type=int, default=0, help="seed of weights, order and augmentation (0)")
    network = parser.add_argument_group("network")
    add = network.add_argument
    add("--backbone", default="resnet50", choices=models.pspnet.BACKBONES, help="backbone (resnet50)")
    add("--stem", default="deep", choices=("plain", "deep"), help="one 7x7 convolution, or three 3x3 (deep)")
    add("--dropout", type=float, default=0.1, help="fraction of channels dropped before each classifier (0.1)")
    add("--auxiliary", type=float, default=0.4, help="weight of the auxiliary loss; 0: no auxiliary head (0.4)")
    augment = parser.add_argument_group("augmentation")
    add = augment.add_argument
    add("--crop", type=int, nargs=2, default=(361, 481), help="rows and columns of a crop, 8n + 1 each (361 481)")
    add("--scale", type=float, nargs=2, default=(0.5, 2.0), help="smallest and largest scale factor (0.5 2)")
    add("--rotation", type=float, default=10, help="largest rotation in degrees, in both directions (10)")
    add("--mirror", type=float, default=0.5, help="probability of mirroring (0.5)")
    add("--blur", type=float, default=0.0, help="probability of blurring (0)")
    add("--jitter", type=float, default=0.0, help="largest relative change of brightness, contrast and saturation (0)")
    add("--padding", default="mean", choices=("mean", "reflect"), help="content outside the image (mean)")
    recipe = parser.add_argument_group("recipe")
    add = recipe.add_argument
    add("--batch", type=int, default=16, help="crops per step (16)")
    add("--learning-rate", type=float, default=0.02, help="initial learning rate of the backbone (0.02)")
    add("--head-factor", type=float, default=2.0, help="learning rate of the heads relative to the backbone (2)")
    add("--warmup", type=int, default=0, help="steps of linear warmup (0)")
    add("--power", type=float, default=0.9, help="power of the poly schedule (0.9)")
    add("--momentum", type=float, default=0.9, help="momentum of SGD (0.9)")
    add("--weight-decay", type=float, default=1e-4, help="weight decay of SGD (1e-4)")
    add("--clip", type=float, help="maximum norm of the gradients (no limit)")
    add("--ema", type=float, help="decay of the exponential moving average of the weights (no average)")
    add("--precision", default="auto", choices=get_args(Precision), help="precision of the forward pass (auto)")
    add("--compile", action="store_true", help="compile the network for training")
    loss = parser.add_argument_group("loss")
    add = loss.add_argument
    add("--balance", type=float, default=0.0, help="exponent of median-frequency class weights; 0: all weights 1 (0)")
    add("--ohem", type=float, help="online hard example mining: use only pixels below this probability (no mining)")
    add("--smoothing", type=float, default=0.0, help="label smoothing (0)")
    add("--dice", type=float, default=0.0, help="weight of the Dice loss (0)")
    add("--lovasz", type=float, default=0.0, help="weight of the Lovasz loss (0)")
    final = parser.add_argument_group("test protocol of the paper, run at the end")
    add = final.add_argument
    add("--protocol-scales", type=float, nargs="+", default=(), help="scales to average, also mirrored (skipped)")
    add("--protocol-crop", type=int, default=473, help="side of the crops, pixels (473)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
