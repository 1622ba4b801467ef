"""Demo on one machine: train a PSPNet on scenes in a bucket, label photos with it, and query the labels."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.console import log
from pipeline.datasets.scene_files import FIRST_VAL, PALETTE
from pipeline.datasets.scenes import CLASSES, IGNORE_INDEX, scene
from pipeline.demo.contact_sheet import contact_sheet
from pipeline.demo.local_s3 import local_s3
from pipeline.errors import UserError
from pipeline.images.codec import decode_image, decode_mask, encode_image, overlay
from pipeline.metrics.confusion import Metrics, confusion_matrix
from pipeline.query import engine

CONFIG = "configs/scenes_pspnet18.yaml"
BUCKET = "s3://sceneparse-demo"
SEED = 0
CUES_RIGHT = 0.9  # higher than the default, because learning from contradictory cues takes longer than a demo
FIRST_PHOTO = 2 * FIRST_VAL  # so that no photo is a training or validation scene
# Height and width: landscape, portrait and square, as in a typical bucket of photos. The scenes are all square.
PHOTO_SIZES = [(129, 193), (193, 129), (129, 129)]
NUM_SHOWN = 4  # photos in the contact sheet
REPORT = "report.html"  # of the labels, and below RUN also of the training run
SCENES, PHOTOS, RUN, LABELS = "scenes", "photos", "runs/scenes", "labels"  # folders of the results
MARK = ".sceneparse-demo"  # file that only a demo writes
CHECKPOINTS = "checkpoint_"  # how the names of a run's intermediate checkpoints, and of their list, begin
COPIES = 8  # concurrent copies

Job = Callable[[list[str]], object]


class Jobs(NamedTuple):
    """Jobs that the demo runs, each called with its command-line options."""

    make_scenes: Job
    train: Job
    segment_bucket: Job
    query: Job
    report: Job


def run_demo(folder: Path, num_train: int, num_val: int, num_photos: int, train_options: list[str], jobs: Jobs) -> None:
    """Run the demo with its results in `folder`, where they replace those of an earlier demo.

    Training reads from a bucket; the run and the labels are written to it, and then copied to `folder`. The photos
    are labeled in `folder`, with the copied checkpoint, so that the labels lead to both after the bucket is deleted.

    Raises: UserError for an invalid option of training, or if `folder` has files of the same names that may be the
        user's own. Nothing is written before.
    """
    options_of_training = ["--config", CONFIG, "--root", f"{BUCKET}/{SCENES}", "--output", f"{BUCKET}/{RUN}"]
    options_of_training += train_options
    load_settings(TrainConfig, options_of_training, "jobs/train.py")
    _clear(folder)
    scenes, photos, labels = (str(folder / name) for name in (SCENES, PHOTOS, LABELS))
    counts = ["--num-train", str(num_train), "--num-val", str(num_val)]
    _run("make_scenes", jobs.make_scenes, ["--to", scenes, *counts, "--cues-right", str(CUES_RIGHT)])
    log(f"Wrote {num_photos} photos and {_write_photos(folder / PHOTOS, num_photos)} broken files to {photos}")
    with local_s3() as server:
        os.environ.update(server.environment)
        os.environ.pop("RAY_ADDRESS", None)
        _heading(f"S3 server on {server.endpoint}; copying {scenes} to {BUCKET}/{SCENES}")
        filesystem, bucket = storage.open_filesystem(BUCKET)
        filesystem.mkdir(bucket)
        _copy_folder(scenes, f"{BUCKET}/{SCENES}")
        try:
            _run("train", jobs.train, options_of_training)
            _copy_folder(f"{BUCKET}/{RUN}", str(folder / RUN), without=CHECKPOINTS)
            checkpoint = str(folder / RUN / "best")
            options = ["--input", photos, "--output", f"{BUCKET}/{LABELS}", "--checkpoint", checkpoint]
            _run("segment_bucket", jobs.segment_bucket, options)
        finally:
            ray.shutdown()
        _run("query", jobs.query, [f"{BUCKET}/{LABELS}", "class-areas"])
        _copy_folder(f"{BUCKET}/{LABELS}", labels)
    _run("report", jobs.report, [labels, "--to", str(folder / REPORT)])
    _show_results(folder, num_photos)


def _clear(folder: Path) -> None:
    """Remove the results of an earlier demo; nothing else, because the folder may contain the user's files."""
    earlier = [path for name in (SCENES, PHOTOS, RUN, LABELS) if (path := folder / name).exists()]
    if earlier and not (folder / MARK).exists():
        raise UserError(
            f"{earlier[0]} exists and may be your own, since {folder} has no file {MARK}; move it, or choose another "
            "folder with --to"
        )
    for path in earlier:
        shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _run(name: str, job: Job, options: list[str]) -> None:
    _heading(f"python jobs/{name}.py {shlex.join(options)}")
    job(options)


