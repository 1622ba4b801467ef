"""Settings of every job, one pydantic model per job."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from pipeline.config.bands import BANDS_HELP, RANGE_HELP, BandList, Rendering, ValueRange
from pipeline.config.data import MAX_PIXELS, DataConfig, EvalDataConfig
from pipeline.config.fields import JobSettings, PositionalUri, Texts, Uri
from pipeline.config.inputs import SOURCES, InputConfig
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

_BANDS = {"bands": "data.bands", "value-range": "data.value_range"}  # short names


class TrainConfig(JobSettings):
    """Train a PSPNet on a Ray cluster. To resume a run, repeat the same command."""

    examples: ClassVar[tuple[str, ...]] = (
        "--config configs/mine.yaml --root s3://bucket/dataset --output s3://bucket/runs/mine",
        "--config configs/mine.yaml --root photos --output runs/mine --epochs 20 --weights imagenet-resnet50",
    )
    short_names: ClassVar[dict[str, str]] = {
        "root": "data.root",
        "format": "data.format",
        **_BANDS,
        "backbone": "model.backbone",
        "crop": "augment.crop",
        "epochs": "optimization.epochs",
        "steps": "optimization.steps",
        "batch-size": "optimization.batch_size",
        "learning-rate": "optimization.learning_rate",
        "precision": "optimization.precision",
        "num-workers": "workers.count",
        "gpu": "workers.gpu",
    }

    output: Uri = Field(description="Output folder or URI of this run: checkpoints, best/ and last/.")
    weights: Uri | None = Field(
        None,
        description="Path or URI of a checkpoint folder to initialize the weights from; heads are loaded too if the "
        "classes match. jobs/import_weights.py imports ImageNet backbones. If none, train from scratch.",
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints. If none, save one at the end of each epoch."
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
                "with model.align_corners, so that the stride-8 grid includes the corners of the crop"
            )
        if self.optimization.batch_size < self.workers.most:
            raise ValueError(
                f"optimization.batch_size {self.optimization.batch_size} is smaller than the number of workers, "
                f"{self.workers.most}; raise it or lower workers.count"
            )
        self._require_statistics()
        weights = self.loss.class_weights
        if weights and len(weights) != len(self.data.classes):
            raise ValueError(
                f"loss.class_weights has {len(weights)} values for {len(self.data.classes)} classes; "
                "give one value per class"
            )
        if self.optimization.batch_norm == "frozen" and self.weights is None:
            raise ValueError(
                "optimization.batch_norm: frozen keeps the pretrained backbone's statistics, but no weights are set; "
                "set weights, or use synchronized"
            )
        return self

    def _require_statistics(self) -> None:
        """Raise ValueError if BatchNorm of pyramid bin 1 would normalize over a single image."""
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
    """Repeat the paper's ablation studies with a recipe and print the tables. To resume, repeat the same command."""

    examples: ClassVar[tuple[str, ...]] = (
        "--config configs/scenes_pspnet18.yaml --root s3://bucket/scenes --output s3://bucket/ablation --seeds 0,1",
        "--config configs/mine.yaml --root s3://bucket/dataset --output s3://bucket/ablation --experiments auxiliary",
    )

    output: Uri = Field(description="Output folder or URI of the ablation: runs/, results.parquet and ablation.md.")
    experiments: tuple[Literal["pooling", "auxiliary", "depth", "scales"], ...] = Field(
        ("pooling", "auxiliary", "depth", "scales"), min_length=1, description="Tables of the paper to reproduce."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="Random seeds; each setting is trained once per seed, and optimization.seed is ignored.",
    )
    poolings: tuple[Literal["max", "average"], ...] = Field(
        ("max", "average"), min_length=1, description="Experiment pooling: pooling operations to compare."
    )
    reductions: tuple[bool, ...] = Field(
        (False, True), min_length=1, description="Experiment pooling: dimension reduction off and on."
    )
    auxiliary_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0, 0.3, 0.4, 0.6, 0.9),
        min_length=1,
        description="Experiment auxiliary: weights of the auxiliary loss, for a network without pyramid pooling; 0 "
        "removes the auxiliary head.",
    )
    backbones: tuple[Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet269"], ...] = Field(
        ("resnet50", "resnet101", "resnet152", "resnet269"),
        min_length=1,
        description="Experiments depth and scales: backbones of the full PSPNet. `{backbone}` in weights is replaced "
        "by the backbone's name.",
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        min_length=1,
        description="Experiment scales: scales of multi-scale testing with mirroring.",
    )
    trials_at_once: int | None = Field(
        None, ge=1, description="Maximum number of concurrent trials. If none, as many as fit in the cluster."
    )

    @model_validator(mode="after")
    def _grid(self) -> "AblateConfig":
        for name in ("experiments", "seeds", "poolings", "reductions", "auxiliary_weights", "backbones", "scales"):
            values = getattr(self, name)
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ValueError(f"{name} lists {', '.join(twice)} more than once; remove the duplicates")
        trained = {*self.backbones} if {"depth", "scales"} & {*self.experiments} else set()
        if {"pooling", "auxiliary"} & {*self.experiments}:
            trained.add(self.model.backbone)
        if self.weights and len(trained) > 1 and "{backbone}" not in self.weights:
            raise ValueError(
                f"weights {self.weights} fits only one backbone, but the experiments train {len(trained)}; write "
                "{backbone} in place of its name, as in s3://bucket/imagenet-{backbone}"
            )
        return self


