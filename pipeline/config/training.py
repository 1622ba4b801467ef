"""Sections of the configuration of jobs/train.py, except the dataset: network, training and validation."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config.fields import Section, Uri

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Bin = Annotated[int, Field(ge=1, le=256)]


class ModelConfig(Section):
    """Network architecture. The defaults are the paper's PSPNet50."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet269"] = Field(
        "resnet50", description="Depth of the dilated ResNet."
    )
    width: int = Field(
        64,
        ge=8,
        le=512,
        description="Channels of the backbone's first stage, which all other layers are in proportion to. Published "
        "weights have 64; fewer make a smaller and faster network.",
    )
    stem: Literal["plain", "deep"] = Field(
        "plain", description="Stem of the backbone: one 7x7 convolution (plain) or three 3x3 convolutions (deep)."
    )
    stem_channels: tuple[int, int, int] = Field(
        (64, 64, 128), description="Output channels of the three convolutions of the deep stem."
    )
    contract_dilation: bool = Field(
        False, description="Halve the dilation in the first block of a stage, as MMSegmentation and torchvision do."
    )
    dilate_second: bool = Field(
        True,
        description="Dilate both convolutions of a block in ResNet-18 and ResNet-34; if false, only the first, as "
        "MMSegmentation does.",
    )
    bins: tuple[Bin, ...] = Field(
        (1, 2, 3, 6),
        max_length=64,
        description="Cells per side of each level of the pyramid; empty disables pyramid pooling.",
    )
    pooling: Literal["average", "max"] = Field("average", description="Pooling operation inside a pyramid cell.")
    reduce: bool = Field(True, description="Reduce the channels of each pyramid level with a 1x1 convolution.")
    auxiliary: bool = Field(True, description="Train with an auxiliary head after res4 (layer3 in torchvision).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability of a channel before each classifier.")
    align_corners: bool = Field(True, description="Use align_corners in every bilinear upsampling.")


class AugmentConfig(Section):
    """Random augmentation of the training images, applied in a single resampling step."""

    crop: tuple[int, int] = Field((473, 473), description="Height and width of a training crop in pixels.")
    scale: tuple[float, float] = Field((0.5, 2.0), description="Minimum and maximum random scale.")
    short_side: int | None = Field(
        None,
        ge=64,
        description="Short side of an image at scale 1 in pixels, as in MMSegmentation. If none, that of the image.",
    )
    rotation: float = Field(10.0, ge=0, le=180, description="Maximum random rotation in degrees, in either direction.")
    rotation_probability: Unit = Field(1.0, description="Probability of a rotation; 0.5 in hszhao/semseg.")
    mirror: Unit = Field(0.5, description="Probability of a horizontal flip.")
    blur: Unit = Field(0.5, description="Probability of a 5x5 Gaussian blur.")
    photometric: bool = Field(
        False,
        description="Randomly change brightness, contrast, saturation and hue, each with probability 0.5, as "
        "MMSegmentation's PhotoMetricDistortion does.",
    )
    cat_max_ratio: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw the position of a crop again, up to ten times, while one class has this share of its labeled "
        "pixels or more; 0.75 in MMSegmentation. 1 accepts every crop.",
    )
    padding: Literal["mean", "reflect"] = Field(
        "mean",
        description="Padding outside the image: the mean color, or the reflected image; its labels are ignored.",
    )

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentConfig":
        if min(self.crop) < 64:
            raise ValueError(f"crop {list(self.crop)} is too small for the pyramid; use at least 64 pixels a side")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two positive numbers, the smaller one first")
        return self


