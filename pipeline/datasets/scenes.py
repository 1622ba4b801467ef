"""Built-in dataset of small synthetic scenes, a pure function of (seed, index), for demos, tests and ablations.

Each scene is a town, divided by hedges into one or more regions side by side. Three pairs of classes can be
distinguished only by context: both classes of a pair are drawn by the same code with the same random draws, so their
pixels look the same.

    road  / water        the wet, streaked surface of a region
    car   / boat         the vehicles on that surface
    house / skyscraper   the facades along its horizon

Cues spread over a region indicate the class of each pair. They contradict each other: by default, six out of ten are
right.

    above    birds: mostly white over skyscrapers, mostly black over houses
    below    flowers: mostly yellow along water, mostly red along roads

A network that sees a small window counts the few cues in it and is often wrong. A network that averages the whole
image also counts cues of other regions, and adjacent regions mostly disagree. A network that pools by region gets it
right. Sky, grass, tree, person and tower are recognizable locally. Crops lose cues, so train on whole scenes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

IGNORE_INDEX = 255

Color = tuple[int, int, int]


class SceneClass(NamedTuple):
    """Class of the built-in data; its id is its position in `CLASSES`."""

    name: str
    color: Color


CLASSES = (
    SceneClass("sky", (142, 202, 230)),
    SceneClass("grass", (153, 201, 92)),
    SceneClass("tree", (45, 125, 70)),
    SceneClass("person", (214, 64, 140)),
    SceneClass("tower", (255, 209, 102)),
    SceneClass("road", (112, 112, 124)),
    SceneClass("water", (38, 92, 168)),
    SceneClass("car", (225, 65, 55)),
    SceneClass("boat", (250, 240, 230)),
    SceneClass("house", (176, 112, 72)),
    SceneClass("skyscraper", (128, 84, 184)),
)
SKY, GRASS, TREE, PERSON, TOWER, ROAD, WATER, CAR, BOAT, HOUSE, SKYSCRAPER = range(len(CLASSES))

AMBIGUOUS_PAIRS = (("road", "water"), ("car", "boat"), ("house", "skyscraper"))

# Rows as fractions of the height: the base of the spires, the base of the facades, the lower edge of the grass bank;
# then the first lane of vehicles and the lower edge of the surface.
NECK, HORIZON, SHORE, FIRST_LANE, VERGE = 0.145, 0.46, 0.59, 0.76, 0.91

# Number of birds (and of flowers) per region width of one shorter canvas side, and the fraction that is right.
NUM_CUES, CUES_RIGHT = 15, 0.6

SKIES = (
    ((96, 160, 216), (214, 230, 238)),
    ((128, 150, 206), (246, 214, 190)),
    ((112, 178, 204), (238, 232, 212)),
)
FACADES = ((222, 178, 140), (201, 124, 98), (226, 205, 168), (168, 182, 190), (206, 158, 170))
HULLS = ((196, 58, 52), (44, 98, 158), (240, 178, 52), (56, 140, 124), (232, 228, 218))
COATS = ((178, 48, 120), (236, 112, 40), (64, 56, 140), (24, 120, 168))
SKINS = ((240, 200, 170), (150, 100, 70), (210, 160, 120))
GULL, CROW = (250, 250, 250), (30, 30, 40)
DAISY, POPPY = (252, 222, 60), (228, 46, 52)
CLOUD, GLASS, DARK, STONE, SLATE = (244, 244, 246), (70, 92, 118), (38, 36, 44), (236, 228, 212), (62, 74, 96)
LAMP, BARK, LAWN, MOWN = (250, 224, 110), (98, 72, 50), (118, 166, 74), (78, 124, 60)


class Dice:
    """Random number generator with the draws that painting needs."""

    def __init__(self, seed: int, index: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence([seed, index]))
        self.rng = np.random.Generator(self.bits)

    def real(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def whole(self, low: int, high: int) -> int:
        """Return a random integer from `low` to `high`, both inclusive."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return self.real(0, 1) < probability

    def pick(self, colors: Sequence[Color]) -> Color:
        return colors[self.whole(0, len(colors) - 1)]


