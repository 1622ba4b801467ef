"""Format dataset: images/ and annotations/ for training, with low-confidence pixels ignored."""

from collections.abc import Callable

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.export_masks.labelled_image import Cannot, Classes, Labelled, Made, narrowest
from pipeline.images.codec import Raster, encode_mask
from pipeline.output.schema import ignore_index_of

Relabel = Callable[[Raster], tuple[NDArray[np.integer], NDArray[np.floating]]]
MAX_DIFFERENT = 0.1  # fraction of pixels that may differ between the output's mask and the new prediction


def dataset(
    image: Labelled,
    split: str,
    palette: NDArray[np.uint8],
    relabel: Relabel | None = None,
    min_confidence: float = 0.0,
) -> Made:
    """Make the image and its annotation, with pixels without data or of low confidence set to the ignore index.

    Args:
        relabel: image -> class ids and confidence per pixel; None: keep every pixel.
        min_confidence: minimum confidence of a pixel to keep. Pixels that get another label than in the output are
            ignored too.

    Raises: Cannot.
    """
    ignored = ignore_index_of(len(palette))
    ids_HW = narrowest(image.class_ids_HW, ignored + 1)
    if relabel is not None:
        again_HW, confidence_HW = relabel(image.raster)
        is_other_HW = again_HW != ids_HW
        share_other = is_other_HW[ids_HW != ignored].mean()
        if share_other > MAX_DIFFERENT:
            raise Cannot(
                f"{share_other:.0%} of its pixels get a different label than in the output; the image has "
                "changed since, or it was labeled with another precision (see --precision)"
            )
        unsure_HW = is_other_HW | (confidence_HW < min_confidence)
        ids_HW[unsure_HW] = ignored
    files = {f"annotations/{split}/{image.name}.png": encode_mask(ids_HW, palette)}
    if image.file is not None:
        files[f"images/{split}/{image.file_name}"] = image.file
    return Made(files)


def dataset_yaml(classes: Classes, target: str, split: str) -> bytes:
    """Return the `data` section of a training recipe as YAML."""
    entries = [
        {"name": name, "color": color} for name, color in zip(classes.names, classes.palette.tolist(), strict=True)
    ]
    section = {
        "format": "folder",
        "root": target,
        "train_split": split,
        "ignore_index": ignore_index_of(len(classes)),
        "classes": entries,
    }
    return yaml.safe_dump({"data": section}, sort_keys=False, allow_unicode=True, default_flow_style=None).encode()
