"""Configuration of every job: one pydantic model each, filled from YAML, environment and command line."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.errors import UserError

Unit = Annotated[float, Field(ge=0, le=1)]
Channel = Annotated[int, Field(ge=0, le=255)]


class Section(BaseModel):
    """A named group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(Section):
    """A class that the model tells apart; its id is its place in the list."""

    name: str = Field(min_length=1, description="Name, as it appears in tables.")
    color: tuple[Channel, Channel, Channel] = Field(description="Red, green, blue, 0 to 255.")


class DataFolder(Section):
    """Images and annotations, laid out as ROOT/images/SPLIT/NAME.jpg and ROOT/annotations/SPLIT/NAME.png."""

    root: str = Field(description="Folder or bucket prefix that holds images/ and annotations/, a path or URI.")
    train_split: str = Field("train", description="Name of the split to train on.")
    val_split: str = Field("val", description="Name of the split to validate on.")
    label_map: dict[int, int] = Field({}, description="Label id in the files -> id to use; ids not named stay.")


class DataConfig(DataFolder):
    """A dataset, and what a model is to make of it."""

    classes: list[ClassEntry] = Field(min_length=2, description="Classes in the order of their ids, from 0.")
    ignore_index: int = Field(255, ge=0, le=65535, description="Label id that counts neither in loss nor metrics.")
    long_side: int | None = Field(
        None,
        ge=64,
        description="Whole images are shrunk to this long side (pixels) to be labelled; none: full size.",
    )

    @model_validator(mode="after")
    def _ignore_index_is_no_class(self) -> "DataConfig":
        if self.ignore_index < len(self.classes):
            raise ValueError(
                f"ignore_index {self.ignore_index} is the id of class {self.classes[self.ignore_index].name!r}; "
                f"use an id from {len(self.classes)} up"
            )
        names = [entry.name for entry in self.classes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"class names must differ; given more than once: {', '.join(repeated)}")
        return self


class CalibrationData(DataFolder):
    """The dataset of a model that is there; the classes are the checkpoint's."""

    ignore_index: int | None = Field(
        None, ge=0, le=65535, description="Label id that does not count; none: the checkpoint's."
    )
    long_side: int | None = Field(
        None, ge=64, description="Images are shrunk to this long side (pixels); none: as the checkpoint says."
    )


class ModelConfig(Section):
    """The network. The defaults are the paper's PSPNet50."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet269"] = Field(
        "resnet50", description="Depth of the dilated ResNet."
    )
    stem: Literal["plain", "deep"] = Field("plain", description="One 7x7 convolution, or three 3x3.")
    stem_channels: tuple[int, int, int] = Field((64, 64, 128), description="Channels of the deep stem.")
    bins: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 3, 6), description="Pyramid levels, cells per side; empty for none."
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

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentConfig":
        if min(self.crop) < 64:
            raise ValueError(f"crop {list(self.crop)} is too small for the pyramid; use at least 64 pixels a side")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two positive numbers, the smaller first")
        return self


class OptimizationConfig(Section):
    """SGD with the poly schedule. The defaults are the paper's."""

    epochs: int = Field(100, ge=1, description="Passes over the training split.")
    batch_size: int = Field(16, ge=1, description="Images per step, over all workers together.")
    learning_rate: float = Field(0.01, gt=0, description="Of the backbone at the start; poly decay to 0.")
    head_rate_factor: float = Field(10.0, gt=0, description="Learning rate of the new layers over the backbone's.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty.")
    power: float = Field(0.9, gt=0, description="Exponent of the poly schedule, applied per step.")
    auxiliary_weight: float = Field(0.4, ge=0, description="Weight of the auxiliary loss.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 autocast or float32; auto: bfloat16 where the hardware computes in it."
    )
    seed: int = Field(0, ge=0, description="Of weights, shuffling and augmentation.")
    log_every: int = Field(10, ge=1, description="Steps between progress lines.")


class WorkersConfig(Section):
    """Ray Train workers: one process and one model replica each."""

    count: int = Field(1, ge=1, description="Number of workers.")
    gpu: bool = Field(False, description="One GPU for each worker; otherwise CPU.")
    cpus: int = Field(1, ge=1, description="CPUs reserved for each worker (threads of a CPU worker).")
    ingest_cpus: int = Field(1, ge=1, description="CPUs that decode and augment for each worker, anywhere.")
    max_failures: int = Field(3, ge=0, description="Restarts from the last checkpoint after a worker is lost.")


