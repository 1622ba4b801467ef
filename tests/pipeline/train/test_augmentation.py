"""Augmentation: image and label move together, and nothing moves that was not asked to."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.training import AugmentConfig
from pipeline.train.augmentation import BAND_ROWS, Label, affine, random_crop, random_draw, warped_image
from pipeline.train.photometric import UNCHANGED
from tests.pipeline.samples import random_image

FILL = (124.0, 116.0, 104.0)
IGNORE = 255
HEIGHT, WIDTH = 65, 81


def augmentation(**changes: Any) -> AugmentConfig:
    """One that changes nothing in an image of HEIGHT x WIDTH, with `changes`."""
    still: dict[str, Any] = {"crop": (HEIGHT, WIDTH), "scale": (1, 1), "rotation": 0, "mirror": 0, "blur": 0}
    return AugmentConfig(**{**still, **changes})


def random_label(seed: int = 0, below: int = 20) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, below, (HEIGHT, WIDTH)).astype(np.int32)


def crop(
    image_HW3: NDArray[np.uint8], label_HW: Label, augment: AugmentConfig, seed: int = 0, ignore: int = IGNORE
) -> tuple[NDArray[np.uint8], Label]:
    return random_crop(image_HW3, label_HW, augment, FILL, ignore, np.random.default_rng(seed))


def random_affine(size: tuple[int, int], augment: AugmentConfig, seed: int) -> NDArray[np.float64]:
    return affine(random_draw(augment, np.random.default_rng(seed)), size, augment.crop)


def patches(seed: int, height: int = 150, width: int = 190) -> NDArray[np.int32]:
    """A label of large patches, so that most pixels are far from a border."""
    small = np.random.default_rng(seed).integers(0, 12, (5, 6)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.int32)


def test_no_change_asked_for_is_no_change() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    cropped_HW3, cropped_HW = crop(image_HW3, label_HW, augmentation())
    assert (cropped_HW3.dtype, cropped_HW.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(cropped_HW3, image_HW3)
    np.testing.assert_array_equal(cropped_HW, label_HW)


def test_a_mirror_turns_left_and_right_alone() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    cropped_HW3, cropped_HW = crop(image_HW3, label_HW, augmentation(mirror=1))
    np.testing.assert_array_equal(cropped_HW3, image_HW3[:, ::-1])
    np.testing.assert_array_equal(cropped_HW, label_HW[:, ::-1])


def test_half_of_the_images_are_mirrored_when_asked_for_half() -> None:
    signs = [random_affine((HEIGHT, WIDTH), augmentation(mirror=0.5), seed)[0, 0] < 0 for seed in range(400)]
    assert 0.4 < np.mean(signs) < 0.6


def test_a_larger_crop_is_padded_evenly_with_fill_and_the_ignore_index() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    padded_HW3, padded_HW = crop(image_HW3, label_HW, augmentation(crop=(HEIGHT + 16, WIDTH + 32)))
    inside = slice(8, 8 + HEIGHT), slice(16, 16 + WIDTH)
    np.testing.assert_array_equal(padded_HW3[inside], image_HW3)
    np.testing.assert_array_equal(padded_HW[inside], label_HW)
    outside = np.ones(padded_HW.shape, bool)
    outside[inside] = False
    assert np.unique(padded_HW3[outside], axis=0).tolist() == [list(FILL)]
    assert np.unique(padded_HW[outside]).tolist() == [IGNORE]


def test_image_and_label_agree_after_every_augmentation() -> None:
    """The image's colour says its label; away from borders the warped one must still say the warped label's."""
    compared = 0
    augment = augmentation(crop=(129, 161), scale=(0.5, 2), rotation=30, mirror=0.5)
    for seed in range(60):
        label_HW = patches(seed)
        image_HW3 = np.dstack([label_HW * 20] * 3).astype(np.uint8)
        cropped_HW3, cropped_HW = crop(image_HW3, label_HW, augment, seed)
        said_HW = np.where(cropped_HW == IGNORE, FILL[0], cropped_HW * 20)
        # Where a pixel's whole neighbourhood has one label, interpolation has mixed no others in.
        lowest, highest = (apply(said_HW.astype(np.float32), np.ones((5, 5))) for apply in (cv2.erode, cv2.dilate))
        plain_HW = lowest == highest
        plain_HW[[0, 1, -2, -1]] = plain_HW[:, [0, 1, -2, -1]] = False  # whose neighbourhood is cut off
        compared += int(plain_HW.sum())
        np.testing.assert_allclose(cropped_HW3[..., 0][plain_HW], said_HW[plain_HW], atol=1)
    assert compared > 60 * 129 * 161 / 2


def test_a_scale_of_two_gives_four_times_the_pixels() -> None:
    label_HW = np.zeros((HEIGHT, WIDTH), np.int32)
    label_HW[20:40, 30:50] = 1
    _, scaled_HW = crop(random_image(HEIGHT, WIDTH), label_HW, augmentation(scale=(2, 2), crop=(129, 161)))
    assert abs((scaled_HW == 1).sum() - 4 * 20 * 20) < 4 * 2 * 20


@pytest.mark.parametrize("seed", range(20))
def test_the_matrix_is_a_scale_a_rotation_and_a_mirror_within_their_limits(seed: int) -> None:
    augment = augmentation(scale=(0.5, 2), rotation=10, mirror=0.5)
    linear = random_affine((HEIGHT, WIDTH), augment, seed)[:, :2]
    scale = math.sqrt(abs(np.linalg.det(linear)))
    assert 0.5 <= scale <= 2
    np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(2), atol=1e-9)
    assert abs(math.degrees(math.atan2(linear[1, 0], linear[1, 1]))) <= 10


def test_an_image_that_fits_the_crop_keeps_its_centre_at_the_crops_centre() -> None:
    augment = augmentation(crop=(257, 257), scale=(0.5, 2), rotation=180, mirror=0.5)
    for seed in range(20):
        matrix = random_affine((HEIGHT, WIDTH), augment, seed)
        np.testing.assert_allclose(matrix @ [(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1], [128, 128], atol=1e-9)


def test_a_crop_of_a_larger_image_stays_inside_and_reaches_its_edges() -> None:
    height, width = 100, 200
    columns_HW = np.broadcast_to(np.arange(width, dtype=np.int32), (height, width)).copy()
    rows_HW = np.broadcast_to(np.arange(height, dtype=np.int32)[:, None], (height, width)).copy()
    image_HW3 = random_image(height, width)
    augment = augmentation(crop=(65, 65))
    seen = {"columns": set[int](), "rows": set[int]()}
    for seed in range(150):
        seen["columns"] |= set(crop(image_HW3, columns_HW, augment, seed, ignore=1000)[1].ravel().tolist())
        seen["rows"] |= set(crop(image_HW3, rows_HW, augment, seed, ignore=1000)[1].ravel().tolist())
    for values, size in ((seen["columns"], width), (seen["rows"], height)):
        assert max(values) < size, "the ignore index: a crop reached beyond the image"
        assert min(values) <= 2
        assert max(values) >= size - 3


def test_the_same_seed_gives_the_same_crop_and_another_seed_another() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    augment = augmentation(scale=(0.5, 2), rotation=10, mirror=0.5, blur=0.5)
    first, second = (crop(image_HW3, label_HW, augment, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[1], crop(image_HW3, label_HW, augment, seed=6)[1])


def test_blur_softens_the_image_and_leaves_the_label() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    plain_HW3, plain_HW = crop(image_HW3, label_HW, augmentation(rotation=10, mirror=0.5))
    blurred_HW3, blurred_HW = crop(image_HW3, label_HW, augmentation(rotation=10, mirror=0.5, blur=1))
    np.testing.assert_array_equal(blurred_HW, plain_HW)
    assert blurred_HW3.std() < 0.8 * plain_HW3.std()


@pytest.mark.parametrize(
    ("highest", "ignore"), [(32767, 255), (32768, 255), (65534, 65535), (300, 65535), (300, 40000)]
)
def test_label_ids_of_16_bits_survive_with_their_ignore_index(highest: int, ignore: int) -> None:
    label_HW = random_label(below=3)
    label_HW[10:20] = highest
    image_HW3 = random_image(HEIGHT, WIDTH)
    padded_HW = crop(image_HW3, label_HW, augmentation(crop=(HEIGHT + 16, WIDTH)), ignore=ignore)[1]
    assert padded_HW.dtype == np.int32
    np.testing.assert_array_equal(padded_HW[8:-8], label_HW)
    assert np.unique(padded_HW[:8]).tolist() == [ignore]


@pytest.mark.parametrize(("highest", "ignore"), [(254, 255), (255, 200), (255, 256), (256, 255)])
def test_labels_travel_as_bytes_exactly_where_they_and_the_ignore_index_fit(highest: int, ignore: int) -> None:
    label_HW = random_label(below=3)
    label_HW[10:20] = highest
    augment = augmentation(crop=(HEIGHT + 16, WIDTH))
    crops = [crop(random_image(HEIGHT, WIDTH), label_HW, augment, ignore=ignore)[1]]
    if highest < 256:
        crops.append(crop(random_image(HEIGHT, WIDTH), label_HW.astype(np.uint8), augment, ignore=ignore)[1])
    for padded_HW in crops:
        assert padded_HW.dtype == (np.uint8 if max(highest, ignore) < 256 else np.int32)
        np.testing.assert_array_equal(padded_HW[8:-8], label_HW)
        assert np.unique(padded_HW[:8]).tolist() == [ignore]


def test_reflection_pads_the_image_and_not_the_label() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    augment = augmentation(crop=(HEIGHT + 16, WIDTH + 32), padding="reflect")
    padded_HW3, padded_HW = crop(image_HW3, label_HW, augment)
    np.testing.assert_array_equal(padded_HW3, np.pad(image_HW3, ((8, 8), (16, 16), (0, 0)), mode="reflect"))
    np.testing.assert_array_equal(padded_HW, np.pad(label_HW, ((8, 8), (16, 16)), constant_values=IGNORE))


def test_reflection_goes_on_where_the_padding_is_wider_than_the_image() -> None:
    flat_HW3 = np.full((HEIGHT, WIDTH, 3), 77, np.uint8)
    augment = augmentation(crop=(5 * HEIGHT, 5 * WIDTH), rotation=45, padding="reflect")
    cropped_HW3, cropped_HW = crop(flat_HW3, np.zeros((HEIGHT, WIDTH), np.int32), augment)
    assert np.unique(cropped_HW3).tolist() == [77]
    assert abs((cropped_HW == 0).sum() - HEIGHT * WIDTH) < 2 * (HEIGHT + WIDTH)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fill", [FILL, None])
def test_the_bands_of_an_image_join_without_a_seam(seed: int, fill: tuple[float, float, float] | None) -> None:
    size = (2 * BAND_ROWS + 9, 97)
    matrix = random_affine((150, 190), augmentation(crop=size, scale=(0.5, 2), rotation=30, mirror=0.5), seed)
    image_HW3 = cv2.GaussianBlur(random_image(150, 190), (5, 5), 0)
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    whole_HW3 = cv2.warpAffine(image_HW3, matrix, size[::-1], borderMode=border, borderValue=FILL)
    difference_HW3 = np.abs(warped_image(image_HW3, matrix, size, fill).astype(int) - whole_HW3)
    assert difference_HW3.max() <= 2, "no more than rounding"
    assert difference_HW3.mean() < 0.05


@pytest.mark.parametrize("seed", range(30))
def test_a_label_warped_from_the_part_that_the_crop_sees_is_the_label_warped_whole(seed: int) -> None:
    augment = augmentation(crop=(65, 97), scale=(0.5, 4), rotation=180, mirror=0.5)
    label_HW = np.random.default_rng(seed).integers(0, 256, (150, 190)).astype(np.int32)
    _, seen_HW = crop(random_image(150, 190), label_HW, augment, seed)
    matrix = random_affine((150, 190), augment, seed)
    whole_HW = cv2.warpAffine(
        label_HW.astype(np.uint8), matrix, (97, 65), flags=cv2.INTER_NEAREST, borderValue=(IGNORE,)
    )
    # Positions halfway between two pixels may fall to either.
    assert (seen_HW != whole_HW).mean() < 0.005


def angle(augment: AugmentConfig, seed: int) -> float:
    return random_draw(augment, np.random.default_rng(seed)).angle


def test_half_of_the_images_are_rotated_when_asked_for_half_and_those_as_ever() -> None:
    angles = [angle(augmentation(rotation=10, rotation_probability=0.5), seed) for seed in range(400)]
    always = [angle(augmentation(rotation=10), seed) for seed in range(400)]
    assert 0.4 < np.mean([found != 0 for found in angles]) < 0.6
    assert all(found in (0, expected) for found, expected in zip(angles, always, strict=True))


@pytest.mark.parametrize(("height", "width"), [(97, 150), (150, 97)])
def test_a_short_side_is_that_of_the_image_at_scale_1(height: int, width: int) -> None:
    label_HW = np.zeros((height, width), np.int32)
    wide = augmentation(crop=(401, 401), short_side=194, scale=(0.5, 0.5))
    cropped_HW = crop(np.zeros((height, width, 3), np.uint8), label_HW, wide)[1]
    inside = np.argwhere(cropped_HW == 0)
    assert np.ptp(inside, 0).tolist() == [height - 1, width - 1], "half of twice the size"


def largest_share(label_HW: Label) -> float:
    counts = np.unique(label_HW[label_HW != IGNORE], return_counts=True)[1]
    return counts.max() / counts.sum()


def test_crops_with_too_much_of_one_class_are_drawn_again() -> None:
    label_HW = np.zeros((65, 650), np.int32)
    label_HW[:, 300:350] = 1
    image_HW3 = random_image(65, 650)
    plain, varied = (
        [crop(image_HW3, label_HW, augmentation(crop=(65, 65), cat_max_ratio=ratio), seed)[1] for seed in range(60)]
        for ratio in (1, 0.75)
    )
    accepted = [sum(largest_share(label_HW) < 0.75 for label_HW in labels) for labels in (plain, varied)]
    assert accepted[0] < 15
    assert accepted[1] > 30


def test_a_label_of_one_class_still_gives_a_crop_and_the_same_one_each_time() -> None:
    augment = augmentation(crop=(65, 65), cat_max_ratio=0.75)
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), np.full((HEIGHT, WIDTH), 3, np.int32)
    first, second = (crop(image_HW3, label_HW, augment, seed=5) for _ in range(2))
    assert np.unique(first[1]).tolist() == [3]
    np.testing.assert_array_equal(first[0], second[0])


def test_photometric_distortion_changes_the_image_and_neither_its_label_nor_the_fill() -> None:
    label_HW = random_label()
    augment = augmentation(crop=(HEIGHT + 16, WIDTH))
    for seed in range(20):
        plain_HW3, plain_HW = crop(random_image(HEIGHT, WIDTH), label_HW, augment, seed)
        found_HW3, found_HW = crop(
            random_image(HEIGHT, WIDTH), label_HW, augment.model_copy(update={"photometric": True}), seed
        )
        np.testing.assert_array_equal(found_HW, plain_HW)
        np.testing.assert_array_equal(found_HW3[:8], plain_HW3[:8])
        drawn = random_draw(augment.model_copy(update={"photometric": True}), np.random.default_rng(seed)).distortion
        assert np.array_equal(found_HW3, plain_HW3) == (drawn[:4] == UNCHANGED[:4])


def test_labels_are_never_mixed() -> None:
    """Between class 0 and class 200 there must be no class 100."""
    label_HW = np.where(patches(1) < 6, 0, 200).astype(np.int32)
    augment = augmentation(crop=(129, 161), scale=(0.5, 2), rotation=30, mirror=0.5, blur=1)
    for seed in range(20):
        cropped_HW = crop(np.zeros((*label_HW.shape, 3), np.uint8), label_HW, augment, seed)[1]
        assert set(np.unique(cropped_HW)) <= {0, 200, IGNORE}


def test_the_callers_arrays_are_left_alone() -> None:
    image_HW3, label_HW = random_image(HEIGHT, WIDTH), random_label()
    crop(image_HW3, label_HW, augmentation(rotation=10, blur=1))
    np.testing.assert_array_equal(image_HW3, random_image(HEIGHT, WIDTH))
    np.testing.assert_array_equal(label_HW, random_label())
