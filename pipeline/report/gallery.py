"""Gallery of a report: pictures of selected images with their masks."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.bands import Rendering
from pipeline.errors import UserError
from pipeline.html.page import data_uri, png_uri
from pipeline.html.pictures import GRAYS, resized
from pipeline.images.codec import ImageError, decode_image, decode_mask, encode_mask, shrink
from pipeline.output.schema import ignore_index_of
from pipeline.report.tables import OutputTables
from pipeline.storage.parquet_files import open_parquet

LONG_SIDE = 480  # pixels of a picture
QUALITY = 80  # of its JPEG
MAX_PIXELS = 100_000_000  # of an image to make a picture of; this many take 0.7 GB with the mask
MAX_FILE_BYTES = 50_000_000
DECODE_SECONDS = 30
AT_ONCE = 8  # images in memory at a time
OF_A_CLASS = 3  # candidate images per class
COLORS_OF_A_PNG = 256

LEAST_CONFIDENT, OF_CLASSES, RANDOM = "least confident", "most of a class", "random"
REASONS = (LEAST_CONFIDENT, OF_CLASSES, RANDOM)
TURNS = (OF_CLASSES, LEAST_CONFIDENT, OF_CLASSES, RANDOM)


@dataclass(frozen=True)
class Picture:
    """Image in the gallery."""

    uri: str
    reason: str  # for its selection, one of REASONS
    width: int
    height: int
    confidence: float
    low_confidence: float
    classes: list[tuple[int, float, float]]  # class id, fraction of the image, mean confidence; largest area first
    image: str | None = None  # data URI
    mask: str | None = None  # data URI, of the same size
    notes: tuple[str, ...] = ()  # problems with the image or mask

    @property
    def name(self) -> str:
        return posixpath.basename(self.uri) or self.uri

    def facts(self) -> dict[str, Any]:
        """Return the values that the page's script uses."""
        return {
            "uri": self.uri,
            "reason": self.reason,
            "size": f"{self.width:,} × {self.height:,}",
            "confidence": round(self.confidence, 4),
            "lowConfidence": round(self.low_confidence, 4),
            "classes": [[k, round(share, 6), round(confidence, 4)] for k, share, confidence in self.classes],
            "notes": self.notes,
        }

    @property
    def bytes(self) -> int:
        return len(self.image or "") + len(self.mask or "")


@dataclass
class Gallery:
    """Pictures of a report, ordered so that any prefix of the list is a balanced selection."""

    pictures: list[Picture]
    left_out: int = 0  # selected, but skipped to limit the size of the page

    @property
    def without_image(self) -> int:
        return sum(picture.image is None for picture in self.pictures)

    def shrink(self, num_bytes: int) -> None:
        """Remove pictures from the end until this many bytes are saved, at least one."""
        while self.pictures and num_bytes > 0:
            num_bytes -= max(1, self.pictures.pop().bytes)
            self.left_out += 1


def make_gallery(tables: OutputTables, palette_K3: NDArray[np.uint8], number: int, max_bytes: int) -> Gallery:
    """Make pictures of at most `number` images, of at most `max_bytes` together.

    Half are images with the largest fraction of a class, rare classes first. A quarter are the least confident
    images, and a quarter are random. Reads only the masks of selected images. Missing images are replaced by a note.

    Raises: UserError.
    """
    reasons = _choose(tables, number)
    gallery = Gallery([])
    for picture in _pictures(tables, reasons, palette_K3):
        max_bytes -= picture.bytes
        if max_bytes < 0:
            gallery.left_out = len(reasons) - len(gallery.pictures)
            break
        gallery.pictures.append(picture)
    return gallery


