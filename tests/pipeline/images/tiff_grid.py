"""TIFFs of every combination of byte order, planes, colors, samples, compression and tiles, with their pixels."""

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.pipeline.image_corpus import tiff

HEIGHT, WIDTH = 37, 45
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "gray": (1, {"photometric": "minisblack"}),
    "inverted gray": (1, {"photometric": "miniswhite"}),
    "palette": (1, {"photometric": "palette"}),
    "gray and alpha": (2, {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
    "two bands": (2, {"photometric": "minisblack", "extrasamples": ["unspecified"]}),
    "three bands": (3, {"photometric": "minisblack", "extrasamples": ["unspecified"] * 2}),
    "RGB": (3, {"photometric": "rgb"}),
    "RGB and alpha": (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "RGB times alpha": (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "RGB and infrared": (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "CMYK": (4, {"photometric": "separated"}),
    "four bands": (4, {"photometric": "minisblack", "extrasamples": ["unspecified"] * 3}),
    "seven bands": (7, {"photometric": "minisblack", "extrasamples": ["unspecified"] * 6}),
}
SAMPLES: dict[str, tuple[str, int]] = {
    "1-bit": ("?", 1),
    **{f"{bits}-bit": ("u1", bits) for bits in (2, 4)},
    **{f"{bits}-bit": ("u2", bits) for bits in (10, 12, 14)},
    **{f"{letter}{size}": (f"{letter}{size}", 8 * size) for letter in "ui" for size in (1, 2, 4, 8)},
    **{f"f{size}": (f"f{size}", 8 * size) for size in (2, 4, 8)},
}
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deflate": {"compression": "zlib"},
    "predictor": {"compression": "zlib", "predictor": True},
    "LZMA": {"compression": "lzma"},
}
TILES: dict[str, dict[str, Any]] = {"strips": {"rowsperstrip": 8}, "tiles": {"tile": (16, 32)}}


@dataclass(frozen=True)
class Case:
    """TIFF with the samples written to it, H x W x bands, and its pixels, H x W x 3 (None: to be refused)."""

    name: str
    content: bytes
    samples_HWC: NDArray[Any]
    pixels_HW3: NDArray[np.float64] | None


@dataclass(frozen=True)
class Form:
    """Storage of the samples of a TIFF of the grid; the names are keys of the tables above."""

    kind: str
    depth: str
    order: str
    is_big: bool
    is_planar: bool
    compression: str
    tiles: str

    def is_written(self) -> bool:
        """Return True if tifffile or `packed_tiff` writes it."""
        letters, bits = SAMPLES[self.depth]
        if self.is_planar and KINDS[self.kind][0] == 1:
            return False
        if self.kind == "palette" and not (letters in ("u1", "u2") and bits in (2, 4, 8, 16)):
            return False
        if letters == "?" and self.kind not in ("gray", "inverted gray"):
            return False
        if bits not in (1, 8, 16, 32, 64) and (self.is_big or self.tiles == "tiles"):
            return False
        return self.compression != "predictor" or (bits in (8, 16, 32) and not letters.startswith("f"))

    def __str__(self) -> str:
        planes = "planar" if self.is_planar else "interleaved"
        return (
            f"{self.kind}, {self.depth}, {self.order}{' big' * self.is_big}, {planes}, {self.compression}, {self.tiles}"
        )


def cases(every: int = 1) -> Iterator[Case]:
    """Return every TIFF of the grid, or one of `every` so many."""
    axes = (KINDS, SAMPLES, "<>", (False, True), (False, True), COMPRESSIONS, TILES)
    forms = (Form(*values) for values in itertools.product(*axes))  # type: ignore[arg-type, call-overload]
    written = (form for form in forms if form.is_written())
    return map(_case, itertools.islice(written, 0, None, every))


def _case(form: Form) -> Case:
    bands, options = KINDS[form.kind]
    letters, bits = SAMPLES[form.depth]
    samples_HWC = _samples(bands, letters, bits)
    color_map = np.random.default_rng(bits).integers(0, 2**16, (3, 1 << min(bits, 16)), np.uint16)
    options = {
        **options,
        **({"colormap": color_map} if form.kind == "palette" else {}),
        "byteorder": form.order,
        "bigtiff": form.is_big,
        "planarconfig": "separate" if form.is_planar else "contig" if bands > 1 else None,
        **COMPRESSIONS[form.compression],
        **TILES[form.tiles],
    }
    if bits in (1, 8, 16, 32, 64):
        stored = np.moveaxis(samples_HWC, 2, 0).copy() if form.is_planar else samples_HWC
        content = tiff(samples_HWC[..., 0] if bands == 1 else stored, **options)
    else:
        content = packed_tiff(samples_HWC, bits, **options)
    return Case(str(form), content, samples_HWC, _pixels(samples_HWC, form.kind, bits, color_map))


def packed_tiff(samples_HWC: NDArray[Any], bits: int, **options: Any) -> bytes:
    """Return a TIFF in one strip per plane, of a depth that tifffile does not write without its codecs."""
    height, width, bands = samples_HWC.shape
    planar, order = options["planarconfig"] == "separate", options["byteorder"]
    planes = [samples_HWC[..., band] for band in range(bands)] if planar else [samples_HWC.reshape(height, -1)]
    compress = {None: bytes, "zlib": zlib.compress, "lzma": lzma.compress}[options.get("compression")]
    strips = []
    for plane_HS in planes:
        bits_HSB = plane_HS[..., None].astype(int) >> np.arange(bits)[::-1] & 1
        strips.append(compress(np.packbits(bits_HSB.reshape(height, -1).astype(np.uint8), axis=1).tobytes()))
    photometrics = {"miniswhite": 0, "minisblack": 1, "rgb": 2, "palette": 3, "separated": 5}
    extras = [{"unspecified": 0, "assocalpha": 1, "unassalpha": 2}[name] for name in options.get("extrasamples", [])]
    tags = {
        **{256: [width], 257: [height], 258: [bits] * bands, 277: [bands], 278: [height], 284: [1 + planar]},
        259: [{None: 1, "zlib": 8, "lzma": 34925}[options.get("compression")]],
        262: [photometrics[options["photometric"]]],
        **({320: options["colormap"].ravel().tolist()} if "colormap" in options else {}),
        **({338: extras} if extras else {}),
    }
    return handmade_tiff(tags, strips, order)


def handmade_tiff(tags: dict[int, list[int]], strips: list[bytes], order: str = "<") -> bytes:
    """Return a TIFF with these tags (all of 32 bits) and strips, which may be of a kind that no library writes."""
    values = {**tags, 273: [0] * len(strips), 279: [len(strip) for strip in strips]}
    start = 8 + 2 + 12 * len(values) + 4
    end = start + sum(4 * len(numbers) for numbers in values.values() if len(numbers) > 1)
    values[273] = [end + sum(map(len, strips[:index])) for index in range(len(strips))]
    table, behind = struct.pack(order + "H", len(values)), b""
    for tag, numbers in sorted(values.items()):
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = content if len(numbers) == 1 else struct.pack(order + "I", start + len(behind))
        behind += content if len(numbers) > 1 else b""
        table += struct.pack(order + "HHI", tag, 4, len(numbers)) + place
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return head + table + bytes(4) + behind + b"".join(strips)


def _samples(bands: int, letters: str, bits: int) -> NDArray[Any]:
    rng = np.random.default_rng([bands, bits])
    shape = HEIGHT, WIDTH, bands
    if letters.startswith("f"):
        return rng.uniform(-0.1, 1.2, shape).astype(letters)
    if letters == "?":
        return rng.random(shape) < 0.5
    if letters.startswith("i"):
        limits = np.iinfo(letters)
        return rng.integers(limits.min, limits.max, shape, letters, endpoint=True)
    return rng.integers(0, 2**bits - 1, shape, letters, endpoint=True)


def _pixels(samples_HWC: NDArray[Any], kind: str, bits: int, color_map: NDArray[np.uint16]) -> NDArray[Any] | None:
    """Return what a viewer shows, not rounded; None if nobody can know."""
    if kind in ("two bands", "three bands", "RGB and infrared", "four bands", "seven bands"):
        return None
    if kind == "palette":
        return (color_map >> 8).T[samples_HWC[..., 0].astype(int)].astype(float)
    has_alpha_or_inks = "alpha" in kind or kind == "CMYK"
    if has_alpha_or_inks and samples_HWC.dtype.kind in "if":
        return None
    white = {"f": 1, "i": 2.0 ** (bits - 1) - 1, "u": 2.0**bits - 1, "b": 1}[samples_HWC.dtype.kind]
    light = (samples_HWC.astype(float) / white).clip(0, 1)
    if kind == "inverted gray":
        light = 1 - light
    if kind == "CMYK":
        light = (1 - light[..., :3]) * (1 - light[..., 3:])
    elif "times alpha" in kind:
        light = (light[..., :-1] + 1 - light[..., -1:]).clip(0, 1)
    elif "alpha" in kind:
        light = light[..., :-1] * light[..., -1:] + 1 - light[..., -1:]
    return np.broadcast_to(255 * light, (*light.shape[:2], 3))