class PredictConfig(JobSettings):
    """Options shared by all jobs that predict on a cluster."""

    option_group: ClassVar[str | None] = "prediction options"

    checkpoint: Uri = Field(description="Path or URI of a checkpoint folder, such as RUN/best of a training run.")
    gpu: bool = Field(False, description="Predict on GPUs, one per predictor, instead of CPUs.")
    predictors: int | None = Field(
        None,
        ge=1,
        description="Number of predictor actors. If none, one per GPU (with --gpu) or per node that is currently up.",
    )
    predictor_cpus: int | None = Field(
        None, ge=1, description="CPUs per predictor. If none, 1 with a GPU, otherwise all CPUs of a node."
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Numeric precision of the network. auto: bfloat16 if the hardware supports it natively, otherwise "
        "float16 on GPUs and float32 on CPUs. int8: CPUs only, with a checkpoint calibrated by jobs/calibrate.py.",
    )

    @model_validator(mode="after")
    def _int8_on_cpus(self) -> "PredictConfig":
        if self.precision == "int8" and self.gpu:
            raise ValueError("precision int8 runs on CPUs only; remove --gpu, or use --precision bfloat16 with it")
        return self


class SegmentConfig(InputConfig, PredictConfig):
    """Label all images of a bucket, list or table; write masks and statistics to Parquet. To resume, run it again."""

    examples: ClassVar[tuple[str, ...]] = (
        "--input s3://bucket/photos --output s3://bucket/labels --checkpoint s3://bucket/runs/mine/best",
        "--input photos --output labels --checkpoint runs/mine/best --plan",
    )

    output: Uri = Field(description="Folder or URI for the output tables.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Maximum number of images of one size that are predicted together. If none, 8 with GPUs and 32 on "
        "CPUs.",
    )
    rows_per_part: int | None = Field(
        None,
        ge=1,
        description="Minimum number of images per Parquet part; a killed run loses its unfinished parts. If none, a "
        "part is about 256 MB, and at most 256 images or a 64th of the known remaining images, whichever is more.",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        description="Maximum image size in pixels; larger images become error rows, unless they can be read window by "
        "window.",
    )
    max_bytes: int = Field(
        1_000_000_000,
        ge=1,
        description="Maximum file size in bytes; larger files are not downloaded and become error rows.",
    )
    decode_seconds: float = Field(
        60,
        gt=0,
        le=1_000_000,
        description="Maximum CPU time to decode one image, in seconds; slower images become error rows.",
    )
    long_side: int | None = Field(
        None,
        ge=64,
        description="Shrink larger images to this long side, in pixels, before prediction; masks keep the original "
        "size. If none, use the checkpoint's value.",
    )
    bands: BandList | None = Field(None, description=BANDS_HELP + " If none, use the checkpoint's value.")
    value_range: ValueRange | None = Field(None, description=RANGE_HELP + " If none, use the checkpoint's value.")
    protocol: ProtocolConfig = ProtocolConfig()
    retry_errors: tuple[str, ...] = Field(
        (),
        description="Retry images that failed with these kinds of errors (values of the column error_type), or 'all'. "
        "The new rows replace the old ones.",
    )
    relabel_changed: bool = Field(
        False, description="Label an image again if its ETag differs from the one in its row."
    )
    max_error_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Stop the run if more than this share of at least 200 images has failed; 1 disables the check.",
    )
    price_per_hour: float | None = Field(
        None, ge=0, description="Price of the cluster per hour, in any currency, to show the cost of the run."
    )
    plan: bool = Field(
        False,
        description="Label a small sample, estimate the time and cost of the whole run, and stop; the output does not "
        "change.",
    )
    plan_images: int = Field(
        256, ge=1, description="Number of images in the sample of --plan; raised to at least 32 per predictor."
    )
    plan_nodes: int | None = Field(
        None, ge=1, description="With --plan, also estimate for a cluster with this many nodes of the same kind."
    )

    @property
    def rendering(self) -> Rendering:
        """Bands and value range of TIFFs; options that are not set are the checkpoint's."""
        return Rendering.of(self.bands, self.value_range)