def _choose(tables: OutputTables, number: int) -> dict[bytes, str]:
    """Return image id -> reason, ordered so that any prefix is a balanced selection."""
    least = tables.rows(
        f"SELECT image_id FROM masks WHERE status = 'ok' ORDER BY mean_confidence, image_id LIMIT {number}"
    )
    # Image ids are hashes of URIs, so the lowest ones are a random sample.
    random = tables.rows(f"SELECT image_id FROM masks WHERE status = 'ok' ORDER BY image_id LIMIT {number}")
    by_class = tables.rows(
        f"""SELECT arg_max(image_id, row(pixel_fraction, image_id), {OF_A_CLASS}) AS image_ids
        FROM class_stats GROUP BY class_id ORDER BY count(*), class_id"""
    )
    of_classes = (row["image_ids"][n] for n in range(OF_A_CLASS) for row in by_class if n < len(row["image_ids"]))
    waiting: dict[str, Iterator[bytes]] = {
        OF_CLASSES: of_classes,
        LEAST_CONFIDENT: (row["image_id"] for row in least),
        RANDOM: (row["image_id"] for row in random),
    }
    chosen: dict[bytes, str] = {}
    for reason in cycle(TURNS):
        if len(chosen) == number or not waiting:
            return chosen
        if reason in waiting:
            image_id = next((each for each in waiting[reason] if each not in chosen), None)
            if image_id is None:
                del waiting[reason]
            else:
                chosen[image_id] = reason
    return chosen


def _pictures(tables: OutputTables, reasons: dict[bytes, str], palette_K3: NDArray[np.uint8]) -> Iterator[Picture]:
    """Yield the pictures in order. Holds a few images at a time in memory, and the PNG files of all masks."""
    rows = {row["image_id"]: row for row in tables.rows_of([*reasons])}
    classes: dict[bytes, list[tuple[int, float, float]]] = defaultdict(list)
    for row in tables.classes_of([*rows]):
        classes[row["image_id"]].append((row["class_id"], row["pixel_fraction"], row["mean_confidence"]))
    ordered = [rows[image_id] for image_id in reasons if image_id in rows]
    masks = _read_masks(tables.output, ordered)  # all together, because several may be in one row group
    files = _Files()
    rendering = tables.rendering()
    for start in range(0, len(ordered), AT_ONCE):
        some = ordered[start : start + AT_ONCE]
        for row, mask, content in zip(some, masks[start : start + AT_ONCE], files.fetch(some), strict=True):
            picture = Picture(
                uri=row["image_uri"],
                reason=reasons[row["image_id"]],
                width=row["width"],
                height=row["height"],
                confidence=row["mean_confidence"],
                low_confidence=row["low_confidence_fraction"],
                classes=classes[row["image_id"]],
            )
            yield _drawn(picture, row["etag"], mask, content, palette_K3, rendering)


def _read_masks(output: str, rows: list[dict[str, Any]]) -> list[bytes | UserError]:
    """Return the PNG file of each mask, or the error of reading its part."""
    by_part: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_part[posixpath.basename(row["filename"])].append(row["row"])

    def read(part: str) -> dict[int, bytes] | UserError:
        try:
            return _masks_of_part(storage.join(output, "masks", part), by_part[part])
        except UserError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(by_part, pool.map(read, by_part), strict=True))
    masks: list[bytes | UserError] = []
    for row in rows:
        of_part = found[posixpath.basename(row["filename"])]
        masks.append(of_part if isinstance(of_part, UserError) else of_part[row["row"]])
    return masks


def _masks_of_part(uri: str, rows: list[int]) -> dict[int, bytes]:
    """Return masks by their row in the part. Reads only the row groups that contain them. Raises UserError."""
    masks: dict[int, bytes] = {}
    with storage.explained(uri), storage.open_file(uri) as source:
        try:
            file = open_parquet(source, pre_buffer=True)
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if wanted := [row for row in rows if start <= row < end]:
                    column = file.read_row_group(group, ["mask.bytes"])["mask"]
                    masks |= {row: column[row - start].as_py()["bytes"] for row in wanted}
                start = end
        except pa.ArrowException as error:
            raise UserError(f"{uri}: cannot be read as Parquet: {error}") from None
    return masks


class _Files:
    """Fetcher of image files that does not retry a bucket once it was unreachable."""

    def __init__(self) -> None:
        self._closed: dict[str, UserError] = {}

    def fetch(self, rows: list[dict[str, Any]]) -> list[storage.Fetched | Exception]:
        """Return the file of each row, or the exception if it could not be fetched."""
        found: dict[bytes, storage.Fetched | Exception] = {}
        by_place: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if (row["size_bytes"] or 0) <= MAX_FILE_BYTES:
                by_place["/".join(row["image_uri"].split("/")[:3])].append(row)  # scheme and bucket
            else:
                found[row["image_id"]] = UserError(f"the file is too large for a picture ({row['size_bytes']:,} bytes)")
        for place, of_place in by_place.items():
            files = self._fetch(place, [row["image_uri"] for row in of_place])
            found |= zip((row["image_id"] for row in of_place), files, strict=True)
        return [found[row["image_id"]] for row in rows]

    def _fetch(self, place: str, uris: list[str]) -> list[storage.Fetched | Exception]:
        if place not in self._closed:
            try:
                return storage.fetch_objects(uris)
            except UserError as error:
                self._closed[place] = error
        return [self._closed[place]] * len(uris)


