"""Layout of a TIFF's samples: what they are, how they are stored, and a refusal of layouts that are not decoded."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.images import tiff_directory
from pipeline.images.formats import ImageError, check_pixels

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, INKS, YCBCR = 0, 1, 2, 3, 5, 6
PHOTOMETRICS = {
    WHITE_IS_ZERO: "gray whose zero is white",
    BLACK_IS_ZERO: "gray",
    RGB: "RGB",
    PALETTE: "palette",
    4: "transparency mask",
    INKS: "CMYK",
    YCBCR: "YCbCr",
    8: "Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "color filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
RAW_PHOTOMETRICS = frozenset({32803, 34892})
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
SAMPLE_FORMATS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float", 4: "untyped", 5: "complex", 6: "complex"}
JPEG, DEFLATE = 7, (8, 32946)
COMPRESSIONS = {
    1: "no compression",
    2: "fax",
    3: "fax group 3",
    4: "fax group 4",
    5: "LZW",
    6: "old-style JPEG",
    JPEG: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "zstd",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
FAX = frozenset({2, 3, 4})
WITH_PREDICTOR = frozenset({5, *DEFLATE, 34925, 50000})
OF_BYTES = frozenset({1, 32773, *WITH_PREDICTOR})  # compress the bytes of samples, whatever the samples are
MAX_UNPACKED = 2**30  # bytes of a row of tiles, if bands are selected, of which a file may have thousands
ASSOCIATED, UNASSOCIATED = 1, 2  # alpha, as values of EXTRA_SAMPLES
OF_LIGHT = frozenset({WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR})  # whose samples are brighter or darker
SELECT = "set bands (--bands, or data.bands for a dataset), such as 3,2,1, to select those of red, green and blue"
_COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, INKS: 4, YCBCR: 3}
_CAMERA_FILES = {"NIKON": "NEF", "SONY": "ARW", "CANON": "CR2", "PENTAX": "PEF", "SAMSUNG": "SRW", "EPSON": "ERF"}


@dataclass(frozen=True)
class Layout:
    """Layout of the samples of a TIFF; sizes are as stored, before its orientation is applied.

    Attributes:
        height, width: of the image, in pixels.
        tile_height, tile_width: of a tile; a strip is a tile as wide as the image.
        is_tiled: the file has tiles rather than strips.
        bands: samples per pixel, alpha included.
        alpha: ASSOCIATED or UNASSOCIATED if the last band is alpha, otherwise 0.
        is_planar: every band is stored by itself.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    is_tiled: bool
    bands: int
    bits: int
    sample_format: int
    photometric: int
    alpha: int
    is_planar: bool
    compression: int
    predictor: int

    @property
    def num_planes(self) -> int:
        """Number of planes that the file stores one after the other."""
        return self.bands if self.is_planar else 1

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles in a plane."""
        return -(-self.height // self.tile_height), -(-self.width // self.tile_width)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a tile."""
        return -(-self.tile_width * (1 if self.is_planar else self.bands) * self.bits // 8)

    @property
    def dtype(self) -> DTypeLike:
        """Smallest type that holds a sample."""
        if self.sample_format == FLOAT:
            return np.dtype(f"f{self.bits // 8}")
        num_bytes = next(size for size in (1, 2, 4, 8) if self.bits <= 8 * size)
        return np.dtype(f"{'i' if self.sample_format == SIGNED else 'u'}{num_bytes}")

    @property
    def is_of_bytes(self) -> bool:
        """True if its tiles unpack to the bytes of samples; otherwise only libtiff knows the samples."""
        return self.compression in OF_BYTES and self.photometric != YCBCR

    def __str__(self) -> str:
        return (
            f"{self.bands} band{'s' if self.bands > 1 else ''} of {self.bits}-bit "
            f"{SAMPLE_FORMATS.get(self.sample_format, f'format {self.sample_format}')} samples, "
            f"{PHOTOMETRICS.get(self.photometric, f'photometric interpretation {self.photometric}')}"
            f"{' with alpha' if self.alpha else ''}, {'planar' if self.is_planar else 'interleaved'}, "
            f"{COMPRESSIONS.get(self.compression, f'compression {self.compression}')}"
        )


def read_layout(
    directory: tiff_directory.Directory, max_pixels: int | None = None, rendering: Rendering = AS_DECLARED
) -> Layout:
    """Return the layout of a TIFF that can be decoded; bands that `rendering` selects have no alpha.

    Raises: ImageError; Unsupported if its pixels would be a guess, TooLarge if it has more than `max_pixels`.
    """
    _check_origin(directory)
    layout = _layout(directory)
    _check_size(layout, max_pixels)
    if layout.compression not in OF_BYTES | FAX | {JPEG}:
        raise _unsupported("this compression", layout)
    if rendering.bands is not None:
        layout = replace(layout, alpha=0)
    if not rendering.is_as_declared and layout.photometric not in OF_LIGHT:
        raise _unsupported("a selection of bands or a value range", layout, "remove the option, or save it as RGB")
    if rendering.bands is None:
        _check_bands(directory, layout)
    else:
        _check_selection(layout, rendering.bands)
    _check_samples(layout)
    return layout


def _layout(directory: tiff_directory.Directory) -> Layout:
    number = directory.number
    height, width = number(tiff_directory.LENGTH), number(tiff_directory.WIDTH)
    if min(height, width) < 1:
        raise ImageError("Corrupt", f"damaged header: {width} x {height} pixels")
    is_tiled = tiff_directory.TILE_OFFSETS in directory
    if is_tiled:
        tile_height, tile_width = number(tiff_directory.TILE_LENGTH), number(tiff_directory.TILE_WIDTH)
    else:
        tile_height, tile_width = min(number(tiff_directory.ROWS_PER_STRIP, height), height), width
    if min(tile_height, tile_width) < 1:
        raise ImageError("Corrupt", f"damaged header: its tiles are {tile_width} x {tile_height}")
    bands = number(tiff_directory.SAMPLES, 1)
    if bands < 1:
        raise ImageError("Corrupt", f"damaged header: {bands} samples per pixel")
    alpha = 0
    if tiff_directory.EXTRA_SAMPLES in directory:
        extra = directory.numbers(tiff_directory.EXTRA_SAMPLES).tolist()
        alpha = extra[0] if len(extra) == 1 and extra[0] in (ASSOCIATED, UNASSOCIATED) else 0
    if tiff_directory.PHOTOMETRIC not in directory:
        raise ImageError("Unsupported", "a TIFF without its photometric interpretation is not decoded")
    return Layout(
        height=height,
        width=width,
        tile_height=tile_height,
        tile_width=tile_width,
        is_tiled=is_tiled,
        bands=bands,
        bits=_same(directory, tiff_directory.BITS, 1, "bits"),
        sample_format=_same(directory, tiff_directory.SAMPLE_FORMAT, UNSIGNED, "sample formats"),
        photometric=number(tiff_directory.PHOTOMETRIC),
        alpha=alpha,
        is_planar=number(tiff_directory.PLANES, 1) == 2 and bands > 1,
        compression=number(tiff_directory.COMPRESSION, 1),
        predictor=number(tiff_directory.PREDICTOR, 1),
    )


def _same(directory: tiff_directory.Directory, tag: int, default: int, name: str) -> int:
    """Return the value that a tag has for all bands."""
    if tag not in directory:
        return default
    values = sorted(set(directory.numbers(tag).tolist()))
    if len(values) > 1:
        raise ImageError("Unsupported", f"a TIFF whose bands have different {name} ({values}) is not decoded")
    return int(values[0])


def _check_size(layout: Layout, max_pixels: int | None) -> None:
    check_pixels(layout.width, layout.height, max_pixels)
    if layout.is_tiled:
        rows, columns = layout.tiles
        check_pixels(columns * layout.tile_width, rows * layout.tile_height, max_pixels, "with its tiles, ")


def _check_origin(directory: tiff_directory.Directory) -> None:
    """Raise ImageError if the first picture is a thumbnail, as in the raw files of cameras."""
    make = directory.text(tiff_directory.MAKE)
    name = None
    if tiff_directory.DNG_VERSION in directory:
        name = "DNG"
    elif RAW_PHOTOMETRICS & {directory.number(tiff_directory.PHOTOMETRIC, 0), *directory.sub_photometrics()}:
        name = _CAMERA_FILES.get(make.split(" ")[0].upper(), "TIFF with sensor data")
    elif make and directory.number(tiff_directory.SUBFILE_TYPE, 0) & 1:
        name = _CAMERA_FILES.get(make.split(" ")[0].upper(), "thumbnail first")
    if name:
        raise ImageError("Unsupported", f"a camera's raw file ({name}) is not supported; convert it to JPEG or PNG")
    if directory.number(tiff_directory.SUBFILE_TYPE, 0) & 1:
        raise ImageError("Unsupported", "the first page of the TIFF is a reduced copy of another; save that page alone")


def _check_bands(directory: tiff_directory.Directory, layout: Layout) -> None:
    """Raise ImageError unless the file says which color each of its bands is."""
    colors = _COLORS.get(layout.photometric)
    if colors is None or (layout.photometric == INKS and directory.number(tiff_directory.INK_SET, 1) != 1):
        raise _unsupported("these colors", layout)
    if layout.bands != colors + bool(layout.alpha):
        raise _unsupported("bands other than gray, RGB or CMYK", layout, SELECT)
    if layout.alpha and layout.photometric not in (BLACK_IS_ZERO, RGB):
        raise _unsupported("alpha with these colors", layout)
    if layout.alpha and any(tag in directory for tag in tiff_directory.GEO_TAGS):
        raise _unsupported("a georeferenced alpha band, which may be another band such as infrared,", layout, SELECT)


def _check_selection(layout: Layout, bands: tuple[int, ...]) -> None:
    """Raise ImageError unless the file has the bands, counted from 1, and they can be taken out of it."""
    unpacked = layout.tile_height * layout.row_bytes * layout.tiles[1]
    if unpacked > MAX_UNPACKED:
        raise ImageError(
            "TooLarge",
            f"a row of its tiles unpacks to {unpacked} bytes; the limit is {MAX_UNPACKED}; save it by planes, or with "
            f"smaller tiles: {layout}",
        )
    if max(bands) > layout.bands:
        raise ImageError(
            "Unsupported",
            f"the bands {','.join(map(str, bands))} were selected, but the file has only {layout.bands}: {layout}",
        )
    if not layout.is_of_bytes and layout.bands != _COLORS[layout.photometric]:
        raise _unsupported("more bands than colors in this compression", layout, "save it with deflate or LZW")


def _check_samples(layout: Layout) -> None:
    if not _is_known_sample(layout):
        raise _unsupported("this type of samples", layout)
    if not _is_known_predictor(layout):
        raise _unsupported(f"predictor {layout.predictor}", layout)


def _unsupported(reason: str, layout: Layout, way_out: str = "convert it to 8-bit gray or RGB") -> ImageError:
    return ImageError("Unsupported", f"{reason} in a TIFF cannot be decoded: {layout}; {way_out}")


def _is_known_sample(layout: Layout) -> bool:
    if layout.compression in FAX:
        return (layout.bits, layout.bands, layout.sample_format) == (1, 1, UNSIGNED) and layout.photometric <= 1
    if layout.compression == JPEG or layout.photometric == YCBCR:
        is_plain = (layout.bits, layout.sample_format, layout.alpha) == (8, UNSIGNED, 0)
        return is_plain and layout.photometric != PALETTE and not (layout.photometric == YCBCR and layout.is_planar)
    if layout.sample_format == FLOAT:
        return (
            layout.bits in (16, 32, 64)
            and layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
            and not layout.alpha
        )
    if layout.sample_format == SIGNED:
        return (
            layout.bits in (8, 16, 32, 64)
            and layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
            and not layout.alpha
        )
    if layout.photometric == PALETTE and layout.bits > 16:
        return False
    return layout.sample_format in (UNSIGNED, 4) and (1 <= layout.bits <= 16 or layout.bits in (32, 64))


def _is_known_predictor(layout: Layout) -> bool:
    if layout.predictor == 1 or layout.compression in FAX | {JPEG}:
        return True
    if layout.compression not in WITH_PREDICTOR:
        return False
    is_of_words = layout.bits in (8, 16, 32, 64)
    return is_of_words if layout.predictor == 2 else layout.predictor == 3 and layout.sample_format == FLOAT