class ValidateDatasetConfig(JobSettings):
    """Read a whole dataset once on the cluster and report every error in it. Exit code 1: the dataset has errors."""

    examples: ClassVar[tuple[str, ...]] = (
        "--config configs/mine.yaml --root s3://bucket/dataset",
        "--config configs/mine.yaml --root photos --output photos-report",
    )
    short_names: ClassVar[dict[str, str]] = {"root": "data.root", "format": "data.format", **_BANDS}

    # A training recipe can be passed unchanged; its other sections are ignored.
    model_config = SettingsConfigDict(extra="ignore")

    data: DataConfig
    splits: list[str] | None = Field(
        None, min_length=1, description="Splits to read. If none, the training and the validation split."
    )
    output: Uri | None = Field(
        None, description="Folder or URI for dataset.json and dataset.html. If none, only print the summary."
    )


class CalibrateConfig(JobSettings):
    """Calibrate a checkpoint for int8 on CPUs; write the result only if int8 is accurate enough."""

    examples: ClassVar[tuple[str, ...]] = (
        "--checkpoint s3://bucket/runs/mine/best --root s3://bucket/dataset --output s3://bucket/runs/mine/int8",
        "--checkpoint runs/mine/best --root photos --output runs/mine/best",
    )
    short_names: ClassVar[dict[str, str]] = {"root": "data.root", "format": "data.format", **_BANDS}

    checkpoint: Uri = Field(description="Path or URI of a checkpoint folder, such as RUN/best of a training run.")
    output: Uri = Field(description="Folder or URI for the calibrated checkpoint; may be that of --checkpoint.")
    data: EvalDataConfig
    calibration_images: int = Field(
        32, ge=1, description="Maximum number of training images from which activation ranges are measured."
    )


class EvaluateConfig(PredictConfig):
    """Evaluate a checkpoint against the annotations of a dataset's validation split."""

    examples: ClassVar[tuple[str, ...]] = (
        "--checkpoint s3://bucket/runs/mine/best --root s3://bucket/dataset",
        "--checkpoint runs/mine/best --root photos --output evaluation --protocol.mode sliding --protocol.mirror",
    )
    short_names: ClassVar[dict[str, str]] = {"root": "data.root", "format": "data.format", **_BANDS}

    output: Uri | None = Field(
        None,
        description="Folder or URI for metrics, tables, pictures and evaluation.html. If none, only print the metrics.",
    )
    data: EvalDataConfig
    protocol: ProtocolConfig = ProtocolConfig()
    boundary: bool = Field(True, description="Also compute Boundary IoU, which is slow for large images.")
    worst: int = Field(24, ge=0, description="Number of images with the lowest mIoU to show in evaluation.html.")
    fit_temperature: Uri | None = Field(
        None,
        description="Fit a temperature that calibrates the confidences, and write the checkpoint with this temperature "
        "to the given folder or URI.",
    )


