"""Loading of one pair as arrays: read, decode, and map label ids to class ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.data import DataConfig, DataFolder
from pipeline.config.dataset_formats import Color, coding_of, distinct_colors
from pipeline.datasets.label_advice import Values, remedy_for_colors, remedy_for_ids, unknown_colors
from pipeline.datasets.pairs import FINDING_KINDS, SHOWN, Cell, DatasetFinding, Pair, PairError
from pipeline.datasets.parquet import read_cell
from pipeline.images.codec import ImageError, Raster, decode_label, decode_raster
from pipeline.images.label_files import UnknownColorError, exif_orientation
from pipeline.images.raster import WHITE

OUTSIDE = -1  # stands in for a class id: the label id maps to no class
# EXIF orientations as a message names them.
_TURNS = (
    *("", "as stored", "mirrored", "turned by 180 degrees", "flipped", "transposed"),
    *("turned by 90 degrees clockwise", "transversed", "turned by 90 degrees counterclockwise"),
)

Decoded = TypeVar("Decoded")


def load_image(pair: Pair, data: DataFolder, fill: Sequence[float] = WHITE) -> NDArray[np.uint8]:
    """Read and decode a pair's image, H x W x 3 uint8 RGB. Raises UserError that names the file.

    Pixels without data have the color `fill`, R, G, B from 0 to 255.
    """
    return open_image(pair, read(pair.image), data).filled(fill)


def load_pair(
    pair: Pair, data: DataConfig, fill: Sequence[float] = WHITE
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read and decode one pair, and map its label ids by the dataset's format and `label_map`.

    Pixels of the image without data have the color `fill`, R, G, B from 0 to 255, and the label ignore_index.

    Returns: image H x W x 3 uint8 RGB, and label H x W int32 of class ids and ignore_index.
    Raises: UserError that names the file if it cannot be read, if the sizes or the EXIF orientations of image and
        annotation differ, or if the annotation has a label id outside the classes.
    """
    image, label = read(pair.image), read(pair.label)
    raster = open_image(pair, image, data)
    label_HW = open_label(pair, label, data)
    check_sizes(pair, raster.pixels_HW3, label_HW, turns_of(image, label))
    raw_ids, _ = label_counts(label_HW)
    class_ids = class_ids_of(raw_ids, pair, data)
    check_ids(pair, raw_ids, class_ids, data)
    class_ids_HW = _replaced(label_HW, raw_ids, class_ids)
    if raster.valid_HW is not None:
        class_ids_HW[~raster.valid_HW] = data.ignore_index
    return raster.filled(fill), class_ids_HW


def read(source: str | Cell) -> bytes:
    """Return the bytes of an image or annotation. Raises UserError."""
    return read_cell(source) if isinstance(source, Cell) else storage.read_bytes(source)


def open_image(pair: Pair, content: bytes, data: DataFolder) -> Raster:
    """Decode a pair's image. Raises PairError."""
    return _opened("image", pair.image_uri, lambda: decode_raster(content, data.max_pixels, rendering=data.rendering))


def open_label(pair: Pair, content: bytes, data: DataConfig) -> NDArray[np.int32]:
    """Decode a pair's annotation to the label ids in the file, H x W. Raises PairError."""
    known = _colors(pair, data)
    try:
        return _opened(
            "annotation", pair.label_uri, lambda: decode_label(content, known, data.max_pixels, data.rgb_ids)
        )
    except PairError as error:
        if not isinstance(error.__cause__, UnknownColorError):
            raise
        colors = Values()
        colors.add(error.__cause__.colors)
        problem = f"has colors of no class, or of two: {unknown_colors(colors.pixels, known)}"
        raise PairError(
            f"annotation {pair.label_uri}: {error.__cause__}; {remedy_for_colors(colors, data)}",
            DatasetFinding("unknown colors", pair.label_uri, problem),
        ) from error.__cause__


def turns_of(image: bytes, label: bytes) -> tuple[int, int]:
    """Return the EXIF orientations, 1 to 8, of an image and an annotation that can be decoded."""
    return exif_orientation(image), exif_orientation(label)


