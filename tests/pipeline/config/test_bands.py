"""The options bands and value_range: their forms, and errors that show one."""

import pytest

from pipeline.config.bands import Bound, Rendering
from pipeline.config.data import DataFolder


def test_bands_and_a_range_have_one_form_however_they_are_written() -> None:
    written = [
        {"bands": "3, 2,1", "value_range": "0, 3000"},
        {"bands": [3, 2, 1], "value_range": [0, 3000.0]},
        {"bands": "3,2,1", "value_range": "0,3e3"},
    ]
    found = {DataFolder.model_validate({"root": "data", **options}).rendering for options in written}
    assert found == {Rendering((3, 2, 1), (Bound(0, False), Bound(3000, False)))}
    assert found.pop().options == {"bands": "3,2,1", "value_range": "0,3000"}


def test_percentiles_may_stand_beside_numbers() -> None:
    rendering = Rendering.of(None, "0,99.5%")
    assert rendering.value_range == (Bound(0, False), Bound(99.5, True))
    assert rendering.options == {"value_range": "0,99.5%"}
    assert rendering.has_percentiles


@pytest.mark.parametrize("bands", ["0,1,2", "1,2", "1,2,3,4", "red", "", "-1", "1.5"])
def test_other_bands_are_an_error_with_an_example(bands: str) -> None:
    with pytest.raises(ValueError, match=r"three numbers from 1 for red, green and blue, such as 3,2,1"):
        DataFolder(root="data", bands=bands)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "two numbers or percentiles of the image, such as 0,3000 or 2%,98%"),
        ("1,2,3", "two numbers or percentiles"),
        ("0,101%", "two numbers or percentiles"),
        ("nan,5", "two numbers or percentiles"),
        ("low,high", "two numbers or percentiles"),
        ("7,7", "first value must be below its second"),
        ("98%,2%", "first value must be below its second"),
    ],
)
def test_other_ranges_are_an_error_with_an_example(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFolder(root="data", value_range=text)
