"""Renders a report's template; whatever is put into it is escaped."""

import base64
import functools
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import encode_image


def render(template: str, **values: Any) -> bytes:
    """HTML of one of the templates beside this file, which extend base.html (title, then body)."""
    return _environment().get_template(template).render(**values).encode()


def data_uri(image_HW3: NDArray[np.uint8], quality: int = 85) -> str:
    """An RGB image as the `src` of an <img>."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(image_HW3, quality)).decode()


def png_uri(content: bytes) -> str:
    """A PNG file as the `src` of an <img>."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
