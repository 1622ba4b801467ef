"""Samples of TIFFs as they are stored, and as 8-bit RGB.

libtiff, by way of Pillow, unpacks tiles to bytes, whatever their samples are; NumPy takes the samples from the bytes.
So byte order, planes and depths are read by one rule, which Pillow's table of layouts does not have.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.config.bands import AS_DECLARED, Bound, Rendering
from pipeline.images import tiff_directory, tiff_layout
from pipeline.images.formats import OPENERS, ImageError, failures, quiet
from pipeline.images.nodata import no_data, nodata_value, valid_pixels
from pipeline.images.pixels import FLOAT_ONE, STRIP_SAMPLES, load, on_white, scaled, turned, without_ink
from pipeline.images.raster import Raster
from pipeline.images.tiff_directory import Directory
from pipeline.images.tiff_layout import Layout, read_layout

GROUP_BYTES = 16 * 2**20  # of unpacked tiles, at a time
PERCENTILE_PIXELS = 1 << 20  # that percentiles are taken of, about


@dataclass(frozen=True)
class Ends:
    """Samples that are black and white in each of C bands."""

    black_C: NDArray[np.float64]
    white_C: NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Samples of the bands that become RGB, alpha included, and the pixels that have data; None: all have."""

    bands_HWC: NDArray[np.generic]
    valid_HW: NDArray[np.bool_] | None


def decode_tiff(content: bytes, max_pixels: int | None = None, rendering: Rendering = AS_DECLARED) -> Raster:
    """Decode the first page of a TIFF as a viewer shows it, or with the bands and the value range of `rendering`.

    Raises: ImageError; Empty if no pixel has data.
    """
    directory = Directory(io.BytesIO(content), len(content))
    layout = read_layout(directory, max_pixels, rendering)
    samples = samples_to_show(directory, layout, rendering)
    if samples.valid_HW is not None and not samples.valid_HW.any():
        raise no_data()
    ends = None
    if rendering.value_range is not None:
        ends = ends_of(decimated(samples, (0, 0), decimation(layout)), rendering.value_range)
    return Raster(shown(samples, layout, directory, ends), samples.valid_HW).turned(orientation_of(directory))


def samples_to_show(directory: Directory, layout: Layout, rendering: Rendering) -> Samples:
    """Return the samples of the bands that become RGB. Raises ImageError."""
    selected = None if rendering.bands is None else [band - 1 for band in rendering.bands]
    if layout.is_of_bytes:
        samples_HWC = stored_samples(directory, layout, selected)
    else:
        samples_HWC = np.asarray(_by_libtiff(directory, layout).convert("RGB"))
        samples_HWC = samples_HWC if selected is None else samples_HWC[..., selected]
    return Samples(samples_HWC, None if layout.alpha else valid_pixels(samples_HWC, directory))


