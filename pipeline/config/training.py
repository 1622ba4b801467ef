"""How a network is built, trained and validated: the sections of jobs/train.py's configuration beside the dataset's."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.loading import Section

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Bin = Annotated[int, Field(ge=1, le=256)]


class ModelConfig(Section):
    """The network. The defaults are the paper's PSPNet50."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet269"] = Field(
        "resnet50", description="Depth of the dilated ResNet."
    )
    stem: Literal["plain", "deep"] = Field("plain", description="One 7x7 convolution, or three 3x3.")
    stem_channels: tuple[int, int, int] = Field((64, 64, 128), description="Channels of the deep stem.")
    contract_dilation: bool = Field(
        False, description="Halve the dilation in a stage's first block, as MMSegmentation and torchvision do."
    )
    dilate_second: bool = Field(
        True, description="Dilate both convolutions of ResNet-18's and 34's blocks; false: as MMSegmentation."
    )
    bins: tuple[Bin, ...] = Field(
        (1, 2, 3, 6), max_length=64, description="Pyramid levels, cells per side; empty for none."
    )
    pooling: Literal["average", "max"] = Field("average", description="Pooling inside a pyramid cell.")
    reduce: bool = Field(True, description="Reduce each level's channels by a 1x1 convolution.")
    auxiliary: bool = Field(True, description="Train with an auxiliary head after res4 (torchvision's layer3).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of channels dropped before each classifier.")
    align_corners: bool = Field(True, description="Grid convention of every bilinear upsampling.")


class AugmentConfig(Section):
    """Random changes to each training image; one resampling does them all."""

    crop: tuple[int, int] = Field((473, 473), description="Height and width of a training crop, pixels.")
    scale: tuple[float, float] = Field((0.5, 2.0), description="Smallest and largest random scale.")
    rotation: float = Field(10.0, ge=0, le=180, description="Largest random rotation either way, degrees.")
    mirror: Unit = Field(0.5, description="Probability of a left-right mirror.")
    blur: Unit = Field(0.5, description="Probability of a 5x5 Gaussian blur.")
    padding: Literal["mean", "reflect"] = Field(
        "mean", description="Image outside its borders: the mean colour, or reflected; labels are ignored there."
    )

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentConfig":
        if min(self.crop) < 64:
            raise ValueError(f"crop {list(self.crop)} is too small for the pyramid; use at least 64 pixels a side")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two positive numbers, the smaller first")
        return self


class LossConfig(Section):
    """What is minimised. The default is the paper's: mean cross-entropy over the labelled pixels."""

    auxiliary_weight: float = Field(0.4, ge=0, description="Weight of the auxiliary head's loss.")
    class_weights: tuple[Positive, ...] = Field((), description="Weight of each class in order; empty: all alike.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of a label given to all classes evenly.")
    ohem_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Online hard example mining: only pixels whose class has less than this probability count; "
        "none: all count.",
    )
    ohem_min_kept: float = Field(0.0625, gt=0, le=1, description="The least share of an image's pixels that count.")
    dice_weight: float = Field(0.0, ge=0, description="Weight of the Dice loss, beside cross-entropy.")
    lovasz_weight: float = Field(0.0, ge=0, description="Weight of the Lovász-softmax loss, beside cross-entropy.")


class OptimizationConfig(Section):
    """SGD with the poly schedule. The defaults are the paper's."""

    epochs: int = Field(100, ge=1, description="Passes over the training split.")
    batch_size: int = Field(
        16, ge=1, description="Images per step over all workers together, however many workers there are."
    )
    micro_batch: int | None = Field(
        None, ge=1, description="Most images that a worker takes at once; a larger share is accumulated; none: all."
    )
    learning_rate: float = Field(0.01, gt=0, description="Of the backbone at the start; poly decay to 0.")
    head_rate_factor: float = Field(10.0, gt=0, description="Learning rate of the new layers over the backbone's.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty.")
    power: float = Field(0.9, gt=0, description="Exponent of the poly schedule, applied per step.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises linearly to the schedule.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of all gradients together; none: no limit.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Validate and keep a moving average of the weights, of this decay; none: no."
    )
    batch_norm: Literal["synchronized", "plain", "frozen"] = Field(
        "synchronized", description="Over all workers, over each one's images, or the backbone's as it was loaded."
    )
    batch_norm_workers: int | None = Field(
        None,
        ge=2,
        description="Workers, at the least, over which synchronized statistics extend; none: all, which takes the time "
        "of a message from each to each in every layer.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="float32, or autocast to bfloat16 or to float16 with a loss scaler; auto: bfloat16 where the "
        "hardware computes in it, else float32.",
    )
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    activation_checkpointing: bool = Field(
        False, description="Compute the backbone's activations again in the backward pass: less memory, more time."
    )
    seed: int = Field(0, ge=0, description="Of weights, shuffling and augmentation.")
    log_every: int = Field(10, ge=1, description="Steps between progress lines.")

    @property
    def prediction_precision(self) -> str:
        """For `models.Predictor`, which has no float16: it needs no scaler, and bfloat16 has float32's range."""
        return "auto" if self.precision == "float16" else self.precision


