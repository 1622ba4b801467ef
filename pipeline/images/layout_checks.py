"""Refusal of JPEG 2000, Photoshop and TGA files whose samples Pillow would take for others."""

import struct

from pipeline.images.formats import ImageError

_PSD_CHANNELS = {(1, 8): 1, (2, 8): 1, (3, 8): 3, (4, 8): 4}  # (color mode, bits) -> channels
_PSD_MODES = {0: "bitmap", 1: "gray", 2: "palette", 3: "RGB", 4: "CMYK", 7: "multichannel", 8: "duotone", 9: "Lab"}
_PSD_VERSION = b"8BIM\x04\x21\0\0"  # the resource that says if there is a composite
_J2K_SIZE = b"\xff\x4f\xff\x51"


def check_layout(format: str, content: bytes) -> None:
    """Raise ImageError if the layout of a file is not decoded; `format` is Pillow's name of its format."""
    if format == "JPEG2000":
        _check_jpeg2000(content)
    elif format == "PSD":
        _check_photoshop(content)
    elif format == "TGA":
        _check_tga(content)


def _check_jpeg2000(content: bytes) -> None:
    start = content.find(_J2K_SIZE)
    if start < 0 or len(content) < start + 42:
        raise ImageError("Corrupt", "damaged header: the JPEG 2000 has no size")
    (bands,) = struct.unpack_from(">H", content, start + 40)
    components = content[start + 42 : start + 42 + 3 * bands]
    depths, steps = sorted(set(components[::3])), {*components[1::3], *components[2::3]}
    head = content[:start]
    is_known = bands in (1, 3) or (bands in (2, 4) and b"cdef" in head)
    is_plain = len(depths) == 1 and depths[0] in (7, *range(9, 16)) and steps == {1} and b"pclr" not in head
    if not is_known or not is_plain:
        bits = ", ".join(f"{depth % 128 + 1}-bit {'signed' if depth > 127 else 'unsigned'}" for depth in depths)
        palette = " with a palette" if b"pclr" in head else ""
        raise _unsupported(f"JPEG 2000 of {bands} bands of {bits} samples{palette}")


def _check_photoshop(content: bytes) -> None:
    if len(content) < 26:
        raise ImageError("Corrupt", "truncated: the Photoshop file has no header")
    channels, _, _, bits, mode = struct.unpack_from(">HIIHH", content, 12)
    name = f"Photoshop file of {channels} channels of {bits} bits, {_PSD_MODES.get(mode, f'mode {mode}')}"
    if _PSD_CHANNELS.get((mode, bits)) != channels:
        raise _unsupported(name)
    version = content.find(_PSD_VERSION)
    if version >= 0 and content[version + 16 : version + 17] == b"\0":
        raise _unsupported(f"{name}, without a composite of its layers")


def _check_tga(content: bytes) -> None:
    depth, alpha_bits = content[16], content[17] & 0x0F
    is_gray, is_mapped = content[2] in (3, 11), content[1] == 1
    expected = {(8, 0), (16, 8)} if is_gray else {(8, 0), (8, 8)} if is_mapped else {(24, 0), (32, 8)}
    if (depth, alpha_bits) not in expected or content[17] & 0xD0 or (is_mapped and content[7] != 24):
        kind = "gray" if is_gray else "palette" if is_mapped else "RGB"
        raise _unsupported(f"TGA of {depth} bits per pixel, {alpha_bits} of them alpha, {kind}")


def _unsupported(what: str) -> ImageError:
    return ImageError("Unsupported", f"{what} is not decoded; convert it to JPEG or PNG")
