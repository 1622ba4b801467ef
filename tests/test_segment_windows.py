"""jobs/segment_bucket.py on scenes too large to be decoded whole: labelled by window, or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest

import models
from pipeline import storage
from pipeline.datasets.scenes import scene
from pipeline.images.codec import decode_image, decode_label, encode_image
from tests.conftest import RunJob
from tests.output_checks import check_invariants
from tests.pipeline.image_corpus import tiff
from tests.pipeline.images.test_nodata import with_nodata
from tests.test_segment_job import save_checkpoint, upload

pytestmark = pytest.mark.slow

WINDOWS = ["--protocol.mode", "sliding", "--protocol.base-size", "none", "--protocol.crop", "129"]
MAX_PIXELS = 20_000


def large_scene() -> np.ndarray:
    """300 x 260 pixels of four scenes."""
    return np.block([[[scene(2, 2 * row + column, 150, 130)[0]] for column in range(2)] for row in range(2)])


def holed_scene() -> np.ndarray:
    """Return the scene with a corner without data, which is black."""
    holed_HW3 = large_scene().clip(1)
    holed_HW3[:100, :50] = 0
    return holed_HW3


def write_images(prefix: str) -> dict[str, bytes]:
    large_HW3 = large_scene()
    tiled = tiff(large_HW3, photometric="rgb", tile=(64, 64), compression="zlib")
    files = {
        "large.tif": tiled,
        "named otherwise.jpg": tiff(large_HW3, photometric="rgb", rowsperstrip=16),
        "one strip.tif": tiff(large_HW3, photometric="rgb", rowsperstrip=300),
        "cut off.tif": tiled[: len(tiled) // 2],
        "holed.tif": tiff(holed_scene(), photometric="rgb", tile=(64, 64), **with_nodata("0")),
        "small.jpg": encode_image(scene(1, 0, 97, 65)[0]),
        "large.jpg": encode_image(large_HW3),
    }
    for name, content in files.items():
        storage.write_bytes(f"{prefix}/{name}", content)
    return files


def by_name(output: str, prefix: str, files: dict[str, bytes]) -> dict[str, dict]:
    return {
        Path(uri).name: row for uri, row in check_invariants(output, [f"{prefix}/{name}" for name in files]).items()
    }


def test_a_large_tiff_is_labelled_by_window_as_in_memory_and_others_say_why_not(
    run_job: RunJob, bucket: str, tmp_path: Path
) -> None:
    model = save_checkpoint(tmp_path)
    checkpoint = upload(tmp_path, f"{bucket}/checkpoint")
    files = write_images(f"{bucket}/scenes")
    options = ["--input", f"{bucket}/scenes", "--checkpoint", checkpoint, *WINDOWS, "--batch-size", "1"]
    small = ["--max-pixels", str(MAX_PIXELS)]
    runs = {
        "by window": [*options, *small],
        "not downloaded": [*options, *small, "--max-bytes", "10000"],
        "in memory": options,
    }
    rows = {}
    for name, arguments in runs.items():
        output = f"{bucket}/labels {name}"
        done = run_job("jobs/segment_bucket.py", *arguments, "--output", output)
        assert done.returncode == 0, done.stdout + done.stderr
        told = f"No data     1 of {len(files)} images have pixels without data; these have no class"
        assert told in done.stdout.splitlines()
        rows[name] = by_name(output, f"{bucket}/scenes", files)

    for name in ("by window", "not downloaded"):
        kinds = {image: (row["error_stage"], row["error_type"]) for image, row in rows[name].items()}
        assert kinds == {
            "large.tif": (None, None),
            "named otherwise.jpg": (None, None),
            "one strip.tif": ("decode", "TooLarge"),
            "cut off.tif": ("decode", "Corrupt"),
            "holed.tif": (None, None),
            "small.jpg": (None, None),
            "large.jpg": ("download" if name == "not downloaded" else "decode", "TooLarge"),
        }
        assert "save it with tiles" in rows[name]["one strip.tif"]["error_message"]

    # The job computes in bfloat16 where the processor does, and so does this.
    metadata = models.Metadata([], [])
    sliding = models.SlidingPredictor(
        models.Predictor(model, metadata.mean, metadata.std, precision="auto"),
        models.Protocol(base_size=None, crop=129),
    )
    for image in ("large.tif", "named otherwise.jpg", "small.jpg"):
        of_memory = rows["in memory"][image]
        expected_HW = sliding.predict(decode_image(files[image])[None]).class_ids_NHW[0]
        for name in ("by window", "not downloaded"):
            row = rows[name][image]
            found_HW = decode_label(row["mask"]["bytes"])
            assert found_HW.shape == expected_HW.shape
            assert (found_HW == expected_HW).mean() > 0.99
            assert (found_HW == decode_label(of_memory["mask"]["bytes"])).mean() > 0.999
            assert (row["size_bytes"], row["etag"]) == (len(files[image]), of_memory["etag"])
            np.testing.assert_allclose(row["mean_confidence"], of_memory["mean_confidence"], rtol=1e-3)

    holed_HW = (holed_scene() == 0).all(-1)
    for of_run in rows.values():
        found_HW = decode_label(of_run["holed.tif"]["mask"]["bytes"])
        np.testing.assert_array_equal(found_HW == 255, holed_HW)


def test_without_the_protocol_the_row_tells_the_way(run_job: RunJob, bucket: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    write_images(f"{bucket}/scenes")
    done = run_job(
        *("jobs/segment_bucket.py", "--input", f"{bucket}/scenes/large.tif", "--output", f"{bucket}/labels"),
        *("--checkpoint", str(tmp_path), "--max-pixels", str(MAX_PIXELS), "--max-error-rate", "1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = check_invariants(f"{bucket}/labels", [f"{bucket}/scenes/large.tif"]).values()
    assert (row["error_stage"], row["error_type"]) == ("decode", "TooLarge")
    assert "--protocol.mode sliding --protocol.base-size none" in row["error_message"]