class WorkersConfig(Section):
    """Ray Train workers: one process and one model replica each."""

    count: Annotated[
        tuple[Count, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)
    ] = Field(
        (1,),
        min_length=1,
        max_length=2,
        description="Number of workers; or two: at least and at most, as many as the cluster has.",
    )
    gpu: bool = Field(False, description="One GPU for each worker; otherwise CPU.")
    cpus: int = Field(1, ge=1, description="CPUs reserved for each worker (threads of a CPU worker).")
    ingest_cpus: int = Field(1, ge=1, description="CPUs that decode and augment for each worker, anywhere.")
    max_failures: int = Field(3, ge=0, description="Restarts from the last checkpoint after a worker is lost.")

    @model_validator(mode="after")
    def _ordered(self) -> "WorkersConfig":
        if self.fewest > self.most:
            raise ValueError(f"count {list(self.count)} must have the smaller number first")
        return self

    @property
    def fewest(self) -> int:
        """Workers without which training does not go on."""
        return self.count[0]

    @property
    def most(self) -> int:
        """Workers that are used if the cluster has them."""
        return self.count[-1]


class ProtocolConfig(Section):
    """How whole images are labelled. The paper's protocol is sliding, with mirror and six scales for its ms figures."""

    mode: Literal["whole", "sliding"] = Field("whole", description="Each image at once, or in overlapping crops.")
    scales: tuple[Positive, ...] = Field(
        (1.0,), min_length=1, description="Scales whose probabilities are averaged (the paper's: 0.5 to 1.75)."
    )
    mirror: bool = Field(False, description="Average with the mirror image, too.")
    crop: int = Field(473, ge=64, description="Side of a sliding crop, pixels.")
    base_size: int | None = Field(
        512, ge=64, description="Sliding: long side of an image at scale 1, pixels; none: its own."
    )

    @property
    def is_plain(self) -> bool:
        """Whether each image goes through the network once, as it is."""
        return self.mode == "whole" and not self.mirror and self.scales == (1.0,)


class ValidationConfig(Section):
    """Validation beside training, by the predictor that labels buckets."""

    every: int = Field(1, ge=1, description="Epochs from one validation to the next; the last epoch always has one.")
    asynchronous: bool = Field(
        True, description="Train on while a checkpoint is validated; false: wait for its metrics."
    )
    gpu: bool = Field(False, description="Predict on GPUs of its own, one for each predictor; otherwise CPU.")
    predictors: int = Field(1, ge=1, description="Actors that predict.")
    predictor_cpus: int = Field(1, ge=1, description="CPUs reserved for each predictor (threads of a CPU one).")
    protocol: ProtocolConfig = ProtocolConfig()


class TrackingConfig(Section):
    """What is written down beside checkpoints, to look at."""

    tensorboard: bool = Field(True, description="Write TensorBoard events to OUTPUT/tensorboard.")
    mlflow: str | None = Field(None, description="MLflow tracking URI to log to as well; none: no.")
    panel: int = Field(4, ge=0, description="Validation images shown with truth and prediction, always the same.")

    @model_validator(mode="after")
    def _no_password(self) -> "TrackingConfig":
        if self.mlflow and re.search(r"://[^/]*@", self.mlflow):
            raise ValueError(
                "the URI of mlflow must not hold a user or password, which would be written down with the run; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return self