def _show_results(folder: Path, num_photos: int) -> None:
    masks = _masks(str(folder / LABELS))
    picture = folder / "photos.jpg"
    picture.write_bytes(encode_image(_picture(folder / PHOTOS, masks)))

    _heading("Results")
    for line in _score_lines(num_photos, masks):
        log(line)
    log(f"The bucket {BUCKET} is deleted. These results are in {folder}:")
    for name, content in (
        (REPORT, "report on the labels: totals, charts, and photos with their masks; open it in a browser"),
        (picture.name, "photos, ground truth, predicted masks, and a legend of the classes"),
        (PHOTOS, "labeled photos"),
        (LABELS, "tables masks, class_stats and classes"),
        (RUN, f"training run: its {REPORT}, and the checkpoints best and last"),
        (SCENES, "training and validation scenes"),
    ):
        log(f"  {name:<11}  {content}")
    _heading("Run next")
    for purpose, command in _next_commands(folder):
        log(f"{purpose}:\n  {command}")


def _score_lines(num_photos: int, masks: dict[str, NDArray[np.uint8] | NDArray[np.uint16]]) -> list[str]:
    """Return the score of the masks against the ground truth, and why it differs from that of the validation."""
    confusions_KK = {size: np.zeros((len(CLASSES), len(CLASSES)), np.int64) for size in PHOTO_SIZES}
    for photo in _photos(num_photos):
        truth_HW = photo.truth_HW
        confusions_KK[truth_HW.shape] += confusion_matrix(truth_HW, masks[photo.name], len(CLASSES), IGNORE_INDEX)
    total = Metrics.of(np.sum(list(confusions_KK.values()), 0))
    by_size = [f"{Metrics.of(one_KK).miou:.3f} at {size[1]} x {size[0]}" for size, one_KK in confusions_KK.items()]
    return [
        f"mIoU of the masks against the ground truth: {total.miou:.3f}, pixel accuracy {total.pixel_accuracy:.3f}",
        f"By width x height of the photos: {', '.join(by_size)}. The scenes of training and validation are all "
        f"{by_size[-1].partition(' at ')[2]}, so only the last number is comparable with the validation mIoU",
    ]


def _next_commands(folder: Path) -> list[tuple[str, str]]:
    """Return (purpose, command to paste into a shell) pairs."""
    scenes, labels, best = folder / SCENES, folder / LABELS, folder / RUN / "best"
    executable, here = Path(sys.executable), Path.cwd()
    python = executable.relative_to(here) if executable.is_relative_to(here) else executable
    calls = [
        ("Find the photos with boats", "query", [labels, "images-with", "boat"]),
        (
            "Evaluate the model on the validation scenes",
            "evaluate",
            ["--checkpoint", best, "--root", scenes, "--output", folder / "evaluation"],
        ),
        (
            "Label another folder of images (replace --input with your own)",
            "segment_bucket",
            ["--input", scenes / "images" / "val", "--output", folder / "more-labels", "--checkpoint", best],
        ),
    ]
    return [(purpose, shlex.join(map(str, [python, f"jobs/{job}.py", *options]))) for purpose, job, options in calls]


class Photo(NamedTuple):
    """Photo to label, and its ground truth."""

    name: str
    image_HW3: NDArray[np.uint8]
    truth_HW: NDArray[np.uint8]


def _photos(count: int) -> Iterator[Photo]:
    for number in range(count):
        size = PHOTO_SIZES[number % len(PHOTO_SIZES)]
        yield Photo(f"photo-{number:04d}.jpg", *scene(SEED, FIRST_PHOTO + number, *size, CUES_RIGHT))


def _write_photos(folder: Path, num_photos: int) -> int:
    """Write the photos, and broken files as in every large bucket; return the number of broken files."""
    photos = {photo.name: encode_image(photo.image_HW3) for photo in _photos(num_photos)}
    broken = {
        "broken-empty.jpg": b"",
        "broken-half.jpg": photos["photo-0000.jpg"][:2000],
        "broken-text.jpg": b"This is not an image.",
    }
    folder.mkdir()
    for name, content in (photos | broken).items():
        (folder / name).write_bytes(content)
    return len(broken)


def _masks(output: str) -> dict[str, NDArray[np.uint8] | NDArray[np.uint16]]:
    """Return the masks of a segmentation output by file name."""
    rows = engine.connect(output).sql("SELECT image_uri, mask.bytes FROM masks WHERE status = 'ok'").fetchall()
    return {uri.rpartition("/")[2]: decode_mask(content) for uri, content in rows}


def _picture(folder: Path, masks: dict[str, NDArray[np.uint8] | NDArray[np.uint16]]) -> NDArray[np.uint8]:
    """Draw a contact sheet of some labeled photos, all of one size."""
    rows = []
    for name, image_HW3, truth_HW in _photos(NUM_SHOWN * len(PHOTO_SIZES)):
        if image_HW3.shape[:2] != PHOTO_SIZES[0]:
            continue
        photo = decode_image((folder / name).read_bytes())
        rows.append([photo, overlay(photo, truth_HW, PALETTE, 1.0), overlay(photo, masks[name], PALETTE, 1.0)])
    return contact_sheet(rows, ("Photo", "Ground truth", "Prediction"), CLASSES)


def _copy_folder(source: str, target: str, without: str | None = None) -> None:
    """Copy all files below a folder, except those whose path in it begins with `without`."""
    base = storage.absolute(source) + "/"
    names = [uri.removeprefix(base) for uri in storage.find(source)]
    copied = [name for name in names if without is None or not name.startswith(without)]
    with ThreadPoolExecutor(COPIES) as pool:
        list(pool.map(lambda name: storage.copy_files(source, target, [name]), copied))


def _heading(text: str) -> None:
    log(f"\n== {text}")