class VerifyConfig(InputConfig):
    """Check the integrity of an output and optionally repair it. Exit code 1: the output has errors."""

    examples: ClassVar[tuple[str, ...]] = (
        "s3://bucket/labels --input s3://bucket/photos",
        "s3://bucket/labels --deep --repair",
    )

    output: PositionalUri = Field("", description="Folder or URI that jobs/segment_bucket.py wrote (its --output).")
    deep: bool = Field(False, description="Also decode every mask and compare it with its statistics.")
    repair: bool = Field(
        False,
        description="Repair what can be repaired, so that the next run completes the output; no run may be active.",
    )

    @model_validator(mode="after")
    def _sources(self) -> "VerifyConfig":
        # Unlike a run, verification needs no inputs. With inputs, it also requires a row for each image.
        return self

    @property
    def has_inputs(self) -> bool:
        return any(getattr(self, source) for source in SOURCES)


class DoctorConfig(JobSettings):
    """Check that a Ray cluster is ready for jobs. Exit code 1: a check failed; the output says how to fix it."""

    examples: ClassVar[tuple[str, ...]] = ("", "--storage s3://bucket/scratch")

    storage: Uri | None = Field(
        None,
        description="Folder or URI where every node tests writing, reading and deleting. If none, skip the storage "
        "checks.",
    )
    storage_megabytes: int = Field(
        64,
        ge=1,
        le=2000,
        description="Megabytes that each node writes and reads, twice, to measure its storage bandwidth.",
    )


class ExportMasksConfig(JobSettings):
    """Export the masks of an output to the formats of other tools (docs/exports.md). To resume, run it again."""

    examples: ClassVar[tuple[str, ...]] = (
        "s3://bucket/labels --to masks",
        's3://bucket/labels --to s3://bucket/coco --format coco-panoptic --where "mean_confidence > 0.9"',
    )
    deprecated: ClassVar[dict[str, str]] = {"labels": "output", "target": "to"}

    output: PositionalUri = Field("", description="Folder or URI that jobs/segment_bucket.py wrote (its --output).")
    to: Uri = Field(
        description="Folder or URI for the export; must be empty or hold the same export, which is then resumed."
    )
    format: Literal["png", "overlay", "coco-panoptic", "coco-rle", "cityscapes", "yolo-seg", "fiftyone", "dataset"] = (
        Field("png", description="Format of the export.")
    )
    where: str | None = Field(
        None,
        description='SQL condition on the table masks that selects images, such as "mean_confidence > 0.9"; subqueries '
        "may also use class_stats. If none, export all labeled images.",
    )
    strip: str | None = Field(
        None,
        description="Folder to strip from the image names. If none, the longest folder that all selected images share.",
    )
    split: str = Field(
        "train",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$",
        description="Formats cityscapes, yolo-seg, dataset: name of the split's folder.",
    )
    copy_images: bool = Field(True, description="Formats cityscapes, yolo-seg, fiftyone: also copy the images.")
    opacity: float = Field(0.5, ge=0, le=1, description="Format overlay: opacity of the class colors.")
    things: Texts = Field(
        (),
        description="Format coco-panoptic: class whose connected regions become separate segments. Repeat the option "
        "for several.",
    )
    label_ids: dict[str, Annotated[int, Field(ge=0, le=255)]] = Field(
        {},
        description="Format cityscapes: label id of each class name; the Cityscapes training classes are known by "
        "name.",
    )
    min_area: int = Field(16, ge=1, description="Format yolo-seg: minimum area of a region in pixels.")
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Format dataset: give pixels below this confidence the ignore index; this labels the images again. "
        "If none, keep all pixels.",
    )
    checkpoint: Uri | None = Field(
        None, description="Format dataset with min_confidence: the checkpoint that labeled the output."
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None = Field(
        None,
        description="Format dataset with min_confidence: numeric precision of the network. If none, that of the last "
        "run.",
    )

    @model_validator(mode="after")
    def _confidence_of_a_dataset(self) -> "ExportMasksConfig":
        if (self.min_confidence is None) != (self.checkpoint is None):
            raise ValueError(
                "min_confidence and checkpoint must be set together, since an output has no per-pixel confidence and "
                "the images are labeled again; set both or neither"
            )
        if self.min_confidence is not None and self.format != "dataset":
            raise ValueError(
                f"min_confidence works only with format dataset, but the format is {self.format}; remove it"
            )
        return self