class Border(NamedTuple):
    """Edge of a region, vertical above the horizon and slanted below it. x is a fraction of the width."""

    top: float
    bottom: float

    def at(self, y: float) -> float:
        return self.top + (self.bottom - self.top) * max(0.0, (y - HORIZON) / (1 - HORIZON))


class Region(NamedTuple):
    """Strip of the scene with its own context."""

    left: Border
    right: Border
    harbour: bool
    city: bool
    cues_right: float


class Canvas:
    """Image and its labels, painted together. Object sizes scale with `unit`, the shorter side in pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.unit = height, width, min(height, width)
        self.image_HW3 = np.zeros((height, width, 3), np.uint8)
        self.label_HW = np.zeros((height, width), np.uint8)

    def quad(self, region: Region, top: float, bottom: float, color: Color, class_id: int) -> None:
        """Fill a region between two rows, given as fractions of the height."""
        edges = ((region.left, top), (region.right, top), (region.right, bottom), (region.left, bottom))
        points = [(border.at(y) * self.width, y * self.height) for border, y in edges]
        Brush(self, 0, 0, 1, class_id).polygon([(x, -y) for x, y in points], color)


@dataclass
class Brush:
    """Brush that paints one object.

    Coordinates are in units of `scale` pixels, x to the right and y upward from a foot point in pixels.
    """

    canvas: Canvas
    x: float
    y: float
    scale: float
    class_id: int
    facing: int = 1

    def at(self, x: float, y: float) -> tuple[int, int]:
        return round(self.x + self.facing * x * self.scale), round(self.y - y * self.scale)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        corners = np.array([self.at(x, y) for x, y in points], np.int32)
        cv2.fillPoly(self.canvas.image_HW3, [corners], color)
        cv2.fillPoly(self.canvas.label_HW, [corners], (self.class_id,))

    def box(self, left: float, bottom: float, right: float, top: float, color: Color) -> None:
        corner, opposite = self.at(left, bottom), self.at(right, top)
        cv2.rectangle(self.canvas.image_HW3, corner, opposite, color, cv2.FILLED)
        cv2.rectangle(self.canvas.label_HW, corner, opposite, (self.class_id,), cv2.FILLED)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        center, pixels = self.at(x, y), round(radius * self.scale)
        cv2.circle(self.canvas.image_HW3, center, pixels, color, cv2.FILLED)
        cv2.circle(self.canvas.label_HW, center, pixels, (self.class_id,), cv2.FILLED)


def scene(
    seed: int, index: int, height: int = 129, width: int = 129, cues_right: float = CUES_RIGHT
) -> tuple[np.ndarray, np.ndarray]:
    """Return scene `index` of the infinite dataset `seed`: image_HW3 uint8 RGB and label_HW uint8.

    Labels are positions in `CLASSES`, or IGNORE_INDEX on the outlines of vehicles. The same arguments give the same
    bytes on every machine: the random bits come from PCG64, and pixels are computed in integers. `cues_right` is the
    fraction of cues that are right: at 1 a single cue identifies the class, and at 0.5 the cues carry no information.

    Raises: ValueError if a side is below 64 pixels, where cues are too small to see.
    """
    if min(height, width) < 64:
        raise ValueError(f"scene: height {height} and width {width} must both be at least 64 pixels")
    dice = Dice(seed, index)
    return paint(plan(dice, height, width, cues_right), dice, height, width)


def plan(dice: Dice, height: int, width: int, cues_right: float = CUES_RIGHT) -> list[Region]:
    """Divide the scene into regions and draw the context of each."""
    num_regions = (1, 2, 2, 3)[dice.whole(0, 3)] * max(1, round(0.6 * width / height))
    cuts = [(i + dice.real(-0.1, 0.1)) / num_regions for i in range(1, num_regions)]
    slants = [dice.real(-0.15, 0.15) / num_regions for _ in cuts]
    inner = [Border(x, x + slant) for x, slant in zip(cuts, slants, strict=True)]
    harbour, city = dice.chance(0.5), dice.chance(0.5)
    regions = []
    for left, right in pairwise([Border(0, 0), *inner, Border(1, 1)]):
        regions.append(Region(left, right, harbour, city, cues_right))
        # Adjacent regions mostly disagree; otherwise an average over the whole image would be enough.
        harbour, city = harbour ^ dice.chance(0.75), city ^ dice.chance(0.75)
    return regions


def paint(regions: list[Region], dice: Dice, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint a plan from back to front and return image_HW3 and label_HW.

    No random draw depends on the context, so only the colors of the cues reveal it.
    """
    canvas = Canvas(height, width)
    paint_sky(canvas, dice)
    for region in regions:
        paint_surface(canvas, dice, region)
        paint_tower(canvas, dice, region)
        paint_birds(canvas, dice, region)
        paint_skyline(canvas, dice, region)
        paint_verge(canvas, dice, region)
    for region in regions[1:]:
        paint_hedge(canvas, dice, region.left)
    for region in regions:
        paint_vehicles(canvas, dice, region)
    for region in regions:
        paint_people(canvas, dice, region)
    mark_outlines(canvas.label_HW)
    return photograph(canvas.image_HW3, dice), canvas.label_HW