class LossConfig(Section):
    """Training loss. The default is the paper's: mean cross-entropy over the labeled pixels."""

    auxiliary_weight: float = Field(0.4, ge=0, description="Weight of the auxiliary head's loss.")
    normalization: Literal["labeled", "all"] = Field(
        "labeled",
        description="Pixels that the cross-entropy is averaged over: the labeled ones (labeled), or all pixels of the "
        "batch, ignored ones too (all), as in MMSegmentation.",
    )
    class_weights: tuple[Positive, ...] = Field(
        (), description="Weight of each class, in order of the classes; empty weights all classes equally."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing: share of a label spread evenly over all classes."
    )
    ohem_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Online hard example mining: train only on pixels whose class has a probability below this value. "
        "If none, train on all pixels.",
    )
    ohem_min_kept: float = Field(
        0.0625,
        gt=0,
        le=1,
        description="Online hard example mining: minimum share of the pixels of an image that is kept.",
    )
    dice_weight: float = Field(0.0, ge=0, description="Weight of the Dice loss, added to the cross-entropy.")
    lovasz_weight: float = Field(
        0.0, ge=0, description="Weight of the Lovász-softmax loss, added to the cross-entropy."
    )


class OptimizationConfig(Section):
    """SGD with the poly schedule. The defaults are the paper's."""

    epochs: int | None = Field(
        100, ge=1, description="Passes over the training split. Set either this or steps; the other one is none."
    )
    steps: int | None = Field(
        None, ge=1, description="Length of the training in steps. Set either this or epochs; the other one is none."
    )
    batch_size: int = Field(
        16, ge=1, description="Global batch size: images per step over all workers, whatever their number."
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Maximum number of images per forward pass of a worker; gradients of a larger share are "
        "accumulated. If none, one pass.",
    )
    learning_rate: float = Field(
        0.01, gt=0, description="Initial learning rate of the backbone, which the poly schedule decays."
    )
    min_learning_rate: float = Field(
        0.0, ge=0, description="Learning rate at the end of the poly schedule; 0.0001 in MMSegmentation."
    )
    head_rate_factor: float = Field(
        10.0, gt=0, description="Learning rate of the new layers, as a multiple of the backbone's."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay (L2 penalty).")
    power: float = Field(0.9, gt=0, description="Exponent of the poly schedule, applied per step.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear learning rate warmup up to the poly schedule.")
    clip_norm: float | None = Field(None, gt=0, description="Maximum global norm of the gradients. If none, no limit.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, which is then validated and saved. If "
        "none, no averaging.",
    )
    batch_norm: Literal["synchronized", "plain", "frozen"] = Field(
        "synchronized",
        description="BatchNorm statistics: shared by the workers (synchronized), separate for each worker (plain), or "
        "fixed to those of the pretrained backbone (frozen).",
    )
    batch_norm_workers: int | None = Field(
        None,
        ge=2,
        description="Minimum number of workers that share synchronized BatchNorm statistics. If none, all workers, "
        "which costs an all-to-all exchange in every layer.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Numeric precision: float32, autocast to bfloat16, or autocast to float16 with a loss scaler. "
        "auto: bfloat16 if the hardware supports it natively, otherwise float32.",
    )
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    activation_checkpointing: bool = Field(
        False,
        description="Recompute the backbone's activations in the backward pass: less memory, more time.",
    )
    seed: int = Field(0, ge=0, description="Random seed of initialization, shuffling and augmentation.")
    log_every: int = Field(
        10,
        ge=1,
        description="Steps between progress lines in the log; fewer in a run that would have less than ten lines.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_epochs_beside_steps(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("steps") is not None:
            return {"epochs": None} | values
        return values

    @model_validator(mode="after")
    def _schedule(self) -> "OptimizationConfig":
        if self.epochs is None and self.steps is None:
            raise ValueError("neither epochs nor steps is set; set one of them")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs is {self.epochs:,} and steps is {self.steps:,}, but only one of them can set the length of a "
                "run; set the other one to none"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}; lower it"
            )
        return self

    def total_steps(self, num_images: int) -> int:
        """Return the number of steps of a run on that many training images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return num_images // self.batch_size * self.epochs

    @property
    def prediction_precision(self) -> str:
        """Precision for `models.Predictor`, which has no float16: bfloat16 has the range of float32."""
        return "auto" if self.precision == "float16" else self.precision


class WorkersConfig(Section):
    """Ray Train workers, each with one process and one model replica."""

    count: Annotated[
        tuple[Count, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)
    ] = Field(
        (1,),
        min_length=1,
        max_length=2,
        description="Number of workers, or minimum and maximum for elastic training, which uses as many as the cluster "
        "has room for.",
    )
    gpu: bool = Field(False, description="Train on GPUs, one per worker, instead of CPUs.")
    cpus: int = Field(1, ge=1, description="CPUs reserved per worker (the number of threads of a CPU worker).")
    ingest_cpus: int = Field(
        1, ge=1, description="CPUs per worker for decoding and augmentation, on any node of the cluster."
    )
    max_failures: int = Field(
        3, ge=0, description="Maximum number of restarts from the last checkpoint after losing a worker."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "WorkersConfig":
        if self.fewest > self.most:
            raise ValueError(f"count {list(self.count)} must list the smaller number first")
        return self

    @property
    def fewest(self) -> int:
        """Minimum number of workers that training needs."""
        return self.count[0]

    @property
    def most(self) -> int:
        """Maximum number of workers, used if the cluster has room for them."""
        return self.count[-1]


class ProtocolConfig(Section):
    """Prediction of whole images. The paper uses sliding, with mirror and six scales for its multi-scale results."""

    mode: Literal["whole", "sliding"] = Field(
        "whole", description="Predict each image as a whole, or in overlapping crops (sliding)."
    )
    scales: tuple[Positive, ...] = Field(
        (1.0,),
        min_length=1,
        description="Scales over which the probabilities are averaged (in the paper, 0.5 to 1.75).",
    )
    mirror: bool = Field(False, description="Also average over the horizontally flipped image.")
    crop: int = Field(473, ge=64, description="Side of a sliding crop in pixels.")
    base_size: int | None = Field(
        512,
        ge=64,
        description="Long side of an image at scale 1 in pixels, for sliding crops. If none, that of the image.",
    )
    short_side: int | None = Field(
        None,
        ge=64,
        description="Short side of an image at scale 1 in pixels, whole or for sliding crops, as in MMSegmentation. If "
        "none, base_size applies.",
    )

    @model_serializer(mode="wrap")
    def _without_unset_short_side(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The id of a model includes its protocol. Without the new key, the ids of earlier outputs stay valid.
        values: dict[str, Any] = dump(self)
        if self.short_side is None:
            values.pop("short_side", None)
        return values

    @property
    def is_plain(self) -> bool:
        """True if each image goes through the network exactly once, unchanged."""
        return self.mode == "whole" and not self.mirror and self.scales == (1.0,) and self.short_side is None


class ValidationConfig(Section):
    """Validation during training, with the same predictor that labels buckets."""

    every: int = Field(1, ge=1, description="Epochs between validations; the last epoch is always validated.")
    asynchronous: bool = Field(
        True, description="Continue training while a checkpoint is validated; if false, wait for its metrics."
    )
    gpu: bool = Field(False, description="Validate on additional GPUs, one per predictor, instead of CPUs.")
    predictors: int = Field(1, ge=1, description="Number of predictor actors.")
    predictor_cpus: int = Field(
        1, ge=1, description="CPUs reserved per predictor (the number of threads of a CPU predictor)."
    )
    protocol: ProtocolConfig = ProtocolConfig()


class TrackingConfig(Section):
    """Experiment tracking."""

    tensorboard: bool = Field(True, description="Write TensorBoard events to OUTPUT/tensorboard.")
    mlflow: str | None = Field(None, description="MLflow tracking URI. If none, do not log to MLflow.")
    panel: int = Field(
        4, ge=0, description="Number of fixed validation images to show with their annotation and prediction."
    )
    compare: tuple[Uri, ...] = Field(
        (), description="Outputs of other runs, whose loss and mIoU the report draws in gray beside this run's."
    )

    @model_validator(mode="after")
    def _no_password(self) -> "TrackingConfig":
        if self.mlflow and re.search(r"://[^/]*@", self.mlflow):
            raise ValueError(
                "the URI of mlflow must not contain a user or password, which would be saved with the run; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return self
