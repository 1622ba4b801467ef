"""Rendering of report templates; all inserted values are escaped."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
from numpy.typing import NDArray

from pipeline.images.codec import encode_image

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> bytes:
    """Render one of the templates in templates/, which extend base.html (title, then body), to HTML."""
    return _environment().get_template(template).render(**values).encode()


def data_uri(image_HW3: NDArray[np.uint8], quality: int = 85) -> str:
    """Return an RGB image as a JPEG data URI for the `src` of an <img>."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(image_HW3, quality)).decode()


def png_uri(content: bytes) -> str:
    """Return a PNG file as a data URI for the `src` of an <img>."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _script(name: str) -> markupsafe.Markup:
    """Return a script from templates/ as the text between <script> and </script>."""
    return markupsafe.Markup((_TEMPLATES / name).read_text("utf-8"))


def _script_source(name: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows only this script, its SHA-256."""
    return f"sha256-{base64.b64encode(hashlib.sha256(_script(name).encode()).digest()).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"script": _script, "script_source": _script_source}
    return environment
