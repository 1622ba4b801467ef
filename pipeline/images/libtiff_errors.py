"""What libtiff finds wrong with a file: it would print that on standard error, and decode some damage as if whole."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_thread = threading.local()


@_Handler
def _hear(function: bytes | None, text: bytes | None, _values: int | None) -> None:
    """libtiff's error handler: a name, a format of printf, and its values."""
    if hasattr(_thread, "errors"):
        words = (text or b"").decode(errors="replace").split("%")[0].strip()
        _thread.errors.append(f"{(function or b'libtiff').decode(errors='replace')}: {words}")


@contextmanager
def collected() -> Iterator[list[str]]:
    """The errors that libtiff reports in this thread meanwhile."""
    _thread.errors = []
    try:
        yield _thread.errors
    finally:
        del _thread.errors


def _install() -> None:
    # Pillow's module leads to the libtiff that it was linked with, wherever that lies.
    libtiff = ctypes.CDLL(Image.core.__file__)
    libtiff.TIFFSetErrorHandler(_hear)
    libtiff.TIFFSetWarningHandler(None)


_install()
