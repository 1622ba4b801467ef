"""Which dataset, and what a model is to make of it."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.settings import Section

Channel = Annotated[int, Field(ge=0, le=255)]


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
