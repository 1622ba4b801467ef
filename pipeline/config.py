"""The settings of every job, one pydantic model each."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.data_config import CalibrationData, DataConfig
from pipeline.recipe import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    OptimizationConfig,
    TrackingConfig,
    ValidationConfig,
    WorkersConfig,
)
from pipeline.settings import JobSettings


class TrainConfig(JobSettings):
    """Train a PSPNet on a Ray cluster. Run the same command again to resume."""

    output: str = Field(description="Folder or URI of this run: checkpoints, best/ and last/.")
    weights: str | None = Field(
        None,
        description="Checkpoint folder to start from, a path or URI (jobs/import_weights.py makes one of ImageNet's "
        "backbones); heads are taken over where the classes are the same. None: from scratch.",
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next; none: one at the end of each epoch."
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    workers: WorkersConfig = WorkersConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.model.align_corners and any(side % 8 != 1 for side in self.augment.crop):
            raise ValueError(
                f"augment.crop {list(self.augment.crop)} must be multiples of 8 plus 1 (such as 129, 473, 713) "
                "with model.align_corners, so that the stride-8 grid meets the crop's corners"
            )
        if self.optimization.batch_size < self.workers.most:
            raise ValueError(
                f"optimization.batch_size {self.optimization.batch_size} leaves some of the "
                f"{self.workers.most} workers without an image; raise it or lower workers.count"
            )
        weights = self.loss.class_weights
        if weights and len(weights) != len(self.data.classes):
            raise ValueError(
                f"loss.class_weights has {len(weights)} numbers for {len(self.data.classes)} classes; give one for each"
            )
        if self.optimization.batch_norm == "frozen" and self.weights is None:
            raise ValueError(
                "optimization.batch_norm: frozen keeps the statistics that the backbone was loaded with, but weights "
                "names none; set weights, or use synchronized"
            )
        return self


class SegmentConfig(JobSettings):
    """Label every image under a prefix or glob; write masks and statistics to Parquet. Run again to resume."""

    input: str = Field(description="Prefix or glob of images, a path or URI: s3://bucket/photos/ or .../*.jpg.")
    output: str = Field(description="Folder or URI of the tables.")
    checkpoint: str = Field(description="Checkpoint folder: RUN/best of a training run, a path or URI.")
    gpu: bool = Field(False, description="Predict on GPUs, one for each predictor; otherwise CPU.")
    predictors: int | None = Field(
        None, ge=1, description="Number of predictor actors; none: one for each GPU, or each CPU node, that is up."
    )
    predictor_cpus: int | None = Field(
        None, ge=1, description="CPUs of each predictor; none: 1 with a GPU, otherwise all of a node's."
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Arithmetic of the network; auto: bfloat16 where the hardware computes in it; int8: CPUs, for a "
        "checkpoint that jobs/calibrate.py has calibrated.",
    )
    batch_size: int = Field(8, ge=1, description="Most images of one size that are predicted together.")
    rows_per_part: int = Field(1024, ge=1, description="Images per Parquet part, at the least.")
    max_pixels: int = Field(100_000_000, ge=1, description="Larger images become error rows, pixels.")
    long_side: int | None = Field(
        None,
        ge=64,
        description="Shrink images to this long side to predict them, pixels; none: as the checkpoint says.",
    )

    @model_validator(mode="after")
    def _int8_on_cpus(self) -> "SegmentConfig":
        if self.precision == "int8" and self.gpu:
            raise ValueError("precision int8 is for CPUs; leave out --gpu, or use --precision bfloat16 with it")
        return self


class CalibrateConfig(JobSettings):
    """Find out how to label in int8 on CPUs, and whether that is good enough; if so, note it in the checkpoint."""

    checkpoint: str = Field(description="Checkpoint folder: RUN/best of a training run, a path or URI.")
    output: str = Field(description="Folder or URI for the calibrated checkpoint; may be the same folder.")
    data: CalibrationData
    calibration_images: int = Field(
        32, ge=1, description="Images of the training split that show the ranges of activations, at the most."
    )
