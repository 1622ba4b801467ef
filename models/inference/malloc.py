"""What the C library does with freed memory."""

import ctypes
import functools
import sys

LARGE = 1 * 2**20
_M_MMAP_THRESHOLD = -3


@functools.cache
def return_large_blocks() -> None:
    """Have freed blocks of 4 MiB and more given back to the system at once, from now on in this process.

    glibc keeps freed blocks of up to 32 MiB for later ones and, with blocks of many sizes and lives, ends with twice
    the memory that is in use. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE)
