"""A training set: which image belongs to which annotation, and one pair as arrays."""

from pipeline.datasets.listing import list_pairs, list_split, refuse_shared_images
from pipeline.datasets.loading import load_image, load_pair
from pipeline.datasets.pairs import Cell, Pair, PairError, fingerprint

__all__ = [
    "Cell",
    "Pair",
    "PairError",
    "fingerprint",
    "list_pairs",
    "list_split",
    "load_image",
    "load_pair",
    "refuse_shared_images",
]
