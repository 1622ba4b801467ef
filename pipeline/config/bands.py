"""Options that select the bands of a TIFF and the range of their samples: `bands` and `value_range`."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Bound:
    """End of a value range: a sample, or a percentile of the image."""

    value: float
    is_percentile: bool

    def __str__(self) -> str:
        return str(self.value).removesuffix(".0") + ("%" if self.is_percentile else "")


@dataclass(frozen=True)
class Rendering:
    """Conversion of a TIFF's samples to RGB.

    Attributes:
        bands: three bands for red, green and blue, or one for gray, counted from 1; None: those that the file declares.
        value_range: samples that become black and white; None: the ends of the sample type's range.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[Bound, Bound] | None = None

    @classmethod
    def of(cls, bands: str | None, value_range: str | None) -> "Rendering":
        """Return the rendering of two options. Raises ValueError."""
        return cls(
            None if bands is None else _parse_bands(bands),
            None if value_range is None else _parse_range(value_range),
        )

    @property
    def options(self) -> dict[str, str]:
        """The options that are set, as `of` reads them."""
        options = {}
        if self.bands is not None:
            options["bands"] = ",".join(map(str, self.bands))
        if self.value_range is not None:
            options["value_range"] = ",".join(map(str, self.value_range))
        return options

    @property
    def is_as_declared(self) -> bool:
        """True if the file alone says how its samples become RGB."""
        return self.bands is None and self.value_range is None

    @property
    def has_percentiles(self) -> bool:
        """True if black or white depends on the whole image."""
        return self.value_range is not None and any(bound.is_percentile for bound in self.value_range)


AS_DECLARED = Rendering()


def _joined(value: Any) -> Any:
    """Return the text of a list, as YAML files have it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _parse_bands(text: str) -> tuple[int, ...]:
    names = [name.strip() for name in text.split(",")]
    if len(names) not in (1, 3) or not all(name.isdecimal() and int(name) for name in names):
        raise ValueError(
            f"bands {text!r} must be three numbers from 1 for red, green and blue, such as 3,2,1, or one for gray"
        )
    return tuple(int(name) for name in names)


def _parse_range(text: str) -> tuple[Bound, Bound]:
    bounds = [_parse_bound(part.strip()) for part in text.split(",")]
    low, high = bounds if len(bounds) == 2 else (None, None)
    if low is None or high is None:
        raise ValueError(
            f"value range {text!r} must be two numbers or percentiles of the image, such as 0,3000 or 2%,98%"
        )
    if low.is_percentile == high.is_percentile and low.value >= high.value:
        raise ValueError(f"value range {text!r}: its first value must be below its second")
    return low, high


def _parse_bound(text: str) -> Bound | None:
    if percent := _PERCENT.fullmatch(text):
        value = float(percent[1])
        return Bound(value, is_percentile=True) if value <= 100 else None
    try:
        value = float(text)
    except ValueError:
        return None
    return Bound(value, is_percentile=False) if math.isfinite(value) else None


def _checked_bands(text: str) -> str:
    return ",".join(map(str, _parse_bands(text)))


def _checked_range(text: str) -> str:
    _parse_range(text)
    return text.replace(" ", "")


# Texts, so that the command line, YAML files and records of runs have one form.
BandList = Annotated[str, BeforeValidator(_joined), AfterValidator(_checked_bands)]
ValueRange = Annotated[str, BeforeValidator(_joined), AfterValidator(_checked_range)]
BANDS_HELP = (
    "Bands of TIFFs to use as red, green and blue, counted from 1, such as 3,2,1; one band is gray. Files of more than "
    "three bands need it."
)
RANGE_HELP = (
    "Samples of TIFFs that become black and white: two numbers, or percentiles of each band of the image, such as "
    "0,3000 or 2%,98%."
)
