"""BMPs whose samples are bit fields of 16 or 32 bits, of which Pillow reads a few."""

import struct

import numpy as np
from numpy.typing import NDArray

from pipeline.images.formats import ImageError

BIT_FIELDS, ALPHA_BIT_FIELDS = 3, 6  # values of the header's compression
_WITH_ALPHA_MASK = 56  # bytes of the smallest header with a mask for alpha
_MASKS_AT = 54


def has_bit_fields(content: bytes) -> bool:
    """Return True if a BMP's header has masks of its samples."""
    if len(content) < _MASKS_AT + 12 or int.from_bytes(content[14:18], "little") < 40:
        return False
    bits, compression = struct.unpack_from("<HI", content, 28)
    return bits in (16, 32) and compression in (BIT_FIELDS, ALPHA_BIT_FIELDS)


def bmp_size(content: bytes) -> tuple[int, int]:
    """Return the width and height of a BMP with `has_bit_fields`. Raises ImageError."""
    width, height = struct.unpack_from("<ii", content, 18)
    if width < 1 or height == 0:
        raise ImageError("Corrupt", f"damaged header: {width} x {height} pixels")
    return width, abs(height)


def bit_fields(content: bytes) -> NDArray[np.uint8]:
    """Decode a BMP with `has_bit_fields`: H x W x 3, or H x W x 4 with alpha. Raises ImageError."""
    (start,) = struct.unpack_from("<I", content, 10)
    header, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", content, 14)
    has_alpha = compression == ALPHA_BIT_FIELDS or header >= _WITH_ALPHA_MASK
    masks = [mask for mask in struct.unpack_from(f"<{3 + has_alpha}I", content, _MASKS_AT) if mask]
    if len(masks) < 3 or not all(_is_one_field(mask, bits) for mask in masks):
        raise ImageError("Corrupt", f"damaged header: its bit fields are {', '.join(f'{mask:#x}' for mask in masks)}")
    row_bytes = -(-width * bits // 32) * 4
    if start + row_bytes * abs(height) > len(content):
        raise ImageError("Corrupt", f"truncated: {len(content)} bytes of {start + row_bytes * abs(height)}")
    rows_HB = np.frombuffer(content, np.uint8, row_bytes * abs(height), start).reshape(abs(height), row_bytes)
    words_HW = rows_HB[:, : width * bits // 8].view(f"<u{bits // 8}")
    samples_HWC = np.empty((*words_HW.shape, len(masks)), np.uint8)
    for channel, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1
        field_HW = ((words_HW & mask) >> shift).astype(np.float32)
        samples_HWC[..., channel] = (field_HW * (255 / (mask >> shift))).round()
    return samples_HWC if height < 0 else samples_HWC[::-1]


def _is_one_field(mask: int, bits: int) -> bool:
    """Return True if the set bits of a mask are neighbors."""
    field = mask // (mask & -mask)
    return mask < 1 << bits and field & (field + 1) == 0
