"""Which dataset, and what a model is to make of it. docs/datasets.md shows every format's folders."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.dataset_formats import FORMATS, Format, classes_of
from pipeline.config.loading import Section

MAX_PIXELS = 100_000_000  # of an image or annotation, unless a configuration says otherwise
Channel = Annotated[int, Field(ge=0, le=255)]
FormatName = Literal["folder", "ade20k", "cityscapes", "voc", "coco_stuff", "camvid", "list", "parquet"]


class ClassEntry(Section):
    """A class that the model tells apart; its id is its place in the list."""

    name: str = Field(min_length=1, description="Name, as it appears in tables.")
    color: tuple[Channel, Channel, Channel] = Field(description="Red, green, blue, 0 to 255.")


class DataFolder(Section):
    """Where images and annotations are."""

    format: FormatName = Field(
        "folder",
        description="How the data are laid out; folder: ROOT/images/SPLIT/NAME.jpg, ROOT/annotations/SPLIT/NAME.png.",
    )
    root: str = Field(description="Folder or bucket prefix that holds the dataset, a path or URI.")
    train_split: str = Field(
        "train",
        description="Split to train on; left out: as the format names it. list: the list file; parquet: the table's "
        "file or folder, or the output of a segmentation.",
    )
    val_split: str = Field("val", description="Split to validate on, named like train_split.")
    label_map: dict[int, int] = Field(
        {}, description="Label id in the files -> id to use; ids not named stay, or are what the format says."
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Larger images and annotations are refused; pixels.")
    allow: tuple[str, ...] = Field(
        (),
        description="list, parquet: prefixes beside root that rows may name, as in s3://bucket/photos. Several: repeat "
        "it.",
    )
    image_column: str | None = Field(
        None, description="parquet: column of images (bytes or URIs); none: image, of our own output image_uri."
    )
    label_column: str = Field("mask", description="parquet: column of annotations (bytes or URIs).")
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="parquet, of our own output: where a class's mean confidence in an image is below this, its pixels "
        "there are ignored.",
    )

    @model_validator(mode="before")
    @classmethod
    def _splits_of_the_format(cls, values: Any) -> Any:
        known = _format(values)
        return _filled(values, train_split=known.train_split, val_split=known.val_split) if known else values

    @model_validator(mode="after")
    def _options_are_of_the_format(self) -> "DataFolder":
        if self.allow and self.format not in ("list", "parquet"):
            raise ValueError(f"allow is for formats list and parquet, but the format is {self.format}; remove it")
        if self.format != "parquet":
            for name in ("image_column", "label_column", "min_confidence"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for format parquet alone, but the format is {self.format}; remove it")
        return self


class DataConfig(DataFolder):
    """A dataset, and what a model is to make of it."""

    classes: list[ClassEntry] = Field(
        min_length=2,
        description="Classes in the order of their ids, from 0; may be left out for a format that has its own.",
    )
    ignore_index: int = Field(255, ge=0, le=65535, description="Label id that counts neither in loss nor metrics.")
    long_side: int | None = Field(
        None,
        ge=64,
        description="Whole images are shrunk to this long side (pixels) to be labelled; none: full size.",
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


class EvalDataConfig(DataFolder):
    """The dataset of a model that is there; the classes are the checkpoint's."""

    ignore_index: int | None = Field(
        None, ge=0, le=65535, description="Label id that does not count; none: the checkpoint's."
    )
    long_side: int | None = Field(
        None, ge=64, description="Images are shrunk to this long side (pixels); none: as the checkpoint says."
    )


def _format(values: Any) -> Format | None:
    """The format that a section's raw values name; None where they are no such thing, which pydantic tells."""
    name = values.get("format", "folder") if isinstance(values, dict) else None
    return FORMATS.get(name) if isinstance(name, str) else None


def _filled(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """`values` with the defaults for what is left out or null."""
    return values | {name: default for name, default in defaults.items() if values.get(name) is None}
