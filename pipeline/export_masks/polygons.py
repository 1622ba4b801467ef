"""Conversion of mask regions to polygons without holes, as YOLO's label files require.

Points are pixels. `cv2.fillPoly` of the points, which is how training reads such files, reproduces the region exactly:
the outline is connected to each hole by a bridge along a row of the region, traversed there and back.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int32]  # P x 2: x, y
Point = tuple[int, int]


def polygons(region_HW: NDArray[np.uint8], min_area: int = 1) -> list[Points]:
    """Return one closed polygon, of at least three points, per 8-connected region of at least `min_area` pixels."""
    count, regions_HW, statistics, _ = cv2.connectedComponentsWithStats(region_HW, connectivity=8)
    found = []
    for n in range(1, count):
        x, y, width, height, area = statistics[n].tolist()
        if area < min_area:
            continue
        alone_HW = (regions_HW[y : y + height, x : x + width] == n).astype(np.uint8)
        found.append(_without_holes(alone_HW) + np.array([x, y], np.int32))
    return found


def _without_holes(region_HW: NDArray[np.uint8]) -> Points:
    contours, hierarchy = cv2.findContours(region_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) == 1:
        return _closed(contours[0][:, 0].astype(np.int32))
    paths = [[(int(x), int(y)) for x, y in contour[:, 0]] for contour in contours]
    outer = next(n for n in range(len(paths)) if hierarchy[0][n][3] < 0)
    # Attach each hole to the contour left of its leftmost point: the outline, or another hole that extends farther
    # left. So following the attachments leftward always ends at the outline.
    holes = sorted((n for n in range(len(paths)) if n != outer), key=lambda n: min(paths[n]))
    reached = {*paths[outer]}
    hanging: dict[Point, list[int]] = {}
    for n in holes:
        x, y = min(paths[n])
        while (x, y) not in reached:
            x -= 1
        hanging.setdefault((x, y), []).append(n)
        reached |= {*paths[n]}
    return _closed(np.array(_walk(outer, paths, hanging), np.int32))


def _walk(outer: int, paths: list[list[Point]], hanging: dict[Point, list[int]]) -> list[Point]:
    """Walk along the outline, with a detour around each hole at the point that it is attached to."""
    walked: list[Point] = []
    steps = list(reversed(paths[outer]))
    while steps:
        point = steps.pop()
        walked.append(point)
        for n in hanging.pop(point, ()):
            path = paths[n]
            start = path.index(min(path))
            # Go to the hole, around it, and back to the point that it is attached to.
            steps += [point, *reversed([*path[start:], *path[: start + 1]])]
    return walked


def _closed(points: Points) -> Points:
    """Remove points on a straight line between their neighbors, but return at least three points."""
    if len(points) > 2:
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        points = points[((points - before) != (after - points)).any(axis=1)]
    return points[np.arange(max(3, len(points))) % len(points)]
