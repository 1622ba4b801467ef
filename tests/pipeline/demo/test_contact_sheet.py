"""The demo's contact sheet names its columns and shows the color of every class."""

import numpy as np

from pipeline.datasets.scenes import CLASSES
from pipeline.demo.contact_sheet import BLACK, ENLARGED, GAP, LINE, SWATCH, contact_sheet

HEIGHT, WIDTH = 129, 193
TITLES = ("Photo", "Ground truth", "Prediction")
GREEN, BLUE = (0, 255, 0), (0, 0, 255)


def picture(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), color, np.uint8)


def test_pictures_stand_in_their_rows_and_columns_twice_as_large() -> None:
    sheet = contact_sheet([[picture(GREEN)] * 3, [picture(GREEN), picture(BLUE), picture(GREEN)]], TITLES, CLASSES)
    assert (sheet == BLUE).all(-1).sum() == ENLARGED**2 * HEIGHT * WIDTH
    top, left = LINE + ENLARGED * HEIGHT + GAP, GAP + ENLARGED * WIDTH + GAP
    assert tuple(sheet[top, left]) == BLUE


def test_each_column_has_a_title_above_it() -> None:
    sheet = contact_sheet([[picture(GREEN)] * 3], TITLES, CLASSES)
    for column in range(3):
        left = GAP + column * (ENLARGED * WIDTH + GAP)
        assert (sheet[:LINE, left : left + ENLARGED * WIDTH] == BLACK).all(-1).any()


def test_the_legend_has_every_class_below_the_pictures_and_inside_the_sheet() -> None:
    legend = contact_sheet([[picture(GREEN)] * 3], TITLES, CLASSES)[LINE + ENLARGED * HEIGHT + GAP :]
    for entry in CLASSES:
        assert (legend == entry.color).all(-1).sum() >= (SWATCH - 2) ** 2, entry.name
    assert (legend[:, -GAP:] == 255).all(), "a name is cut off"
