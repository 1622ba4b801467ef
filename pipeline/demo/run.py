"""Demo on one machine: write scenes to a bucket, train a PSPNet on them, label and query a second prefix."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline import storage
from pipeline.console import log
from pipeline.datasets.scene_files import FIRST_VAL, PALETTE, write_scenes
from pipeline.datasets.scenes import CLASSES, IGNORE_INDEX, scene
from pipeline.demo.local_s3 import local_s3
from pipeline.images.codec import decode_image, decode_mask, encode_image, overlay
from pipeline.metrics.confusion import Metrics, confusion_matrix
from pipeline.query import engine

CONFIG = "configs/scenes_pspnet18.yaml"
BUCKET = "s3://sceneparse-demo"
SEED = 0
CUES_RIGHT = 0.9  # higher than the default, because learning from contradictory cues takes longer than a demo
FIRST_PHOTO = 2 * FIRST_VAL  # so that no photo is a training or validation scene
# Landscape, portrait and square, as in a typical bucket of photos.
PHOTO_SIZES = [(129, 193), (193, 129), (129, 129)]
NUM_SHOWN = 4  # photos in the contact sheet
REPORT = "report.html"
RESULTS = ("runs/scenes/best", "labels")  # folders of the bucket to copy

Job = Callable[[list[str]], object]


class Jobs(NamedTuple):
    """Jobs that the demo runs, each called with its command-line options."""

    train: Job
    segment_bucket: Job
    query: Job
    report: Job


def run_demo(folder: Path, num_train: int, num_val: int, num_photos: int, train_options: list[str], jobs: Jobs) -> None:
    """Run the demo and copy checkpoint, tables and report to `folder`, replacing those of an earlier demo."""
    for name in RESULTS:  # nothing else is deleted, because the folder may contain the user's files
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    with local_s3() as server:
        os.environ.update(server.environment)
        os.environ.pop("RAY_ADDRESS", None)
        _heading(f"S3 server on {server.endpoint}; writing scenes to {BUCKET}")
        filesystem, bucket = storage.open_filesystem(BUCKET)
        filesystem.mkdir(bucket)
        write_scenes(f"{BUCKET}/scenes", num_train, num_val, SEED, 129, 129, CUES_RIGHT)
        _write_photos(num_photos)
        log(f"{num_train} training and {num_val} validation scenes, {num_photos} photos and 3 broken files to label")
        try:
            options = ["--config", CONFIG, "--data.root", f"{BUCKET}/scenes", "--output", f"{BUCKET}/runs/scenes"]
            _run("jobs/train.py", jobs.train, options + train_options)
            options = ["--input", f"{BUCKET}/photos", "--output", f"{BUCKET}/labels"]
            _run(
                "jobs/segment_bucket.py", jobs.segment_bucket, [*options, "--checkpoint", f"{BUCKET}/runs/scenes/best"]
            )
        finally:
            ray.shutdown()
        _run("jobs/query.py", jobs.query, [f"{BUCKET}/labels", "class-areas"])
        _run("jobs/report.py", jobs.report, [f"{BUCKET}/labels", "--to", str(folder / REPORT)])
        for name in RESULTS:
            _download(storage.join(BUCKET, name), folder / name)
        _show_results(num_photos, folder)


def _run(name: str, job: Job, options: list[str]) -> None:
    _heading(f"python {name} {' '.join(options)}")
    job(options)


def _show_results(num_photos: int, folder: Path) -> None:
    output = storage.join(BUCKET, "labels")
    rows = (
        engine.connect(output)
        .sql("SELECT image_uri, mask.bytes FROM masks WHERE status = 'ok' ORDER BY image_uri")
        .fetchall()
    )
    masks = {uri: decode_mask(content) for uri, content in rows}
    confusion_KK = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for uri, (_, truth_HW) in _photos(num_photos):
        confusion_KK += confusion_matrix(truth_HW, masks[uri], len(CLASSES), IGNORE_INDEX)
    metrics = Metrics.of(confusion_KK)
    picture = folder / "photos.jpg"
    picture.write_bytes(encode_image(_contact_sheet(masks)))

    _heading("Results")
    log(f"mIoU of the masks against the ground truth: {metrics.miou:.3f}, pixel accuracy {metrics.pixel_accuracy:.3f}")
    log(f"The bucket {BUCKET} is deleted at the end of this demo. Copies:")
    log(f"  {folder / 'runs/scenes/best'}  the checkpoint")
    log(f"  {folder / 'labels'}  the tables masks, class_stats and classes, for jobs/query.py")
    log(f"  {folder / REPORT}  the report (open it in a browser): totals, charts, and photos with their masks")
    log(f"  {picture}  photos, ground truth and masks")


def _photos(count: int) -> Iterator[tuple[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    for number in range(count):
        size = PHOTO_SIZES[number % len(PHOTO_SIZES)]
        yield f"{BUCKET}/photos/photo-{number:04d}.jpg", scene(SEED, FIRST_PHOTO + number, *size, CUES_RIGHT)


def _write_photos(num_photos: int) -> None:
    files = {uri: encode_image(image_HW3) for uri, (image_HW3, _) in _photos(num_photos)}
    # Broken files, as in every large bucket.
    files[f"{BUCKET}/photos/broken-empty.jpg"] = b""
    files[f"{BUCKET}/photos/broken-half.jpg"] = files[f"{BUCKET}/photos/photo-0000.jpg"][:2000]
    files[f"{BUCKET}/photos/broken-text.jpg"] = b"This is not an image."
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.write_bytes, files.keys(), files.values()))


def _contact_sheet(masks: dict[str, NDArray[np.uint8] | NDArray[np.uint16]]) -> NDArray[np.uint8]:
    """Draw rows of photo, ground truth and mask, at twice their size."""
    rows = []
    for uri, (image_HW3, truth_HW) in _photos(NUM_SHOWN * len(PHOTO_SIZES)):
        if image_HW3.shape[:2] != PHOTO_SIZES[0]:
            continue
        picture = decode_image(storage.read_bytes(uri))
        panels = [picture, overlay(picture, truth_HW, PALETTE, 1.0), overlay(picture, masks[uri], PALETTE, 1.0)]
        rows.append(
            np.concatenate([np.pad(panel, ((3, 3), (3, 3), (0, 0)), constant_values=255) for panel in panels], 1)
        )
    return np.concatenate(rows).repeat(2, 0).repeat(2, 1)


def _download(uri: str, folder: Path) -> None:
    base = storage.absolute(uri) + "/"
    for name in storage.find(uri):
        target = folder / name.removeprefix(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(name))


def _heading(text: str) -> None:
    log(f"\n== {text}")
