"""Settings of the C library's memory allocator."""

import ctypes
import functools
import sys

LARGE = 1 * 2**20
_M_MMAP_THRESHOLD = -3


@functools.cache
def return_large_blocks() -> None:
    """Make the allocator of this process return freed blocks of LARGE bytes or more to the system at once.

    glibc keeps freed blocks of up to 32 MiB for reuse and, with blocks of many sizes and lifetimes, ends up with twice
    the memory that is in use. Other C libraries are not changed.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE)
