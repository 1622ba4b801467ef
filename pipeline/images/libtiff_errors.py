"""Errors reported by libtiff, which would otherwise print them to stderr and decode some damaged files anyway."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_thread = threading.local()


@_Handler
def _hear(function: bytes | None, text: bytes | None, _values: int | None) -> None:
    """Handle an error of libtiff, given a function name, a printf format and its values."""
    if hasattr(_thread, "errors"):
        words = (text or b"").decode(errors="replace").split("%")[0].strip() or "damaged data"
        _thread.errors.append(f"{(function or b'libtiff').decode(errors='replace')}: {words}")


@contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that collects the errors that libtiff reports in this thread."""
    _thread.errors = []
    try:
        yield _thread.errors
    finally:
        del _thread.errors


def _install() -> None:
    # Symbols resolve through Pillow's module to the libtiff that it was linked with, wherever that is.
    libtiff = ctypes.CDLL(Image.core.__file__)
    libtiff.TIFFSetErrorHandler(_hear)
    libtiff.TIFFSetWarningHandler(None)


_install()
