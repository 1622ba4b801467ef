"""Input and output types of the formats: a labeled image, and the files made from it."""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.config.data import MAX_PIXELS
from pipeline.errors import UserError
from pipeline.export_masks.target_names import split_ending
from pipeline.images.codec import ImageError, Raster, decode_mask, decode_raster
from pipeline.images.raster import WHITE
from pipeline.output.schema import ignore_index_of
from pipeline.query.named_queries import suggestion

OTHERS = "python jobs/verify.py --deep finds all damaged masks"


class Cannot(Exception):
    """Reason why an image cannot be exported."""


@dataclass(frozen=True)
class Classes:
    """Classes of an output. Class ids are list positions."""

    names: list[str]
    palette: NDArray[np.uint8]  # K x 3

    @classmethod
    def of(cls, table: pa.Table) -> "Classes":
        """Build from the table in classes.parquet."""
        table = table.sort_by("class_id")
        colors = [table[name].to_numpy() for name in ("red", "green", "blue")]
        return cls(table["class_name"].to_pylist(), np.stack(colors, axis=1).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, option: str, names: Collection[str]) -> frozenset[int]:
        """Return the ids of classes that an option names. Raises UserError, with close matches, for unknown names."""
        problems = [
            f"{name!r}: not a class of the output; {suggestion(name, self.names, 'its classes are')}"
            for name in names
            if name not in self.names
        ]
        if problems:
            raise UserError("\n  ".join([f"{option}: {problems[0]}", *problems[1:]]))
        return frozenset(map(self.names.index, names))

    def as_csv(self, **more: list[int]) -> bytes:
        """Return a CSV file with class_id, class_name, color, and more columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["class_id", "class_name", "red", "green", "blue", *more])
        for k, (name, color) in enumerate(zip(self.names, self.palette.tolist(), strict=True)):
            writer.writerow([k, name, *color, *(column[k] for column in more.values())])
        return text.getvalue().encode()


@dataclass(frozen=True)
class Labelled:
    """Image of an output with its mask."""

    uri: str
    name: str  # of the exported files, relative to the target, without extension
    mask: bytes  # PNG
    num_pixels: int  # of the image
    num_classes: int
    file: bytes | None = field(default=None, repr=False)  # image file, for formats that need it
    rendering: Rendering = AS_DECLARED  # of the file, if it is a TIFF

    @property
    def file_name(self) -> str:
        """Name with the extension of the image's own file."""
        return self.name + split_ending(self.uri)[1]

    @property
    def ignore_index(self) -> int:
        """Value of pixels without data in the mask."""
        return ignore_index_of(self.num_classes)

    @property
    def class_ids(self) -> list[int]:
        """Ids of the classes in the mask, ascending. Raises Cannot."""
        return [k for k in np.unique(self.class_ids_HW).tolist() if k != self.ignore_index]

    @cached_property
    def class_ids_HW(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Decoded mask, with `ignore_index` where there is no data. Raises Cannot if it is damaged."""
        try:
            ids_HW = decode_mask(self.mask, self.num_pixels)
        except ImageError as error:
            raise Cannot(f"its mask is damaged ({error.message}); {OTHERS}") from error
        highest = ids_HW.max(initial=0, where=ids_HW != self.ignore_index)
        if highest >= self.num_classes:
            raise Cannot(f"its mask has class id {highest}, but only {self.num_classes} classes exist; {OTHERS}")
        return narrowest(ids_HW, max(self.num_classes, int(ids_HW.max()) + 1))

    @cached_property
    def raster(self) -> Raster:
        """Decoded image, of the same size as the mask. Raises Cannot."""
        assert self.file is not None
        try:
            # Tiles may be half empty.
            raster = decode_raster(self.file, max(MAX_PIXELS, 2 * self.num_pixels), rendering=self.rendering)
        except ImageError as error:
            raise Cannot(f"{error.kind}: {error.message}") from error
        height, width, _ = raster.pixels_HW3.shape
        if (height, width) != self.class_ids_HW.shape:
            of_mask, mask_width = self.class_ids_HW.shape
            raise Cannot(
                f"is {width} x {height} pixels, but its mask is {mask_width} x {of_mask}; the image has changed since "
                "it was labeled"
            )
        return raster

    @property
    def image_HW3(self) -> NDArray[np.uint8]:
        """Decoded image, white where there is no data. Raises Cannot."""
        return self.raster.filled(WHITE)


def narrowest(values_HW: NDArray[np.integer], num_values: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Cast values below `num_values` to uint8 if they fit, else to uint16."""
    return values_HW.astype(np.uint8) if num_values <= 256 else values_HW.astype(np.uint16)


class Made(NamedTuple):
    """Exported files and record of one image."""

    files: dict[str, bytes]  # by path relative to the target
    record: dict[str, Any] | None = None  # JSON types, for the files that cover all images
