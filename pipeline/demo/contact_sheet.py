"""Contact sheet of the demo: rows of pictures under titles, above a legend of the classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.datasets.scenes import SceneClass

ENLARGED = 2  # side of the square that a pixel of a picture becomes
GAP = 12  # pixels between pictures, and around them
LINE = 36  # height of a title and of a line of the legend, pixels
TEXT = 22  # size of the font, pixels
SWATCH = 20  # side of a class's square of color, pixels
CLASSES_PER_LINE = 6
WHITE, GRAY, BLACK = (255, 255, 255), (140, 140, 140), (30, 30, 30)


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], classes: Sequence[SceneClass]
) -> NDArray[np.uint8]:
    """Draw rows of pictures of one size, with a title above each column and the classes' colors below.

    Args:
        rows: RGB pictures, height x width x 3, one per column.
        titles: one per column.
        classes: those of the legend.

    Returns: H x W x 3 uint8, RGB.
    """
    height, width, _ = (ENLARGED * np.array(rows[0][0].shape)).tolist()
    num_lines = -(-len(classes) // CLASSES_PER_LINE)
    legend = LINE + len(rows) * (height + GAP)
    sheet = Image.new("RGB", (GAP + len(titles) * (width + GAP), legend + num_lines * LINE), WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, LINE / 2), title, BLACK, font, anchor="mm")
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, LINE + row * (height + GAP)))
    for index, (name, color) in enumerate(classes):
        line, place = divmod(index, CLASSES_PER_LINE)
        left, middle = GAP + place * (sheet.width - GAP) // CLASSES_PER_LINE, legend + line * LINE + LINE // 2
        top = middle - SWATCH // 2
        draw.rectangle((left, top, left + SWATCH, top + SWATCH), color, outline=GRAY)
        draw.text((left + SWATCH + 8, middle), name, BLACK, font, anchor="lm")
    return np.asarray(sheet)
