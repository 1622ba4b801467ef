"""Places of a TIFF's tiles and strips, as damaged files state them."""

import numpy as np
import pytest

from pipeline.images.formats import ImageError
from pipeline.images.tiff_directory import STRIP_BYTES, STRIP_OFFSETS
from pipeline.images.tiff_layout import Layout
from pipeline.images.tiff_samples import tile_spans

SIZE = 1000  # bytes of the file


class Tags:
    """Tags of a file, as its directory gives them."""

    size = SIZE

    def __init__(self, **numbers: list[int]) -> None:
        tags = {"offsets": STRIP_OFFSETS, "lengths": STRIP_BYTES}
        self._numbers = {tags[name]: np.array(values, np.int64) for name, values in numbers.items()}

    def __contains__(self, tag: int) -> bool:
        return tag in self._numbers

    def numbers(self, tag: int) -> np.ndarray:
        return self._numbers[tag]


def strips(count: int) -> Layout:
    return Layout(
        height=count,
        width=8,
        tile_height=1,
        tile_width=8,
        is_tiled=False,
        bands=1,
        bits=8,
        sample_format=1,
        photometric=1,
        alpha=0,
        is_planar=False,
        compression=1,
        predictor=1,
    )


@pytest.mark.parametrize(
    ("tags", "count", "spans"),
    [
        (Tags(offsets=[8, 16], lengths=[8, 8]), 2, [(8, 8), (16, 8)]),
        (Tags(offsets=[8, 16], lengths=[8, 8, 8]), 2, [(8, 8), (16, 8)]),
        (Tags(offsets=[8, 16, 24], lengths=[8, 8]), 2, [(8, 8), (16, 8)]),
        (Tags(offsets=[8]), 1, [(8, SIZE - 8)]),
        (Tags(offsets=[8, 16]), 1, [(8, SIZE - 8)]),
    ],
)
def test_a_strip_has_the_offset_and_length_of_its_number(tags: Tags, count: int, spans: list[tuple[int, int]]) -> None:
    offsets, lengths = tile_spans(tags, strips(count))
    assert list(zip(offsets.tolist(), lengths.tolist(), strict=True)) == spans


@pytest.mark.parametrize(
    ("tags", "count", "kind"),
    [
        (Tags(lengths=[8]), 1, "Corrupt"),
        (Tags(offsets=[], lengths=[]), 1, "Corrupt"),
        (Tags(offsets=[]), 1, "Unsupported"),
        (Tags(offsets=[8, 16], lengths=[8]), 2, "Corrupt"),
        (Tags(offsets=[8, 16]), 2, "Unsupported"),
    ],
)
def test_strips_that_are_not_all_stated_are_an_error(tags: Tags, count: int, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        tile_spans(tags, strips(count))
    assert caught.value.kind == kind
