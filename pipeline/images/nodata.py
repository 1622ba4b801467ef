"""Pixels of a TIFF that hold no data: GDAL's nodata value, and NaN."""

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.images import tiff_directory
from pipeline.images.formats import ImageError
from pipeline.images.pixels import STRIP_SAMPLES
from pipeline.images.tiff_directory import Directory


def nodata_value(directory: Directory, dtype: DTypeLike) -> NDArray[np.generic] | None:
    """Return the sample that GDAL's tag declares as missing; None without the tag, or if no sample can have the value.

    It is NaN if the tag says so, which only samples of floats can have.
    """
    try:
        value = float(directory.text(tiff_directory.GDAL_NODATA))
    except ValueError:
        return None
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype)
    limits = np.iinfo(dtype)
    return np.asarray(int(value), dtype) if value.is_integer() and limits.min <= value <= limits.max else None


def valid_pixels(samples_HWC: NDArray[np.generic], directory: Directory) -> NDArray[np.bool_] | None:
    """Return the pixels that have data, H x W; None if all have.

    A pixel has none if all of its bands have the nodata value, or one is NaN.
    """
    nodata = nodata_value(directory, samples_HWC.dtype)
    is_float = samples_HWC.dtype.kind == "f"
    if nodata is None and not is_float:
        return None
    valid_HW = np.ones(samples_HWC.shape[:2], np.bool_)
    rows = max(1, STRIP_SAMPLES // (samples_HWC[0].size or 1))
    for start in range(0, len(samples_HWC), rows):
        strip_HWC, valid_SW = samples_HWC[start : start + rows], valid_HW[start : start + rows]
        if is_float:
            valid_SW &= ~np.isnan(strip_HWC).any(-1)
        if nodata is not None:
            valid_SW &= (strip_HWC != nodata).any(-1)
    return None if valid_HW.all() else valid_HW


def no_data() -> ImageError:
    """Return the error of an image in which no pixel has data."""
    return ImageError(
        "Empty", "no pixel has data: all are NaN or the GDAL nodata value; leave the image out of the input"
    )
