"""The settings of every job, one pydantic model each."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from pipeline.config.data import MAX_PIXELS, DataConfig, EvalDataConfig
from pipeline.config.inputs import SOURCES, InputConfig
from pipeline.config.loading import JobSettings, Texts
from pipeline.config.training import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    OptimizationConfig,
    ProtocolConfig,
    TrackingConfig,
    ValidationConfig,
    WorkersConfig,
)


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
        self._require_statistics()
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

    def _require_statistics(self) -> None:
        """Raise ValueError if pyramid bin 1 would be normalised over a single image."""
        recipe = self.optimization
        share = recipe.batch_size // self.workers.most
        passes = -(-share // recipe.micro_batch) if recipe.micro_batch else 1
        synchronized = min(self.workers.fewest, recipe.batch_norm_workers or self.workers.fewest)
        together = share // passes * (1 if recipe.batch_norm == "plain" else synchronized)
        if together == 1 and 1 in self.model.bins and self.model.reduce:
            raise ValueError(
                f"optimization: batch_size {recipe.batch_size} over {self.workers.most} worker(s), with micro_batch "
                f"{recipe.micro_batch} and batch_norm {recipe.batch_norm}, gives the BatchNorm of pyramid bin 1 a "
                "single value per channel; use a larger batch_size or micro_batch, or synchronized batch_norm over "
                "more workers"
            )


class AblateConfig(TrainConfig):
    """Train variations of a recipe as the paper's ablations do and print its tables. Run again to resume."""

    output: str = Field(description="Folder or URI of the ablation: runs/, results.parquet and ablation.md.")
    experiments: tuple[Literal["pooling", "auxiliary", "depth", "scales"], ...] = Field(
        ("pooling", "auxiliary", "depth", "scales"), min_length=1, description="Which of the paper's tables to fill."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="Each setting is trained once with each; optimization.seed is not used."
    )
    poolings: tuple[Literal["max", "average"], ...] = Field(
        ("max", "average"), min_length=1, description="pooling: what to do inside a pyramid cell."
    )
    reductions: tuple[bool, ...] = Field(
        (False, True), min_length=1, description="pooling: without and with dimension reduction."
    )
    auxiliary_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0, 0.3, 0.4, 0.6, 0.9),
        min_length=1,
        description="auxiliary: weights of that loss, on the network without pooling; 0: without that head.",
    )
    backbones: tuple[Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet269"], ...] = Field(
        ("resnet50", "resnet101", "resnet152", "resnet269"),
        min_length=1,
        description="depth and scales: backbones of the whole PSPNet; `{backbone}` in weights stands for their names.",
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1, description="scales: those of multi-scale testing, mirrored."
    )
    trials_at_once: int | None = Field(
        None, ge=1, description="Trainings that run at the same time; none: as many as the cluster holds."
    )

    @model_validator(mode="after")
    def _grid(self) -> "AblateConfig":
        for name in ("experiments", "seeds", "poolings", "reductions", "auxiliary_weights", "backbones", "scales"):
            values = getattr(self, name)
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ValueError(f"{name} names {', '.join(twice)} more than once; name each once")
        trained = {*self.backbones} if {"depth", "scales"} & {*self.experiments} else set()
        if {"pooling", "auxiliary"} & {*self.experiments}:
            trained.add(self.model.backbone)
        if self.weights and len(trained) > 1 and "{backbone}" not in self.weights:
            raise ValueError(
                f"weights {self.weights} can fit one backbone only, and the experiments train {len(trained)}; write "
                "{backbone} in place of its name, as in s3://bucket/imagenet-{backbone}"
            )
        return self


class PredictConfig(JobSettings):
    """What every job says that predicts on a cluster."""

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

    @model_validator(mode="after")
    def _int8_on_cpus(self) -> "PredictConfig":
        if self.precision == "int8" and self.gpu:
            raise ValueError("precision int8 is for CPUs; leave out --gpu, or use --precision bfloat16 with it")
        return self


class SegmentConfig(InputConfig, PredictConfig):
    """Label every image of prefixes, lists or tables; write masks and statistics to Parquet. Run again to resume."""

    output: str = Field(description="Folder or URI of the tables.")
    batch_size: int | None = Field(
        None, ge=1, description="Most images of one size that are predicted together; none: 8 with GPUs, 32 on CPUs."
    )
    rows_per_part: int | None = Field(
        None,
        ge=1,
        description="Images per Parquet part, at the least, which a killed run may lose; none: as many as make about "
        "256 MB, but no more than 256 or a 64th of what is known to be left.",
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, description="Larger images become error rows, unless they are read by window; pixels."
    )
    max_bytes: int = Field(1_000_000_000, ge=1, description="Larger files become error rows, not downloaded; bytes.")
    decode_seconds: float = Field(
        60, gt=0, le=1_000_000, description="Images that take more processor time to decode become error rows, seconds."
    )
    long_side: int | None = Field(
        None,
        ge=64,
        description="Shrink images to this long side to predict them, pixels; none: as the checkpoint says.",
    )
    protocol: ProtocolConfig = ProtocolConfig()
    retry_errors: tuple[str, ...] = Field(
        (),
        description="Kinds of failures, as the column error_type has them, to try again; 'all': every kind. The new "
        "rows take the place of the old ones.",
    )
    relabel_changed: bool = Field(False, description="Label images again whose ETag is another one than their row's.")
    max_error_rate: float = Field(
        0.5, ge=0, le=1, description="Give up when a larger share of the images, of 200 or more, has failed; 1: never."
    )
    price_per_hour: float | None = Field(
        None, ge=0, description="Of the cluster, in any currency, to show what the run has cost; none: not shown."
    )
    plan: bool = Field(
        False, description="Label a small sample, say what all would take, and stop; the output stays as it is."
    )
    plan_images: int = Field(
        256, ge=1, description="Images of that sample; more where that would be less than 32 for each predictor."
    )
    plan_nodes: int | None = Field(
        None, ge=1, description="Tell also what a cluster of so many such nodes would take; none: as it is now."
    )


