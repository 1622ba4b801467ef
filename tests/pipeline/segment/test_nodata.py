"""Images of which pixels have no data, through the stages: whole and by window, as if they had the mean color."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorSpec, with_protocol
from pipeline.cluster.progress_actor import start_progress_actor
from pipeline.config.training import ProtocolConfig
from pipeline.images.codec import ImageError, decode_mask
from pipeline.output import parts
from pipeline.output.schema import masks_and_class_stats
from pipeline.segment import large_images
from pipeline.segment.decode_stage import Limits, Preparation, decode
from pipeline.segment.error_rate import ErrorLimit
from pipeline.segment.image_rows import DecodedImage
from pipeline.segment.predict_stage import PredictStage
from pipeline.segment.progress import SegmentationProgressActor
from tests.output_checks import check_invariants
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata
from tests.pipeline.samples import encoded, random_image, write_file
from tests.pipeline.segment.test_decode_stage import listed
from tests.scene_data import PALETTE
from tests.test_segment_job import save_checkpoint

HEIGHT, WIDTH = 150, 131
SLIDING = ProtocolConfig(mode="sliding", base_size=None, crop=73)
IMAGE_HW3 = random_image(HEIGHT, WIDTH).clip(1)
VALID_HW = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.9
VALID_HW[80:] &= np.add.outer(np.arange(80, HEIGHT), np.arange(WIDTH)) < 200
MEAN = (123.675, 116.28, 103.53)


def with_color(color: Any) -> NDArray[np.uint8]:
    return np.where(VALID_HW[..., None], IMAGE_HW3, np.round(color)).astype(np.uint8)


HOLED = tiff(with_color((0, 0, 0)), photometric="rgb", tile=(32, 48), **with_nodata("0"))
WHOLE, BY_WINDOW = Limits(100_000, 1_000_000, 60), Limits(10_000, 1_000_000, 60)


def assert_statistics(row: dict[str, Any], ids_HW: NDArray[np.integer]) -> None:
    """Check the class statistics of a PREDICTED row against its mask, in which 255 is no class."""
    assert row["has_nodata"] == (ids_HW == 255).any()
    assert sum(entry["pixel_count"] for entry in row["classes"]) == (ids_HW != 255).sum()
    present = [k for k in np.unique(ids_HW).tolist() if k != 255]
    assert [entry["class_id"] for entry in row["classes"]] == present
    for entry in row["classes"]:
        ys, xs = np.nonzero(ids_HW == entry["class_id"])
        assert entry["pixel_count"] == len(ys)
        assert entry["pixel_fraction"] == pytest.approx(len(ys) / (ids_HW != 255).sum())
        box = [entry[name] for name in ("x_min", "y_min", "x_max", "y_max")]
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose([entry["centroid_x"], entry["centroid_y"]], [xs.mean(), ys.mean()], rtol=1e-5)
    weighed = sum(entry["pixel_fraction"] * entry["mean_confidence"] for entry in row["classes"])
    assert row["mean_confidence"] == pytest.approx(weighed, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(("limits", "protocol"), [(WHOLE, ProtocolConfig()), (WHOLE, SLIDING), (BY_WINDOW, SLIDING)])
def test_the_mask_has_255_there_and_elsewhere_the_labels_of_an_image_with_the_mean_color(
    tmp_path: Path, limits: Limits, protocol: ProtocolConfig
) -> None:
    save_checkpoint(tmp_path / "checkpoint")
    spec = PredictorSpec(str(tmp_path / "checkpoint"), protocol, gpu=False, precision="float32", threads=1)
    stage = PredictStage(spec, ErrorLimit(0.9, num_images=1000), start_progress_actor(SegmentationProgressActor))
    by_window = limits is BY_WINDOW
    holed = storage.absolute(str(write_file(tmp_path / "holed.tif", HOLED)))
    filled = storage.absolute(str(write_file(tmp_path / "filled.png", encoded(with_color(MEAN), "PNG"))))
    rows: dict[str, dict[str, Any]] = {}
    predicted: list[pa.Table] = []
    for uri, of_image in ((holed, limits), (filled, WHOLE)):
        preparation = Preparation(by_window=by_window, fill=MEAN)
        (block,) = decode(listed([{"image_uri": uri}]), of_image, preparation)
        assert (block["by_window"][0].as_py() is True) == (of_image is BY_WINDOW)
        predicted += stage(block)
        (rows[uri],) = predicted[-1].to_pylist()

    found_HW, expected_HW = (decode_mask(rows[uri]["mask"]["bytes"]) for uri in (holed, filled))
    np.testing.assert_array_equal(found_HW == 255, ~VALID_HW)
    np.testing.assert_array_equal(found_HW[VALID_HW], expected_HW[VALID_HW])
    for uri, ids_HW in ((holed, found_HW), (filled, expected_HW)):
        assert_statistics(rows[uri], ids_HW)

    output = (tmp_path / "output").as_uri()
    names = [f"class {k}" for k in range(len(PALETTE))]
    made = masks_and_class_stats(pa.concat_tables(predicted), names, "model1", "run1", datetime.now(UTC))
    parts.write_part(output, parts.part_name("run1", made[0]), *made)
    check_invariants(output, [holed, filled])


def predicted_by_window(folder: Path, content: bytes) -> tuple[DecodedImage, Any]:
    save_checkpoint(folder / "checkpoint")
    model = Checkpoint.load(str(folder / "checkpoint"), None)
    predictor = with_protocol(model.predictor("cpu", "float32"), SLIDING)
    uri = storage.absolute(str(write_file(folder / "scene.tif", content)))
    image = large_images.describe_file(DecodedImage(b"", uri), 10_000)
    assert image is not None
    return large_images.predict_windows(predictor, image, fill=model.metadata.mean)


def test_by_window_an_image_without_any_data_is_empty_and_one_with_all_keeps_its_mask(tmp_path: Path) -> None:
    tiles = {"photometric": "rgb", "tile": (64, 64), **with_nodata("0")}
    with pytest.raises(ImageError, match="no pixel has data") as caught:
        predicted_by_window(tmp_path, tiff(np.zeros((HEIGHT, WIDTH, 3), np.uint8), **tiles))
    assert caught.value.kind == "Empty"
    _, prediction = predicted_by_window(tmp_path, tiff(IMAGE_HW3, **tiles))
    assert prediction.pixel_count_NK.sum() == HEIGHT * WIDTH
    assert prediction.class_ids_NHW.max() < len(PALETTE)


def test_few_levels_by_window_are_those_of_the_pixels_with_data(tmp_path: Path) -> None:
    levels_HW3 = np.where(VALID_HW[..., None], 1 + IMAGE_HW3 % 15, 0).astype(np.uint8)
    image, _ = predicted_by_window(tmp_path, tiff(levels_HW3, photometric="rgb", tile=(64, 64), **with_nodata("0")))
    assert image.few_levels
