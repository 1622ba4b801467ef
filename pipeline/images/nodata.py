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


def check_has_data(samples_HWC: NDArray[np.generic], directory: Directory) -> None:
    """Raise ImageError if pixels hold no data: all of their bands have the nodata value, or one is NaN."""
    nodata = nodata_value(directory, samples_HWC.dtype)
    is_float = samples_HWC.dtype.kind == "f"
    if nodata is None and not is_float:
        return
    rows = max(1, STRIP_SAMPLES // (samples_HWC[0].size or 1))
    for start in range(0, len(samples_HWC), rows):
        strip_HWC = samples_HWC[start : start + rows]
        if is_float and np.isnan(strip_HWC).any():
            raise _without_data("NaN", "")
        if nodata is not None and (strip_HWC == nodata).all(-1).any():
            raise _without_data(
                f"the GDAL nodata value {nodata}", ", or remove the tag (gdal_edit.py -unsetnodata) if it is a sample"
            )


def _without_data(value: str, way_out: str) -> ImageError:
    return ImageError(
        "Unsupported",
        f"has pixels without data ({value}), which would get labels; cut them off or fill them, for example with "
        f"gdal_fillnodata.py{way_out}",
    )
