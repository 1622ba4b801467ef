"""Format fiftyone: FiftyOne's ImageSegmentationDirectory, data/ and labels/ with the same names."""

import json

import numpy as np

from pipeline.export_masks.labelled_image import Classes, Labelled, Made, narrowest
from pipeline.images.codec import encode_png


def fiftyone(image: Labelled) -> Made:
    """A gray PNG of class ids + 1, since FiftyOne shows no 0, and, if it is there, the image."""
    # Without a palette, which its reader would take for the colours of an RGB mask.
    values_HW = narrowest(image.class_ids_HW.astype(np.int32) + 1, image.num_classes + 1)
    files = {f"labels/{image.name}.png": encode_png(values_HW)}
    if image.file is not None:
        files[f"data/{image.file_name}"] = image.file
    return Made(files)


def mask_targets(classes: Classes) -> bytes:
    """What the masks' values mean, as FiftyOne's `default_mask_targets` takes it."""
    return json.dumps({k + 1: name for k, name in enumerate(classes.names)}, indent=1, ensure_ascii=False).encode()
