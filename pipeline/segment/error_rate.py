"""Limit of a run's error rate: it ends a run in which so many images fail that the input is most likely wrong.

Names that sort first tell little about the others: all resource forks of macOS do, for example. Therefore the limit
applies to all images of the run, and to a random sample of them, which is labeled first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError

MIN_TO_JUDGE = 200  # images
# The sample is 8 of the 256 values of this byte of the image id, a hash. --sample depends on earlier bytes.
SAMPLED_BYTE, SAMPLED_VALUES = 8, 8
TOLERANCE = 2.0  # standard deviations by which a sample may exceed the limit by chance


def is_sampled(image_id: bytes) -> bool:
    """Return True if the image is in the sample."""
    return image_id[SAMPLED_BYTE] < SAMPLED_VALUES


def sampled_first(wave: pa.Table) -> pa.Table:
    """Return the LISTED rows with those of the sample first, in random order, and then the others in their order."""
    ids = wave["image_id"].cast(pa.binary())
    in_sample = pc.less(pc.binary_slice(ids, SAMPLED_BYTE, SAMPLED_BYTE + 1), bytes([SAMPLED_VALUES]))
    in_random_order = pc.sort_indices(ids.filter(in_sample))
    return pa.concat_tables([wave.filter(in_sample).take(in_random_order), wave.filter(pc.invert(in_sample))])


@dataclass(frozen=True)
class ErrorLimit:
    """Largest share of images that may fail."""

    max_rate: float
    num_images: int  # of the run, in its waves so far

    def check(self, outcomes: Mapping[str, int]) -> None:
        """Raise UserError if more than the share of all images have failed.

        Args:
            outcomes: 'ok' or error type -> images so far.
        """
        if self.num_images >= MIN_TO_JUDGE and _num_failed(outcomes) > self.max_rate * self.num_images:
            raise self._error(outcomes, f"of the {self.num_images:,} images")

    def check_sample(self, outcomes: Mapping[str, int]) -> None:
        """Raise UserError if more images of the sample have failed than the share and chance explain."""
        seen = sum(outcomes.values())
        by_chance = TOLERANCE * math.sqrt(self.max_rate * (1 - self.max_rate) * seen)
        if seen >= MIN_TO_JUDGE and _num_failed(outcomes) > self.max_rate * seen + by_chance:
            raise self._error(outcomes, f"of {seen:,} images chosen at random")

    def _error(self, outcomes: Mapping[str, int], of_images: str) -> UserError:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(outcomes.items()) if kind != "ok")
        return UserError(
            f"max_error_rate {self.max_rate}: {_num_failed(outcomes):,} {of_images} failed ({kinds}); check the input, "
            "filter out files that are not images with --include or --exclude, or raise --max-error-rate"
        )


def _num_failed(outcomes: Mapping[str, int]) -> int:
    return sum(outcomes.values()) - outcomes.get("ok", 0)
