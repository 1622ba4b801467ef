"""Three ways to label a bucket, in turn, on the same images and with the same model, each in separate processes.

    python benchmarks/pipeline.py                                  PSPNet-18, about 0.1 s per image on two cores
    python benchmarks/pipeline.py --backbone resnet50 --variants textbook ours --images 100

loop      plain Python on all cores: threads download and decode ahead, the main thread predicts, threads encode,
          and the same Parquet parts are written; no Ray, no retries, no resuming
textbook  Ray Data as in its documentation: read_images, map_batches, write_parquet; eager float32, upsampled logits
          and argmax
ours      the pipeline of jobs/segment_bucket.py

The bucket is on a local S3 server (or --root), which takes the same share of the machine from all three. The rate with
start and end covers the whole life of the process. The steady rate is measured between the first and the last tenth of
the images, and the CPU time in that interval is printed by process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import machine
from benchmarks.processes import Sample, cpu_seconds_per_image, watch

HEIGHT, WIDTH, CLASSES = 360, 480, 19
PART = 512  # images
BATCH = 8


def main() -> None:
    options = parse()
    if options.child:
        run_child(options)
        return
    with bucket(options) as root:
        prepare(options, root)
        report: dict[str, Any] = {
            **machine.about(),
            "options": {name: value for name, value in vars(options).items() if name not in ("json", "child", "root")},
            "runs": [],
        }
        for number in range(options.rounds):
            for variant in options.variants:
                run = measured(options, root, variant, number).result
                report["runs"].append(run)
                print(
                    f"round {number} {variant:9} {run['images_per_s']:7.2f} images/s, steady {run['steady']:7.2f}, "
                    f"first image after {run['to_first']:5.1f} s, {run['seconds']:6.1f} s in total, "
                    f"peak {run['peak_gib']:5.2f} GiB",
                    flush=True,
                )
                spent = sorted(run["cpu_seconds_per_image"].items(), key=lambda item: -item[1])
                print("    CPU s per image: " + ", ".join(f"{kind} {seconds}" for kind, seconds in spent), flush=True)
                if options.json:
                    Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    for key in ("images_per_s", "steady"):
        rates = {
            variant: [run[key] for run in report["runs"] if run["variant"] == variant] for variant in options.variants
        }
        for other in options.variants:
            if "ours" in rates and other != "ours":
                ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[other], strict=True)]
                print(f"{key}: ours / {other} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["loop", "ours"], choices=list(VARIANTS))
    parser.add_argument("--images", type=int, default=500, help="number of 480 x 360 JPEGs in the bucket")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--root", help="folder or URI to work in (default: a local S3 server)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "ROOT", "OUTPUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def bucket(options: argparse.Namespace) -> Iterator[str]:
    if options.root:
        yield options.root
        return
    from pipeline import storage
    from pipeline.demo.local_s3 import local_s3

    with local_s3() as server:
        os.environ.update(server.environment)
        filesystem, _ = storage.open_filesystem("s3://bench/")
        filesystem.mkdir("bench")
        yield "s3://bench"


def prepare(options: argparse.Namespace, root: str) -> None:
    """Write the images and a checkpoint with random weights, which takes as long to run as a trained one."""
    import torch

    import models
    from pipeline import storage
    from pipeline.datasets.scenes import scene
    from pipeline.images.codec import encode_image

    torch.manual_seed(0)
    model = models.PSPNet(models.Architecture(options.backbone, CLASSES, auxiliary=False)).eval()
    colors = [[13 * k % 256, 29 * k % 256, 7 * k % 256] for k in range(CLASSES)]
    names = [f"class {k}" for k in range(CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, model, models.Metadata(names, colors, preprocessing={"long_side": None}))
        storage.copy_files(folder, f"{root}/checkpoint", [path.name for path in Path(folder).iterdir()])
    files = [encode_image(scene(0, index, HEIGHT, WIDTH)[0]) for index in range(min(100, options.images))]
    with ThreadPoolExecutor(8) as pool:
        names = [f"{root}/photos/{index:06d}.jpg" for index in range(options.images)]
        list(pool.map(storage.write_bytes, names, (files[index % len(files)] for index in range(options.images))))


class Measured(NamedTuple):
    result: dict[str, Any]
    marks: list[list[float]]  # [time, images labeled so far]
    samples: list[Sample]


def measured(options: argparse.Namespace, root: str, variant: str, number: int) -> Measured:
    """Run a variant in a separate process and sample its processes."""
    output = f"{root}/output-{variant}-{number}"
    command = [sys.executable, str(Path(__file__)), "--child", variant, root, output, "--precision", options.precision]
    command += ["--device", options.device, "--images", str(options.images)]
    begin = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    samples: list[Sample] = []
    watcher = threading.Thread(target=watch, args=(process.pid, samples))
    watcher.start()
    printed, _ = process.communicate()
    end = time.time()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{variant} failed with exit code {process.returncode}:\n{printed}")
    marks = json.loads(printed.splitlines()[-1])
    check(output, options.images, variant)
    low, high = (next(mark for mark in marks if mark[1] >= share * options.images) for share in (0.1, 0.9))
    result = {
        "variant": variant,
        "seconds": end - begin,
        "images_per_s": options.images / (end - begin),
        "steady": (high[1] - low[1]) / max(high[0] - low[0], 1e-9),
        "to_first": marks[0][0] - begin,
        "after_last": end - marks[-1][0],
        "cpu_seconds_per_image": cpu_seconds_per_image(samples, low, high),
        "peak_gib": max((sample.gib for sample in samples), default=0.0),
    }
    return Measured(result, marks, samples)


def check(output: str, num_images: int, variant: str) -> None:
    """Exit unless every image has its mask."""
    from pipeline import storage
    from pipeline.output.parquet import read_table

    found = [uri for uri in storage.find(f"{output}/masks") if uri.endswith(".parquet")]
    tables = [read_table(uri) for uri in found]
    rows = sum(len(table) for table in tables)
    if rows != num_images or (variant != "textbook" and any("error" in t["status"].to_pylist() for t in tables)):
        raise SystemExit(f"{variant}: {output} has {rows} rows for {num_images} images, or failed images")


def run_child(options: argparse.Namespace) -> None:
    variant, root, output = options.child
    marks: list[list[float]] = []
    VARIANTS[variant](options, root, output, marks)
    print(json.dumps(marks), flush=True)


def loop(options: argparse.Namespace, root: str, output: str, marks: list[list[float]]) -> None:
    import cv2
    import numpy as np
    import pyarrow as pa
    import torch

    from pipeline import storage
    from pipeline.checkpoints.checkpoint import Checkpoint
    from pipeline.images.codec import decode_image, encode_mask
    from pipeline.output import parts
    from pipeline.output.schema import PREDICTED, image_id, masks_and_class_stats, table
    from pipeline.segment.prediction_rows import outcome

    cv2.setNumThreads(1)
    torch.set_num_threads(os.cpu_count() or 1)
    model = Checkpoint.load(f"{root}/checkpoint", None)
    predictor = model.predictor(options.device, options.precision)
    found = storage.find(f"{root}/photos")
    uris = list(found)
    helpers, encoders = ThreadPoolExecutor(2), ThreadPoolExecutor(2)

    def load(batch: list[str]) -> list[Any]:
        return [decode_image(content) for content in storage.fetch(batch)]  # type: ignore[arg-type]

    batches = [uris[start : start + BATCH] for start in range(0, len(uris), BATCH)]
    ahead: list[Future[list[Any]]] = [helpers.submit(load, batch) for batch in batches[:3]]
    rows: list[dict[str, Any]] = []
    done = 0
    for number, batch in enumerate(batches):
        images = ahead.pop(0).result()
        if number + 3 < len(batches):
            ahead.append(helpers.submit(load, batches[number + 3]))
        begin = time.perf_counter()
        prediction = predictor.predict(np.stack(images))
        seconds = (time.perf_counter() - begin) / len(batch)
        for n, uri in enumerate(batch):
            rows.append(
                {
                    "image_id": image_id(uri),
                    "image_uri": uri,
                    "size_bytes": found[uri]["size"],
                    "width": WIDTH,
                    "height": HEIGHT,
                    "seconds": seconds,
                    "mask": encoders.submit(encode_mask, prediction.class_ids_NHW[n], model.palette),
                    **outcome(prediction, n),
                }
            )
        done += len(batch)
        marks.append([time.time(), done])
        if len(rows) >= PART or number == len(batches) - 1:
            for row in rows:
                row["mask"] = {"bytes": row["mask"].result(), "path": row["image_id"].hex() + ".png"}
            predicted = pa.concat_tables([table(rows, PREDICTED)])
            masks, statistics_ = masks_and_class_stats(
                predicted, model.class_names, model.model_id, "loop", datetime.now(UTC)
            )
            parts.write_part(output, parts.part_name("loop", masks), masks, statistics_)
            rows = []


def textbook(options: argparse.Namespace, root: str, output: str, marks: list[list[float]]) -> None:
    import ray
    import ray.data

    from pipeline import storage
    from pipeline.cluster import connection

    connection.connect()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    filesystem, path = storage.arrow_filesystem(f"{root}/photos")
    target, target_path = storage.arrow_filesystem(f"{output}/masks")
    told = ray.remote(num_cpus=0)(Told).remote()
    dataset = ray.data.read_images(path, filesystem=filesystem, mode="RGB", include_paths=True).map_batches(
        TextbookPredictor,
        fn_constructor_kwargs={"checkpoint": f"{root}/checkpoint", "device": options.device, "told": told},
        batch_size=BATCH,
        num_cpus=max(1, int(ray.cluster_resources()["CPU"]) // 2),
        num_gpus=1 if options.device == "cuda" else 0,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    dataset.write_parquet(target_path, filesystem=target, min_rows_per_file=PART)
    marks += ray.get(told.marks.remote())


class Told:
    """Log of how many images were labeled at which time."""

    def __init__(self) -> None:
        self._marks: list[list[float]] = []

    def add(self, count: int) -> None:
        self._marks.append([time.time(), count + (self._marks[-1][1] if self._marks else 0)])

    def marks(self) -> list[list[float]]:
        return self._marks


class TextbookPredictor:
    def __init__(self, checkpoint: str, device: str, told: Any) -> None:
        import torch

        from pipeline.checkpoints.checkpoint import Checkpoint

        torch.set_num_threads(os.cpu_count() or 1)
        model = Checkpoint.load(checkpoint, None)
        self.network, self.device, self.told = model.network.eval().to(device), device, told
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (model.metadata.mean, model.metadata.std))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        import torch

        from benchmarks.textbook import labels

        images_N3HW = torch.from_numpy(np.stack(list(batch.pop("image")))).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            ids_NHW, confidence_NHW = labels(self.network, ((images_N3HW - self.mean) / self.std).to(self.device))
        batch["mask"] = ids_NHW.byte().cpu().numpy()
        batch["mean_confidence"] = confidence_NHW.mean((1, 2)).cpu().numpy()
        self.told.add.remote(len(ids_NHW))
        return batch


def on_progress(tell: Callable[[int], None]) -> None:
    """Call `tell` with the number of images labeled whenever a run of this process has labeled more."""
    from pipeline.segment import progress

    show = progress.ProgressBar.show
    last = 0

    def shown(line: progress.ProgressBar, update: progress.ProgressUpdate) -> None:
        nonlocal last
        done = sum(update.counts.values())
        if done > last:
            last = done
            tell(done)
        show(line, update)

    progress.ProgressBar.show = shown  # type: ignore[method-assign]


def note_progress(marks: list[Any]) -> None:
    """Append [time, images labeled so far] to `marks` during every run of this process."""
    on_progress(lambda done: marks.append([time.time(), done]))


def ours(options: argparse.Namespace, root: str, output: str, marks: list[list[float]]) -> None:
    from pipeline.config.jobs import SegmentConfig
    from pipeline.config.loading import load_settings
    from pipeline.segment.run import segment

    note_progress(marks)
    command = ["--input", f"{root}/photos", "--output", output, "--checkpoint", f"{root}/checkpoint"]
    command += ["--rows-per-part", str(PART), "--precision", options.precision]
    segment(load_settings(SegmentConfig, command + ["--gpu"] * (options.device == "cuda"), prog="benchmark"))


VARIANTS = {"loop": loop, "textbook": textbook, "ours": ours}


if __name__ == "__main__":
    main()
