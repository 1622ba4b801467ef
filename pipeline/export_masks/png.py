"""Formats png and overlay: one file per image, at the same path as the image."""

from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.images.codec import encode_image, overlay

QUALITY = 90  # of JPEG


def png(image: Labelled) -> Made:
    """Copy the mask's PNG from the output without decoding it."""
    return Made({f"{image.name}.png": image.mask})


def overlaid(image: Labelled, classes: Classes, opacity: float) -> Made:
    """Make a JPEG of the image, blended with the class colors of its mask."""
    mixed_HW3 = overlay(image.image_HW3, image.class_ids_HW, classes.palette, opacity)
    return Made({f"{image.name}.jpg": encode_image(mixed_HW3, QUALITY)})
