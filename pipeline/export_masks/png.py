"""Formats png and overlay: one picture for each image, where its key says."""

from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.images.codec import encode_image, overlay

QUALITY = 90  # of JPEG


def png(image: Labelled) -> Made:
    """The mask as it is in the output, byte by byte."""
    return Made({f"{image.name}.png": image.mask})


def overlaid(image: Labelled, classes: Classes, opacity: float) -> Made:
    """The image with its classes' colours over it, as JPEG."""
    mixed_HW3 = overlay(image.image_HW3, image.class_ids_HW, classes.palette, opacity)
    return Made({f"{image.name}.jpg": encode_image(mixed_HW3, QUALITY)})