class JobSettings(BaseSettings):
    """Base of all jobs: the command line beats SCENEPARSE_* variables, which beat the YAML file."""

    model_config = SettingsConfigDict(
        env_prefix="SCENEPARSE_",
        env_nested_delimiter="__",
        extra="forbid",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    config: str | None = Field(None, description="YAML file with any of these options.")
    verbose: bool = Field(False, description="Show Ray's own log lines.")


class TrainConfig(JobSettings):
    """Train a PSPNet on a Ray cluster. Run the same command again to resume."""

    output: str = Field(description="Folder or URI of this run: checkpoints, best/ and last/.")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.model.align_corners and any(side % 8 != 1 for side in self.augment.crop):
            raise ValueError(
                f"augment.crop {list(self.augment.crop)} must be multiples of 8 plus 1 (such as 129, 473, 713) "
                "with model.align_corners, so that the stride-8 grid meets the crop's corners"
            )
        if self.optimization.batch_size < self.workers.count:
            raise ValueError(
                f"optimization.batch_size {self.optimization.batch_size} leaves some of the "
                f"{self.workers.count} workers without an image; raise it or lower workers.count"
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


Settings = TypeVar("Settings", bound=JobSettings)


def load_settings(settings: type[Settings], argv: list[str], prog: str) -> Settings:
    """Read a job's settings from `--config FILE`, the environment and the command line.

    Raises UserError that names every wrong key with its value and what is allowed. `--help` and unknown
    options end the process as argparse does (exit codes 0 and 2).
    """
    argv = [_kebab(argument) for argument in argv]
    path = _option(argv, "--config") or os.environ.get("SCENEPARSE_CONFIG")
    in_file = _read_yaml(path) if path else {}

    class FromEverywhere(settings):  # type: ignore[valid-type, misc]
        __doc__ = settings.__doc__

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: Any = CliSettingsSource(settings_cls, cli_parse_args=argv, cli_prog_name=prog)
            return command_line, env_settings, init_settings

    try:
        merged = FromEverywhere(**in_file)
        # A plain instance of the public class: it can be pickled to workers.
        values = {name: getattr(merged, name) for name in settings.model_fields}
        return cast(Settings, settings.model_construct(**values))
    except ValidationError as error:
        raise UserError(_explain(error, settings, path)) from None
    except SettingsError as error:
        raise UserError(f"{_where(path)}: {error}") from None


def _kebab(argument: str) -> str:
    """`--train.batch_size=4` -> `--train.batch-size=4`: keys may be typed as they stand in the YAML file."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _option(argv: list[str], name: str) -> str | None:
    """The option's value; the last one counts, as for argparse."""
    value = None
    for position, argument in enumerate(argv):
        if argument == name and position + 1 < len(argv):
            value = argv[position + 1]
        if argument.startswith(name + "="):
            value = argument.partition("=")[2]
    return value


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"configuration {path}: no such file; give --config the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"configuration {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: not a text file in UTF-8: {error.reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: holds a {type(content).__name__}, but must hold keys and values")
    return {str(key): value for key, value in content.items()}  # YAML takes `on:` for true


def _explain(error: ValidationError, settings: type[JobSettings], path: str | None) -> str:
    lines = [f"{_where(path)}: {error.error_count()} wrong setting(s)"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            lines.append(f"  {key}: missing; set it in the file or with --{key.replace('_', '-')}")
        elif item["type"] == "extra_forbidden":
            lines.append(f"  {key}: no such key; allowed here: {', '.join(_siblings(settings, item['loc']))}")
        elif key and item["type"] == "value_error":
            lines.append(f"  {key}: {message}")  # of a whole section; the message names the values
        elif key:
            lines.append(f"  {key}: {item['input']!r} is not allowed: {message}")
        else:
            lines.append(f"  {message}")
    return "\n".join(lines)


def _where(path: str | None) -> str:
    return f"configuration {path} with the command line" if path else "the command line"


def _siblings(settings: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where the last part of `location` stands."""
    model: Any = settings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
