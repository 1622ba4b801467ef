"""Format fiftyone: FiftyOne's ImageSegmentationDirectory, with the same names in data/ and labels/."""

import json

import numpy as np

from pipeline.export_masks.labelled_image import Classes, Labelled, Made, narrowest
from pipeline.images.codec import encode_png


def fiftyone(image: Labelled) -> Made:
    """Make a grayscale PNG of class ids + 1, because FiftyOne hides 0, and a copy of the image if it was fetched.

    Pixels without data are 0.
    """
    # No palette, because FiftyOne would read a palette image as an RGB mask.
    ids_HW = image.class_ids_HW.astype(np.int32)
    values_HW = narrowest(np.where(ids_HW == image.ignore_index, 0, ids_HW + 1), image.num_classes + 1)
    files = {f"labels/{image.name}.png": encode_png(values_HW)}
    if image.file is not None:
        files[f"data/{image.file_name}"] = image.file
    return Made(files)


def mask_targets(classes: Classes) -> bytes:
    """Return the class names of the mask values as JSON, for FiftyOne's `default_mask_targets`."""
    return json.dumps({k + 1: name for k, name in enumerate(classes.names)}, indent=1, ensure_ascii=False).encode()
