"""What a format is given of an image, and what it makes of it."""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.data import MAX_PIXELS
from pipeline.errors import UserError
from pipeline.export_masks.target_names import split_ending
from pipeline.images.codec import ImageError, decode_image, decode_mask

OTHERS = "python jobs/verify.py --deep looks for others"


class Cannot(Exception):
    """An image that cannot be exported; says why."""


@dataclass(frozen=True)
class Classes:
    """The output's classes; ids are places."""

    names: list[str]
    palette: NDArray[np.uint8]  # K x 3

    @classmethod
    def of(cls, table: pa.Table) -> "Classes":
        """From classes.parquet."""
        table = table.sort_by("class_id")
        colors = [table[name].to_numpy() for name in ("red", "green", "blue")]
        return cls(table["class_name"].to_pylist(), np.stack(colors, axis=1).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, option: str, names: Collection[str]) -> frozenset[int]:
        """Ids of classes that an option names. Raises UserError for a name that is none."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise UserError(
                f"{option}: {', '.join(map(repr, unknown))}: no class of the output; it has {', '.join(self.names)}"
            )
        return frozenset(map(self.names.index, names))

    def as_csv(self, **more: list[int]) -> bytes:
        """class_id, class_name and colour, and columns more."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["class_id", "class_name", "red", "green", "blue", *more])
        for k, (name, color) in enumerate(zip(self.names, self.palette.tolist(), strict=True)):
            writer.writerow([k, name, *color, *(column[k] for column in more.values())])
        return text.getvalue().encode()


@dataclass(frozen=True)
class Labelled:
    """One image of an output."""

    uri: str
    name: str  # of its files, below the target and without an ending
    mask: bytes  # PNG
    num_pixels: int  # of the image
    num_classes: int
    file: bytes | None = field(default=None, repr=False)  # the image itself, for formats that need it

    @property
    def file_name(self) -> str:
        """The name with the ending of the image's own file."""
        return self.name + split_ending(self.uri)[1]

    @cached_property
    def class_ids_HW(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The mask. Raises Cannot."""
        try:
            ids_HW = decode_mask(self.mask, self.num_pixels)
        except ImageError as error:
            raise Cannot(f"its mask is damaged ({error.message}); {OTHERS}") from error
        if ids_HW.max() >= self.num_classes:
            raise Cannot(f"its mask holds class {ids_HW.max()} of {self.num_classes}; {OTHERS}")
        return narrowest(ids_HW, self.num_classes)

    @cached_property
    def image_HW3(self) -> NDArray[np.uint8]:
        """The image, of its mask's size. Raises Cannot."""
        assert self.file is not None
        try:
            image_HW3 = decode_image(self.file, max(MAX_PIXELS, 2 * self.num_pixels))  # tiles may be half empty
        except ImageError as error:
            raise Cannot(f"{error.kind}: {error.message}") from error
        if image_HW3.shape[:2] != self.class_ids_HW.shape:
            (height, width), (of_mask, mask_width) = image_HW3.shape[:2], self.class_ids_HW.shape
            raise Cannot(
                f"is {width} x {height} pixels, its mask {mask_width} x {of_mask}: it changed since it was labelled"
            )
        return image_HW3


def narrowest(values_HW: NDArray[np.integer], num_values: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values, which are all below `num_values`, in 8 bits if they have room there, else in 16."""
    return values_HW.astype(np.uint8) if num_values <= 256 else values_HW.astype(np.uint16)


class Made(NamedTuple):
    """What becomes of one image."""

    files: dict[str, bytes]  # by name below the target
    record: dict[str, Any] | None = None  # JSON types, for the files that are about all images
