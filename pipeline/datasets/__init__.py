"""Training datasets: list the pairs of image and annotation, and load one pair as arrays."""

from pipeline.datasets.listing import check_no_shared_images, list_pairs, list_split
from pipeline.datasets.loading import load_image, load_pair
from pipeline.datasets.pairs import Cell, Pair, PairError, fingerprint

__all__ = [
    "Cell",
    "Pair",
    "PairError",
    "check_no_shared_images",
    "fingerprint",
    "list_pairs",
    "list_split",
    "load_image",
    "load_pair",
]