def paint_sky(canvas: Canvas, dice: Dice) -> None:
    zenith, haze = np.array(SKIES[dice.whole(0, len(SKIES) - 1)])
    mille_H1 = np.minimum(np.arange(canvas.height) * 1000 // round(HORIZON * canvas.height), 1000)[:, None]
    canvas.image_HW3[:] = (zenith + (haze - zenith) * mille_H1 // 1000)[:, None]
    for _ in range(dice.whole(2, 5)):
        x, y = dice.real(0, 1) * canvas.width, dice.real(0.02, 0.3) * canvas.height
        brush = Brush(canvas, x, y, canvas.unit, SKY)
        for puff in range(4):
            radius = dice.real(0.02, 0.045)
            brush.disc((puff - 1.5) * 0.04, radius / 2, radius, CLOUD)


def paint_surface(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint wet asphalt or still water; the streaks look the same for both."""
    class_id, shade = WATER if region.harbour else ROAD, dice.whole(112, 140)
    canvas.quad(region, SHORE, VERGE, (shade, shade + 8, shade + 16), class_id)
    area = (region.right.top - region.left.top) * canvas.width * canvas.height / canvas.unit**2
    for _ in range(round(45 * area)):
        y, length, light = dice.real(SHORE, VERGE), dice.real(0.03, 0.12), shade + dice.whole(-16, 30)
        x, end = (
            dice.real(region.left.at(y), region.right.at(y)) * canvas.width,
            region.right.at(y) * canvas.width,
        )
        brush = Brush(canvas, x, y * canvas.height, canvas.unit, class_id)
        brush.box(0, 0, min(length, (end - x) / canvas.unit), 0.004, (light, light + 8, light + 16))


def paint_tower(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint a plain shaft with a spire."""
    x = region.left.top + (region.right.top - region.left.top) * dice.real(0.3, 0.7)
    brush = Brush(canvas, x * canvas.width, NECK * canvas.height, canvas.unit, TOWER)
    foot = (NECK - HORIZON) * canvas.height / canvas.unit
    brush.polygon([(-0.03, 0), (0.03, 0), (0.042, foot), (-0.042, foot)], STONE)
    brush.polygon([(-0.05, 0), (0, 0.135), (0.05, 0)], SLATE)
    brush.disc(0, 0.03, 0.016, STONE)


def cues(canvas: Canvas, dice: Dice, region: Region, top: float, bottom: float) -> Iterator[tuple[bool, float, float]]:
    """Yield (is_right, x, y) for each cue of a region, x and y in pixels.

    The fraction of right cues is exact, so all cues together are unambiguous. They are spread evenly along the
    region.
    """
    span = (region.right.top - region.left.top) * canvas.width / canvas.unit
    count = max(3, round(NUM_CUES * span))
    by_lot = sorted(range(count), key=[dice.real(0, 1) for _ in range(count)].__getitem__)
    right = set(by_lot[: math.ceil(region.cues_right * count)])
    for i in range(count):
        y = dice.real(top, bottom)
        start, end = region.left.at(y) * canvas.width, region.right.at(y) * canvas.width
        yield i in right, start + (end - start) * (i + dice.real(0.1, 0.9)) / count, y * canvas.height


def paint_birds(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint the cue for facades: mostly gulls over a city, mostly crows over a village."""
    for is_right, x, y in cues(canvas, dice, region, 0.03, 0.19):
        color = GULL if is_right == region.city else CROW
        brush = Brush(canvas, x, y, canvas.unit, SKY)
        brush.polygon([(-0.03, 0.018), (0, 0), (0.03, 0.018), (0, 0.008)], color)
        brush.box(-0.006, -0.004, 0.006, 0.012, color)


def paint_skyline(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint facades side by side along a grass bank, and trees on it."""
    x, end = (border.top * canvas.width / canvas.unit for border in (region.left, region.right))
    x += 0.02
    canvas.quad(region, HORIZON, SHORE, LAWN, GRASS)
    canvas.quad(region, SHORE - 0.015, SHORE, MOWN, GRASS)
    while x < end - 0.1:
        width, is_facade, gap = dice.real(0.1, 0.17), dice.chance(0.72), dice.real(0.01, 0.05)
        width = min(width, end - 0.02 - x)
        center, tree_y = (x + width / 2) * canvas.unit, dice.real(HORIZON, SHORE - 0.02) * canvas.height
        if is_facade:
            class_id = SKYSCRAPER if region.city else HOUSE
            paint_facade(Brush(canvas, center, HORIZON * canvas.height, canvas.unit, class_id), dice, width)
        else:
            paint_tree(Brush(canvas, center, tree_y, canvas.unit, TREE), dice)
        x += width + gap


def paint_facade(brush: Brush, dice: Dice, width: float) -> None:
    color, lit, height = dice.pick(FACADES), dice.pick((GLASS, LAMP)), dice.real(0.13, 0.24)
    red, green, blue = color
    brush.box(-width / 2, 0, width / 2, height, color)
    brush.box(-width / 2, height - 0.014, width / 2, height, (red * 2 // 3, green * 2 // 3, blue * 2 // 3))
    num_columns = max(2, int(width / 0.04))
    pitch = width / num_columns
    for row in range(int((height - 0.02) / 0.045)):
        y = height - 0.052 - row * 0.045
        for column in range(num_columns):
            x = (column + 0.28) * pitch - width / 2
            brush.box(x, y, x + 0.44 * pitch, y + 0.022, lit if dice.chance(0.3) else GLASS)


def paint_tree(brush: Brush, dice: Dice) -> None:
    green = dice.whole(104, 136)
    brush.box(-0.009, 0, 0.009, 0.07, BARK)
    for x, y, radius in ((-0.03, 0.08, 0.036), (0.03, 0.085, 0.036), (0, 0.125, 0.045)):
        brush.disc(x, y, radius, (48, green, 62))
    brush.disc(-0.012, 0.135, 0.018, (78, green + 30, 80))


def paint_verge(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint grass with the cue for surfaces: mostly daisies along a harbor, mostly poppies along a street."""
    canvas.quad(region, VERGE, 1, LAWN, GRASS)
    for is_right, x, y in cues(canvas, dice, region, VERGE + 0.02, 0.98):
        brush = Brush(canvas, x, y, canvas.unit, GRASS)
        brush.disc(0, 0, 0.016, DAISY if is_right == region.harbour else POPPY)


def paint_hedge(canvas: Canvas, dice: Dice, border: Border) -> None:
    """Paint bushes from the horizon to the bottom, which make the border between regions visible."""
    num_bushes = round(16 * canvas.height / canvas.unit)
    for i in range(num_bushes + 1):
        y, radius, green = (
            HORIZON + (1 - HORIZON) * i / num_bushes,
            0.02 + 0.016 * i / num_bushes,
            dice.whole(92, 128),
        )
        brush = Brush(canvas, border.at(y) * canvas.width, y * canvas.height, radius * canvas.unit, TREE)
        brush.disc(0, 0.5, 1, (44, green, 58))
        brush.disc(-0.33, 1, 0.33, (72, green + 32, 76))


def paint_vehicles(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint lanes of vehicles; nearer ones are larger and painted last because they occlude those behind."""
    last_lane = max(1, round((VERGE - FIRST_LANE) * canvas.height / (0.16 * canvas.unit)))
    for lane in range(last_lane + 1):
        y = FIRST_LANE + (VERGE - 0.02 - FIRST_LANE) * lane / last_lane
        length = (0.18 + 0.04 * lane / last_lane) * canvas.unit
        left, right = (border.at(y) * canvas.width for border in (region.left, region.right))
        num_slots = max(1, int((right - left) / (1.4 * length)))
        pitch = (right - left) / num_slots
        for slot in range(num_slots):
            x = left + (slot + 0.5) * pitch + dice.real(-0.5, 0.5) * max(0.0, pitch - 1.35 * length)
            is_there, facing = dice.chance(0.75), (-1, 1)[dice.whole(0, 1)]
            if is_there:
                class_id = BOAT if region.harbour else CAR
                paint_vehicle(Brush(canvas, x, y * canvas.height, length, class_id, facing), dice)


def paint_vehicle(brush: Brush, dice: Dice) -> None:
    """Paint a body with a cabin, a pennant and two dark discs: the wheels of a car or the fenders of a boat."""
    brush.box(-0.27, 0.3, -0.24, 0.72, DARK)
    brush.polygon([(-0.25, 0.74), (-0.02, 0.65), (-0.25, 0.56)], dice.pick(HULLS))
    brush.polygon([(-0.3, 0.3), (-0.22, 0.52), (0.12, 0.52), (0.26, 0.3)], STONE)
    brush.polygon([(-0.21, 0.31), (-0.17, 0.46), (-0.05, 0.46), (-0.05, 0.31)], GLASS)
    brush.polygon([(0.01, 0.31), (0.01, 0.46), (0.09, 0.46), (0.17, 0.31)], GLASS)
    brush.polygon([(-0.48, 0.32), (0.52, 0.32), (0.42, 0.07), (-0.42, 0.07)], dice.pick(HULLS))
    brush.box(-0.46, 0.19, 0.47, 0.24, STONE)
    for x in (-0.25, 0.25):
        brush.disc(x, 0.08, 0.09, DARK)
        brush.disc(x, 0.08, 0.035, STONE)


def paint_people(canvas: Canvas, dice: Dice, region: Region) -> None:
    """Paint people on the verge."""
    span = (region.right.bottom - region.left.bottom) * canvas.width / canvas.unit
    for _ in range(dice.whole(1, 1 + max(1, round(2 * span)))):
        y = dice.real(0.945, 0.985)
        x = dice.real(region.left.at(y), region.right.at(y))
        brush = Brush(canvas, x * canvas.width, y * canvas.height, 0.16 * canvas.unit, PERSON)
        brush.box(-0.1, 0, 0.1, 0.35, DARK)
        brush.polygon([(-0.1, 0.8), (0.1, 0.8), (0.19, 0.27), (-0.19, 0.27)], dice.pick(COATS))
        brush.disc(0, 0.88, 0.12, dice.pick(SKINS))


def mark_outlines(label_HW: np.ndarray) -> None:
    """Set the outermost pixels of vehicles to IGNORE_INDEX, as in hand-labeled datasets."""
    inside_HW = np.isin(label_HW, (CAR, BOAT))
    core_HW = np.pad(inside_HW, 1, mode="edge")
    core_HW = core_HW[:-2, 1:-1] & core_HW[2:, 1:-1] & core_HW[1:-1, :-2] & core_HW[1:-1, 2:]
    label_HW[inside_HW & ~core_HW] = IGNORE_INDEX


def photograph(image_HW3: np.ndarray, dice: Dice) -> np.ndarray:
    """Apply lens blur, exposure, a color cast and sensor noise, all in integer arithmetic."""
    wide = np.pad(image_HW3, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.int16)
    wide = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    soft_HW3 = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) >> 4
    gain, grain = dice.whole(90, 146), dice.whole(6, 22)
    cast = np.array([dice.whole(-6, 6) for _ in range(3)], np.int16)
    # The difference of two random bytes is close enough to a Gaussian, and the same on every machine.
    noise = dice.bits.random_raw(image_HW3.size // 4 + 1).astype("<u8").view(np.uint8).astype(np.int16)
    noise_HW3 = (noise[: image_HW3.size] - noise[image_HW3.size :][: image_HW3.size]).reshape(image_HW3.shape)
    exposed_HW3 = (soft_HW3.astype(np.int32) * gain >> 7) + cast + (noise_HW3 * grain >> 8)
    return np.clip(exposed_HW3, 0, 255).astype(np.uint8)
