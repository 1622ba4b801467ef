"""Configuration of the dataset. docs/datasets.md shows the folders of every format."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config.bands import BANDS_HELP, RANGE_HELP, BandList, Rendering, ValueRange
from pipeline.config.dataset_formats import FORMATS, Format, classes_of, color_of
from pipeline.config.fields import Section, Uri

MAX_PIXELS = 100_000_000  # of an image or annotation, unless a configuration says otherwise
Channel = Annotated[int, Field(ge=0, le=255)]
FormatName = Literal["folder", "ade20k", "cityscapes", "voc", "coco_stuff", "camvid", "list", "parquet"]


class ClassEntry(Section):
    """Class of the model; its id is its position in the list."""

    name: str = Field(min_length=1, description="Name of the class, as it appears in tables.")
    color: tuple[Channel, Channel, Channel] = Field(description="Color as red, green, blue, each from 0 to 255.")


def default_color(class_id: int) -> tuple[int, int, int]:
    """Return the color of a class that names none: that of PASCAL VOC's palette, which starts with black."""
    red = green = blue = 0
    for bit in range(8):
        red |= (class_id >> 3 * bit & 1) << 7 - bit
        green |= (class_id >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (class_id >> 3 * bit + 2 & 1) << 7 - bit
    return red, green, blue


class DataFolder(Section):
    """Location of images and annotations."""

    format: FormatName = Field(
        "folder",
        description="Layout of the dataset (docs/datasets.md). folder: ROOT/images/SPLIT/NAME.jpg and "
        "ROOT/annotations/SPLIT/NAME.png.",
    )
    root: Uri = Field(description="Path or URI of the folder or bucket prefix that holds the dataset.")
    train_split: str = Field(
        "train",
        description="Split to train on; the default depends on the format. Format list: the list file; format parquet: "
        "the table's file or folder, or the output of jobs/segment_bucket.py.",
    )
    val_split: str = Field("val", description="Split to validate on, specified like train_split.")
    label_map: dict[int, int] = Field(
        {},
        description="Map from label ids in the files to ids to use; other ids keep their value, or the one that the "
        "format defines.",
    )
    label_suffix: str = Field(
        "",
        description="Format folder: end of the annotations' names before the extension, such as _mask if the "
        "annotation of NAME.jpg is NAME_mask.png.",
    )
    rgb_ids: bool = Field(
        False,
        description="Read RGB annotations as label ids that are the same in all three channels, not as colors.",
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, description="Maximum size of an image or annotation in pixels; larger ones are errors."
    )
    bands: BandList | None = Field(None, description=BANDS_HELP)
    value_range: ValueRange | None = Field(None, description=RANGE_HELP)
    allow: tuple[str, ...] = Field(
        (),
        description="Formats list and parquet: prefix besides root, such as s3://bucket/photos, from which rows may "
        "read. Repeat the option for several.",
    )
    image_column: str | None = Field(
        None,
        description="Format parquet: column of images (bytes or URIs). If none, image, or image_uri for an output of "
        "jobs/segment_bucket.py.",
    )
    label_column: str = Field("mask", description="Format parquet: column of annotations (bytes or URIs).")
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Format parquet with an output of jobs/segment_bucket.py: ignore the pixels of a class in an image "
        "if its mean confidence there is below this value.",
    )

    @property
    def rendering(self) -> Rendering:
        """Bands and value range of images that are TIFFs."""
        return Rendering.of(self.bands, self.value_range)

    @model_validator(mode="before")
    @classmethod
    def _splits_of_the_format(cls, values: Any) -> Any:
        known = _format(values)
        return _filled(values, train_split=known.train_split, val_split=known.val_split) if known else values

    @model_validator(mode="after")
    def _options_are_of_the_format(self) -> "DataFolder":
        if self.allow and self.format not in ("list", "parquet"):
            raise ValueError(
                f"allow works only with formats list and parquet, but the format is {self.format}; remove it"
            )
        if self.label_suffix and self.format != "folder":
            raise ValueError(f"label_suffix works only with format folder, but the format is {self.format}; remove it")
        if self.format != "parquet":
            for name in ("image_column", "label_column", "min_confidence"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} works only with format parquet, but the format is {self.format}; remove it"
                    )
        return self


class DataConfig(DataFolder):
    """Dataset to train on, with the classes of the model."""

    classes: list[ClassEntry] = Field(
        min_length=2,
        description="Classes in the order of their ids, from 0: names, or names and colors. Formats with a class table "
        "have them; give some of its names to train on these, in another order too.",
    )
    ignore_index: int = Field(
        255, ge=0, le=65535, description="Label id of pixels that the loss and the metrics ignore."
    )
    long_side: int | None = Field(
        None,
        ge=64,
        description="Shrink larger images to this long side, in pixels, before labeling whole images. If none, full "
        "size.",
    )
    sampling_factors: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="Rare classes, by name, and how many times as often images that show them are drawn in training; "
        "the largest factor of an image counts.",
    )

    @model_validator(mode="before")
    @classmethod
    def _classes_of_the_format(cls, values: Any) -> Any:
        known = _format(values)
        if not known:
            return values
        values = _filled(values, ignore_index=known.ignore_index)
        if known.table is None:
            return values
        return _filled(
            values, classes=[{"name": entry.name, "color": entry.color} for entry in classes_of(known.table)]
        )

    @field_validator("classes", mode="before")
    @classmethod
    def _with_colors(cls, classes: Any, info: ValidationInfo) -> Any:
        if not isinstance(classes, list):
            return classes
        table = FORMATS[info.data.get("format", "folder")].table
        return [
            {"name": entry, "color": color_of(table, entry) or default_color(class_id)}
            if isinstance(entry, str)
            else entry
            for class_id, entry in enumerate(classes)
        ]

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

    @model_validator(mode="after")
    def _sampling_factors_are_of_classes(self) -> "DataConfig":
        names = [entry.name for entry in self.classes]
        for name in self.sampling_factors:
            if name not in names:
                closest = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {closest[0]!r}?" if closest else f"; the classes are {', '.join(names)}"
                raise ValueError(f"sampling_factors has {name!r}, which is no class{hint}")
        return self


class EvalDataConfig(DataFolder):
    """Dataset to evaluate an existing model on; the classes are those of the checkpoint."""

    ignore_index: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Label id of pixels that the metrics ignore. If none, the checkpoint's ignore index.",
    )
    long_side: int | None = Field(
        None,
        ge=64,
        description="Shrink larger images to this long side, in pixels. If none, use the checkpoint's value.",
    )


def _format(values: Any) -> Format | None:
    """Return the format that the raw values of a section name; None if they are invalid, which pydantic reports."""
    name = values.get("format", "folder") if isinstance(values, dict) else None
    return FORMATS.get(name) if isinstance(name, str) else None


def _filled(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return `values` with `defaults` for keys that are missing or null."""
    return values | {name: default for name, default in defaults.items() if values.get(name) is None}