def decimation(layout: Layout) -> int:
    """Return the n of the pixels in every n-th row and column, of which a percentile is taken."""
    return max(1, math.isqrt(layout.height * layout.width // PERCENTILE_PIXELS))


def decimated(samples: Samples, corner: tuple[int, int], step: int) -> NDArray[np.generic]:
    """Return the samples in every `step`-th row and column of the image where there is data, S x C.

    `corner` is the row and the column of the first sample in the image.
    """
    top, left = (-start % step for start in corner)
    picked_HWC = samples.bands_HWC[top::step, left::step]
    if samples.valid_HW is not None:
        return picked_HWC[samples.valid_HW[top::step, left::step]]
    return picked_HWC.reshape(-1, picked_HWC.shape[-1])


def ends_of(samples_SC: NDArray[np.generic], value_range: tuple[Bound, Bound]) -> Ends:
    """Return the ends of a value range, whose percentiles are those of the samples in each band."""
    bands = [band[np.isfinite(band)] for band in samples_SC.T]
    black_C, white_C = (np.array([_end(band, bound) for band in bands]) for bound in value_range)
    return Ends(black_C, white_C)


def _end(samples_S: NDArray[np.generic], bound: Bound) -> float:
    if not bound.is_percentile:
        return bound.value
    return float(np.percentile(samples_S.astype(np.float64), bound.value, method="nearest")) if len(samples_S) else 0.0


def shown(samples: Samples, layout: Layout, directory: Directory, ends: Ends | None) -> NDArray[np.uint8]:
    """Return the result of `samples_to_show` as RGB, H x W x 3; without `ends`, the type's range is shown."""
    samples_HWC = samples.bands_HWC
    if not layout.is_of_bytes:  # libtiff has made 8-bit RGB of them
        layout = replace(layout, bits=8, bands=samples_HWC.shape[-1], photometric=tiff_layout.RGB)
    if layout.photometric == tiff_layout.PALETTE:
        return _color_map(directory, layout)[samples_HWC[..., 0]]
    if ends is not None:
        bands_HWC = _stretched(samples_HWC, layout, ends)
    elif layout.dtype == np.uint8 and layout.bits == 8:
        bands_HWC = samples_HWC.astype(np.uint8, copy=False)
        if layout.photometric == tiff_layout.WHITE_IS_ZERO:
            bands_HWC = 255 - bands_HWC
    else:
        bands_HWC = scaled(samples_HWC, *_black_and_white(samples, layout))
    if layout.photometric == tiff_layout.INKS:
        return without_ink(255 - bands_HWC)
    if layout.alpha:
        bands_HWC = on_white(bands_HWC, is_associated=layout.alpha == tiff_layout.ASSOCIATED)
    return bands_HWC if bands_HWC.shape[-1] == 3 else np.repeat(bands_HWC[..., :1], 3, axis=-1)


def _stretched(samples_HWC: NDArray[np.generic], layout: Layout, ends: Ends) -> NDArray[np.uint8]:
    """Return the samples scaled between the ends; alpha is scaled from the range of its type."""
    black_C = ends.black_C
    white_C = np.where(ends.white_C > black_C, ends.white_C, np.inf)  # a band of one value is black
    if layout.alpha:
        black_C, white_C = np.append(black_C[:-1], 0), np.append(white_C[:-1], 2.0**layout.bits - 1)
    bands_HWC = scaled(samples_HWC, black_C, white_C)
    if layout.photometric == tiff_layout.WHITE_IS_ZERO:
        bands_HWC = 255 - bands_HWC
    return bands_HWC


def decode_tiff_label(content: bytes, max_pixels: int | None = None) -> tuple[NDArray[np.generic], Layout]:
    """Return the samples of a TIFF as stored, H x W x bands, with its orientation applied, and their layout.

    Raises: ImageError; NotALabelMap if programs disagree on what its samples are.
    """
    directory = Directory(io.BytesIO(content), len(content))
    layout = read_layout(directory, max_pixels)
    if layout.compression in tiff_layout.FAX and layout.photometric == tiff_layout.WHITE_IS_ZERO:
        raise ImageError("NotALabelMap", "is a fax that stores white as 0, which programs write for 1; save it as PNG")
    if layout.is_of_bytes:
        samples_HWC = stored_samples(directory, layout)
    else:
        samples_HWC = np.atleast_3d(np.asarray(_by_libtiff(directory, layout)))
    return turned(samples_HWC, orientation_of(directory)), layout


def orientation_of(directory: Directory) -> int:
    """Return the EXIF orientation, 1 to 8, that Pillow finds in a file with these tags."""
    gray = {tiff_directory.WIDTH: 1, tiff_directory.LENGTH: 1, tiff_directory.BITS: 8, tiff_directory.PHOTOMETRIC: 1}
    content = directory.small_tiff(
        [b"\0"], {**gray, tiff_directory.STRIP_BYTES: [1]}, kept=(tiff_directory.ORIENTATION, tiff_directory.XMP)
    )
    with quiet(), failures("damaged header"):
        turn = OPENERS["TIFF"](io.BytesIO(content)).getexif().get(ExifTags.Base.Orientation, 1)
    return int(turn) if turn in range(1, 9) else 1


def stored_samples(directory: Directory, layout: Layout, bands: list[int] | None = None) -> NDArray[np.generic]:
    """Return the samples of a TIFF whose layout `is_of_bytes`, H x W x C, in this machine's byte order.

    `bands` are those to read, counted from 0; None: all. Raises: ImageError.
    """
    of_tile: list[int] | slice = slice(None) if bands is None or layout.is_planar else bands
    bands = list(range(layout.bands)) if bands is None else bands
    samples_HWC = np.empty((layout.height, layout.width, len(bands)), layout.dtype)
    offsets, lengths = tile_spans(directory, layout)
    rows, columns = layout.tiles
    step = max(1, GROUP_BYTES // (layout.tile_height * layout.row_bytes * columns))
    for place, plane in enumerate(bands if layout.is_planar else [0]):
        target_HWC = samples_HWC[..., place : place + 1] if layout.is_planar else samples_HWC
        for row in range(0, rows, step):
            top, bottom = row * layout.tile_height, min((row + step) * layout.tile_height, layout.height)
            first = (plane * rows + row) * columns
            last = first + (min(row + step, rows) - row) * columns
            spans = [(int(offsets[n]), int(lengths[n])) for n in range(first, last)]
            _fill(target_HWC[top:bottom], spans, of_tile, directory, layout)
    return samples_HWC


def tile_spans(directory: Directory, layout: Layout) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the offsets and lengths of all tiles or strips, plane by plane. Raises ImageError."""
    of_offsets, of_lengths = (
        (tiff_directory.TILE_OFFSETS, tiff_directory.TILE_BYTES)
        if layout.is_tiled
        else (tiff_directory.STRIP_OFFSETS, tiff_directory.STRIP_BYTES)
    )
    if of_offsets not in directory:
        raise ImageError("Corrupt", "damaged header: it has no tiles or strips")
    offsets = directory.numbers(of_offsets)
    needed = layout.num_planes * layout.tiles[0] * layout.tiles[1]
    if of_lengths in directory:
        lengths = directory.numbers(of_lengths)
    elif needed == 1 and len(offsets):  # writers of old left out the length of a single strip
        lengths = np.array([max(0, directory.size - int(offsets[0]))])
    else:
        raise ImageError("Unsupported", "a TIFF without the lengths of its strips is not decoded")
    if min(len(offsets), len(lengths)) < needed:
        raise ImageError("Corrupt", f"damaged header: it has {len(offsets)} tiles or strips of {needed}")
    return offsets[:needed], lengths[:needed]


def _fill(
    target_HWC: NDArray[np.generic],
    spans: list[tuple[int, int]],
    bands: list[int] | slice,
    directory: Directory,
    layout: Layout,
) -> None:
    """Decode bands of rows of tiles, given by offset and length, into the rows of an image."""
    columns = layout.tiles[1]
    nodata = nodata_value(directory, layout.dtype)
    unpacked = _unpacked(spans, len(target_HWC), directory, layout)
    for number, tile_HB in enumerate(unpacked):
        top, left = number // columns * layout.tile_height, number % columns * layout.tile_width
        part_HWC = target_HWC[top : top + layout.tile_height, left : left + layout.tile_width]
        if tile_HB is None:
            part_HWC[:] = 0 if nodata is None else nodata
            continue
        step = max(1, STRIP_SAMPLES // layout.row_bytes)
        for start in range(0, len(part_HWC), step):
            rows_HB = tile_HB(start, min(start + step, len(part_HWC)))
            samples_HWC = _samples(rows_HB, layout, directory.is_big_endian)
            part_HWC[start : start + step] = samples_HWC[:, : part_HWC.shape[1], bands]


Rows = Callable[[int, int], NDArray[np.uint8]]


def _unpacked(
    spans: list[tuple[int, int]], num_rows: int, directory: Directory, layout: Layout
) -> Iterator[Rows | None]:
    """Yield a function (start, stop) -> rows of bytes for every tile; None if the file does not store the tile."""
    stored = [span for span in spans if span != (0, 0)]
    height, width = layout.tile_height, layout.row_bytes
    if layout.compression == 1 and directory.number(tiff_directory.FILL_ORDER, 1) == 1:
        for index, (offset, length) in enumerate(spans):
            if (offset, length) == (0, 0):
                yield None
                continue
            rows = height if layout.is_tiled else min(height, num_rows - index * height)
            if length < rows * width:
                raise ImageError("Corrupt", f"truncated: a tile or strip has {length} bytes of {rows * width}")
            tile_HB = np.frombuffer(directory.read(offset, rows * width), np.uint8).reshape(rows, width)
            yield _rows_of_array(tile_HB)
        return
    image = _bytes_image([directory.read(*span) for span in stored], num_rows, directory, layout) if stored else None
    top = 0
    for span in spans:
        if image is None or span == (0, 0):
            yield None
            continue
        yield _rows_of_image(image, top)
        top += height


def _rows_of_array(tile_HB: NDArray[np.uint8]) -> Rows:
    return lambda start, stop: tile_HB[start:stop]


def _rows_of_image(image: Image.Image, top: int) -> Rows:
    return lambda start, stop: np.asarray(image.crop((0, top + start, image.width, top + stop)))


def _bytes_image(pieces: list[bytes], num_rows: int, directory: Directory, layout: Layout) -> Image.Image:
    """Return the bytes of tiles, one below the other, as an 8-bit gray image."""
    rows = len(pieces) * layout.tile_height
    content = directory.small_tiff(
        pieces,
        {
            tiff_directory.WIDTH: layout.row_bytes,
            tiff_directory.LENGTH: rows if layout.is_tiled else min(rows, num_rows),
            tiff_directory.BITS: 8,
            tiff_directory.PHOTOMETRIC: tiff_layout.BLACK_IS_ZERO,
            tiff_directory.ROWS_PER_STRIP: layout.tile_height,
            tiff_directory.STRIP_BYTES: [len(piece) for piece in pieces],
        },
        kept=(tiff_directory.COMPRESSION, tiff_directory.FILL_ORDER),
    )
    return _loaded(content)


def _by_libtiff(directory: Directory, layout: Layout) -> Image.Image:
    """Decode a TIFF whose samples only libtiff knows: JPEG, fax and YCbCr."""
    offsets, lengths = tile_spans(directory, layout)
    spans = list(zip(offsets.tolist(), lengths.tolist(), strict=True))
    if (0, 0) in spans:
        raise ImageError("Unsupported", f"a TIFF without some of its tiles is not decoded: {layout}")
    pieces = [directory.read(*span) for span in spans]
    lengths_of_pieces = [len(piece) for piece in pieces]
    size = {tiff_directory.LENGTH: layout.height, tiff_directory.WIDTH: layout.width}
    if layout.is_tiled:
        tile = {tiff_directory.TILE_LENGTH: layout.tile_height, tiff_directory.TILE_WIDTH: layout.tile_width}
        return _loaded(directory.small_tiff(pieces, {**size, **tile, tiff_directory.TILE_BYTES: lengths_of_pieces}))
    rows = {tiff_directory.ROWS_PER_STRIP: layout.tile_height}
    return _loaded(directory.small_tiff(pieces, {**size, **rows, tiff_directory.STRIP_BYTES: lengths_of_pieces}))


def _loaded(content: bytes) -> Image.Image:
    with failures("damaged header"):
        image = OPENERS["TIFF"](io.BytesIO(content))
    load(image)
    return image


def _samples(rows_HB: NDArray[np.uint8], layout: Layout, is_big_endian: bool) -> NDArray[np.generic]:
    """Return the samples in rows of unpacked bytes, rows x tile width x bands."""
    bands = 1 if layout.is_planar else layout.bands
    shape = len(rows_HB), layout.tile_width, bands
    if layout.bits not in (8, 16, 32, 64):
        bits_HSB = np.unpackbits(rows_HB, axis=1)[:, : layout.tile_width * bands * layout.bits]
        samples = np.zeros((len(rows_HB), layout.tile_width * bands), layout.dtype)
        for bit in range(layout.bits):
            samples = samples << 1 | bits_HSB[:, bit :: layout.bits]
        return samples.reshape(shape)
    if layout.predictor == 3:
        sums_HB = rows_HB.reshape(len(rows_HB), -1, bands).cumsum(axis=1, dtype=np.uint8)
        # The most significant bytes of all samples come first, in files of either byte order.
        bytes_HSB = sums_HB.reshape(len(rows_HB), layout.bits // 8, -1).swapaxes(1, 2)
        return np.ascontiguousarray(bytes_HSB).view(np.dtype(layout.dtype).newbyteorder(">")).reshape(shape)
    num_bytes = layout.bits // 8
    words = np.ascontiguousarray(rows_HB).view(f"{'>' if is_big_endian else '<'}u{num_bytes}").reshape(shape)
    if layout.predictor == 2:
        words = words.cumsum(axis=1, dtype=f"u{num_bytes}")
    return words.astype(f"u{num_bytes}", copy=False).view(layout.dtype)


def _color_map(directory: Directory, layout: Layout) -> NDArray[np.uint8]:
    """Return the palette, colors x 3."""
    num_colors = 1 << layout.bits
    if tiff_directory.COLOR_MAP not in directory:
        raise ImageError("Corrupt", "damaged header: the color map of a palette TIFF is missing")
    stored = directory.numbers(tiff_directory.COLOR_MAP)
    if len(stored) != 3 * num_colors:
        raise ImageError("Corrupt", f"damaged header: its color map has {len(stored)} values of {3 * num_colors}")
    # Some writers store 8-bit values, although the format has 16 bits.
    shift = 8 if stored.max() > 255 else 0
    return np.ascontiguousarray((stored >> shift).astype(np.uint8).reshape(3, num_colors).T)


def _black_and_white(samples: Samples, layout: Layout) -> tuple[float, float]:
    """Return the samples that are black and white, the ends of their range."""
    if layout.sample_format == tiff_layout.FLOAT:
        counted_HWC = np.isfinite(samples.bands_HWC)
        if samples.valid_HW is not None:
            counted_HWC &= samples.valid_HW[..., None]
        highest = np.max(samples.bands_HWC, initial=0, where=counted_HWC)
        white = 1.0 if highest < FLOAT_ONE else 255.0
    else:
        value_bits = layout.bits - 1 if layout.sample_format == tiff_layout.SIGNED else layout.bits
        white = 2.0**value_bits - 1
    return (white, 0.0) if layout.photometric == tiff_layout.WHITE_IS_ZERO else (0.0, white)