class ValidateDatasetConfig(JobSettings):
    """Read a whole dataset once on the cluster and report all that is wrong with it. Exit code 1: there are errors."""

    # A training's recipe serves as it is: its other sections are not looked at.
    model_config = SettingsConfigDict(extra="ignore")

    data: DataConfig
    splits: list[str] | None = Field(
        None, min_length=1, description="Splits to read; none: those to train and to validate on."
    )
    output: str | None = Field(
        None, description="Folder or URI for dataset.json and dataset.html; none: print the summary alone."
    )


class CalibrateConfig(JobSettings):
    """Find out how to label in int8 on CPUs, and whether that is good enough; if so, note it in the checkpoint."""

    checkpoint: str = Field(description="Checkpoint folder: RUN/best of a training run, a path or URI.")
    output: str = Field(description="Folder or URI for the calibrated checkpoint; may be the same folder.")
    data: EvalDataConfig
    calibration_images: int = Field(
        32, ge=1, description="Images of the training split that show the ranges of activations, at the most."
    )


class EvaluateConfig(PredictConfig):
    """Compare a checkpoint's labels with the annotations of a dataset's validation split."""

    output: str | None = Field(
        None, description="Folder or URI for metrics, tables, pictures and evaluation.html; none: print alone."
    )
    data: EvalDataConfig
    protocol: ProtocolConfig = ProtocolConfig()
    boundary: bool = Field(True, description="Boundary IoU, too, which takes some time for large images.")
    worst: int = Field(6, ge=0, description="Images of the lowest mIoU that evaluation.html shows.")
    fit_temperature: str | None = Field(
        None,
        description="Fit a temperature that makes confidences as right as they say, and write the checkpoint with it "
        "to this folder or URI; none: no.",
    )


class VerifyConfig(InputConfig):
    """Check all that must be true of an output, and mend it on request. Exit code 1: something is wrong with it."""

    output: str = Field(description="Folder or URI that jobs/segment_bucket.py wrote.")
    deep: bool = Field(False, description="Decode every mask, too, and compare it with its statistics.")
    repair: bool = Field(
        False, description="Mend what can be mended, so that the next run completes the output; no run may be at work."
    )

    @model_validator(mode="after")
    def _sources(self) -> "VerifyConfig":
        # Unlike a run: without inputs the output is checked for itself, with them each image must have its row.
        return self

    @property
    def has_inputs(self) -> bool:
        return any(getattr(self, source) for source in SOURCES)


class DoctorConfig(JobSettings):
    """Check a Ray cluster before work goes to it. Exit code 1: something has to be mended, and how is said."""

    storage: str | None = Field(
        None,
        description="Folder or URI that every node writes to, reads from and cleans up; none: storage is not checked.",
    )
    storage_megabytes: int = Field(
        64, ge=1, le=2000, description="Written and read by each node, twice, to measure its bandwidth, MB."
    )


class ExportMasksConfig(JobSettings):
    """Export an output's masks to other programs' formats (docs/exports.md). Run again to go on where it stopped."""

    labels: str = Field(description="Folder or URI that jobs/segment_bucket.py wrote (its --output).")
    target: str = Field(description="Folder or URI for the export: empty, or of the same export, which then goes on.")
    format: Literal["png", "overlay", "coco-panoptic", "coco-rle", "cityscapes", "yolo-seg", "fiftyone", "dataset"] = (
        Field("png", description="What to make of the masks.")
    )
    where: str | None = Field(
        None,
        description='SQL condition on the table masks that chooses images, as in "mean_confidence > 0.9"; subqueries '
        "may ask class_stats, too. None: all labelled images.",
    )
    strip: str | None = Field(
        None,
        description="Folder that is left out of the images' names; none: the longest that all chosen images lie in.",
    )
    split: str = Field(
        "train",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$",
        description="cityscapes, yolo-seg, dataset: the folder of the split.",
    )
    copy_images: bool = Field(True, description="cityscapes, yolo-seg, fiftyone: copy the images there, too.")
    opacity: float = Field(0.5, ge=0, le=1, description="overlay: of the classes' colours.")
    things: Texts = Field(
        (), description="coco-panoptic: class whose connected regions are segments of their own. Several: repeat it."
    )
    label_ids: dict[str, Annotated[int, Field(ge=0, le=255)]] = Field(
        {}, description="cityscapes: class name -> label id; those that Cityscapes trains on are known by name."
    )
    min_area: int = Field(16, ge=1, description="yolo-seg: smaller regions are left out, pixels.")
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="dataset: pixels of less confidence get the ignore index, for which the images are labelled again; "
        "none: all pixels are kept.",
    )
    checkpoint: str | None = Field(
        None, description="dataset with min_confidence: the checkpoint that the output was labelled with."
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None = Field(
        None, description="dataset with min_confidence: arithmetic of the network; none: that of the last run."
    )

    @model_validator(mode="after")
    def _confidence_of_a_dataset(self) -> "ExportMasksConfig":
        if (self.min_confidence is None) != (self.checkpoint is None):
            raise ValueError(
                "min_confidence and checkpoint go together: an output has no confidence of single pixels, so the "
                "images are labelled again; give both or neither"
            )
        if self.min_confidence is not None and self.format != "dataset":
            raise ValueError(
                f"min_confidence is for format dataset alone, but the format is {self.format}; leave it out"
            )
        return self