def _drawn(
    picture: Picture,
    etag: str | None,
    mask: bytes | UserError,
    content: storage.Fetched | Exception,
    palette_K3: NDArray[np.uint8],
    rendering: Rendering,
) -> Picture:
    """Return the picture with its image and mask, or with notes that say why one is missing.

    Args:
        etag: of the image file when it was labeled.
    """
    height, width = picture.height, picture.width
    if height * width > MAX_PIXELS:
        note = f"the image is too large for a picture ({height * width / 1e6:,.0f} megapixels)"
        return replace(picture, notes=(note,))
    image_uri = mask_uri = size = None
    notes = []
    try:
        image_HW3 = _image(content, height, width, rendering)
        image_uri = data_uri(image_HW3, QUALITY)
        size = image_HW3.shape[:2]
        if isinstance(content, storage.Fetched) and _is_another(etag, content.etag):
            notes.append("the image may have changed since it was labeled: its ETag is different now")
    except UserError as error:
        notes.append(f"no image: {error}")
    try:
        if isinstance(mask, UserError):
            raise mask
        class_ids_HW = decode_mask(mask, height * width)
        if nodata := np.count_nonzero(class_ids_HW == ignore_index_of(len(palette_K3))):
            notes.append(f"{nodata / (height * width):.1%} of the pixels have no data")
        scale = min(1.0, LONG_SIDE / max(class_ids_HW.shape))
        size = size or tuple(max(1, round(side * scale)) for side in class_ids_HW.shape)
        mask_uri = png_uri(_mask_png(resized(class_ids_HW, *size), palette_K3))
    except (UserError, ImageError) as error:
        notes.append(f"no mask: {error}; run python jobs/verify.py --deep for details")
    return replace(picture, image=image_uri, mask=mask_uri, notes=tuple(notes))


def _is_another(etag: str | None, etag_now: str | None) -> bool:
    return None not in (etag, etag_now) and etag != etag_now


def _image(content: storage.Fetched | Exception, height: int, width: int, rendering: Rendering) -> NDArray[np.uint8]:
    """Decode and shrink an image. Raises UserError with the reason if that is not possible."""
    if isinstance(content, UserError):
        raise content
    if isinstance(content, Exception):
        kind = storage.failure_kind(content)
        raise UserError(f"{kind}: {storage.STORAGE_ERRORS[kind]}")
    try:
        image_HW3 = decode_image(content.content, MAX_PIXELS, MAX_FILE_BYTES, DECODE_SECONDS, rendering)
    except ImageError as error:
        raise UserError(f"the current file: {error}") from None
    if image_HW3.shape[:2] != (height, width):
        now = f"{image_HW3.shape[1]} × {image_HW3.shape[0]}"
        raise UserError(f"it has changed since it was labeled: it was {width} × {height} pixels and is now {now}")
    return shrink(image_HW3, LONG_SIDE)


def _mask_png(class_ids_HW: NDArray[np.integer], palette_K3: NDArray[np.uint8]) -> bytes:
    """Encode a small mask as a PNG in the colors of the classes.

    The palette contains only the classes in this picture, so that 16-bit ids fit. If there are more than 255, the
    rarest are dark gray, as are ids that are not classes. Pixels without data are light gray.
    """
    counts = Counter(class_ids_HW.ravel().tolist())
    colors = dict(enumerate(palette_K3)) | {ignore_index_of(len(palette_K3)): GRAYS[1]}
    shown = [k for k, _ in counts.most_common(COLORS_OF_A_PNG - 1) if k in colors]
    places_HW = np.zeros(class_ids_HW.shape, np.uint8)
    for place, class_id in enumerate(shown, 1):
        places_HW[class_ids_HW == class_id] = place
    return encode_mask(places_HW, np.stack([GRAYS[0], *(colors[k] for k in shown)]).astype(np.uint8))