def check_sizes(
    pair: Pair, image_HW3: NDArray[np.uint8], label_HW: NDArray[np.int32], turns: tuple[int, int] = (1, 1)
) -> None:
    """Raise PairError unless image and annotation have the same size, and their EXIF orientations turn them alike.

    An orientation of one file alone is accepted if the sizes prove that it exchanges the sides as it should.
    """
    is_same_size = label_HW.shape == image_HW3.shape[:2]
    of_image, of_label = turns
    is_proven = is_same_size and min(turns) == 1 and max(turns) >= 5 and label_HW.shape[0] != label_HW.shape[1]
    if of_image != of_label and not is_proven and (is_same_size or label_HW.shape == image_HW3.shape[1::-1]):
        problem = (
            f"the EXIF orientation of the image is {of_image} ({_TURNS[of_image]}) but that of the annotation is "
            f"{of_label} ({_TURNS[of_label]})"
        )
        evidence = "which the size cannot confirm or rule out" if is_same_size else "so its sides are exchanged"
        raise PairError(
            f"annotation {pair.label_uri}: {problem}, {evidence}: image {pair.image_uri}; "
            f"{FINDING_KINDS['orientations differ'].remedy}",
            DatasetFinding("orientations differ", pair.label_uri, f"{problem}, {evidence}"),
        )
    if not is_same_size:
        raise PairError(
            f"annotation {pair.label_uri} is {_size(label_HW)} pixels but its image {pair.image_uri} is "
            f"{_size(image_HW3)}; they must have the same size",
            DatasetFinding("sizes differ", pair.label_uri, f"{_size(label_HW)}, but its image is {_size(image_HW3)}"),
        )


def check_ids(pair: Pair, raw_ids: NDArray[np.integer], class_ids: NDArray[np.int64], data: DataConfig) -> None:
    """Raise PairError if label ids of an annotation map to no class: those whose class id is OUTSIDE."""
    outside = raw_ids[class_ids == OUTSIDE]
    if len(outside):
        ids = f"label id(s) {', '.join(map(str, outside[:SHOWN]))}{' ...' if len(outside) > SHOWN else ''}"
        problem = (
            f"{ids} are outside the {len(data.classes)} classes (0 to {len(data.classes) - 1}) and not the "
            f"ignore_index {data.ignore_index}"
            if pair.coding is None
            else f"{ids} are neither {pair.coding} label ids of data.classes nor in data.label_map"
        )
        raise PairError(
            f"annotation {pair.label_uri}: {problem}; {remedy_for_ids(raw_ids.tolist(), data)}",
            DatasetFinding("ids outside the classes", pair.label_uri, problem),
        )


def label_counts(label_HW: NDArray[np.int32]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the label ids in a file in ascending order, and the number of pixels of each."""
    # bincount allocates up to the largest id: gigabytes for a 32-bit file that is not a label map.
    if label_HW.min() >= 0 and label_HW.max() < 2**16:
        counts = np.bincount(label_HW.ravel())
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(label_HW, return_counts=True)


def class_ids_of(raw_ids: Iterable[int], pair: Pair, data: DataConfig) -> NDArray[np.int64]:
    """Map label ids of a pair's annotation to class ids, ignore_index or OUTSIDE."""
    known = coding_of(pair.coding, _named(data)).class_ids if pair.coding else {}
    return np.array([_class_id(int(raw_id), pair, known, data) for raw_id in raw_ids], np.int64)


def _class_id(raw_id: int, pair: Pair, known: Mapping[int, int | None], data: DataConfig) -> int:
    if raw_id in pair.ignored:
        return data.ignore_index
    if raw_id in data.label_map or pair.coding is None:
        class_id = data.label_map.get(raw_id, raw_id)
    else:
        found = known.get(raw_id, OUTSIDE)
        class_id = data.ignore_index if found is None else found
    return class_id if 0 <= class_id < len(data.classes) or class_id == data.ignore_index else OUTSIDE


def _replaced(
    label_HW: NDArray[np.int32], raw_ids: NDArray[np.integer], class_ids: NDArray[np.int64]
) -> NDArray[np.int32]:
    if raw_ids[0] < 0 or raw_ids[-1] >= 2**16:
        return class_ids.astype(np.int32)[np.searchsorted(raw_ids, label_HW)]
    lookup = np.zeros(raw_ids[-1] + 1, np.int32)
    lookup[raw_ids] = class_ids
    return lookup[label_HW]


def _named(data: DataConfig) -> tuple[tuple[str, Color], ...]:
    return tuple((entry.name, entry.color) for entry in data.classes)


def _colors(pair: Pair, data: DataConfig) -> dict[Color, int]:
    """Return color -> label id for color-coded annotations. Black is void unless a class is black."""
    if pair.coding is not None:
        return coding_of(pair.coding, _named(data)).colors
    colors = [entry.color for entry in data.classes]
    void = {} if (0, 0, 0) in colors else {(0, 0, 0): data.ignore_index}
    return void | distinct_colors(colors)


def _opened(what: str, uri: str, decode: Callable[[], Decoded]) -> Decoded:
    try:
        return decode()
    except ImageError as error:
        kind = f"unreadable {what}"
        raise PairError(
            f"{what} {uri}: {error}; {FINDING_KINDS[kind].remedy}", DatasetFinding(kind, uri, str(error))
        ) from error


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
