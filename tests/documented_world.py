"""A place where the documentation's commands can be typed: a folder like a checkout, buckets, a Ray head.

What the pages take for granted is there, only smaller: datasets of a few built-in scenes, published weights of 18
layers, and recipes under their own names with 18 layers, crops of 65 pixels, one epoch and one worker on CPUs.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

import models
from pipeline import storage
from pipeline.ablate.tables import RESULTS
from pipeline.config.dataset_formats import classes_of
from pipeline.datasets.scenes import scene
from pipeline.demo.server_process import ServerProcess
from pipeline.output.parquet import write_table
from tests.conftest import REPOSITORY
from tests.documented_blocks import ENDLESS, Block
from tests.evaluation_samples import save_model
from tests.models.reference_networks import Semseg
from tests.models.seeded import seeded_state_dict
from tests.pipeline.inputs.test_inventory import row, write_inventory
from tests.pipeline.samples import encoded
from tests.python_shim import PythonShim, Run
from tests.ray_head import RayHead
from tests.scene_data import SIZE, write_photos, write_training_set
from tests.small_output import write_small_output
from tests.warm_start.sitecustomize import SOCKET

# What the pages leave to the reader, and what is typed in its place.
PLACEHOLDERS = {
    r"\.\.\.$": "--output s3://bucket/selected --checkpoint s3://bucket/runs/mine/best",
    r"\bOUTPUT\b": "build/demo/labels",
}
# What Python's blocks take for granted.
BEFORE_PYTHON = """
import numpy as np
images_NHW3 = np.random.default_rng(0).integers(0, 256, (1, 48, 128, 3), np.uint8)
"""
# A cluster's addresses, which others may have on this machine.
DASHBOARD = "http://127.0.0.1:8265"
# What a program that runs until it is stopped says once it serves.
SERVES = "# serving"


class World:
    """Runs the pages' blocks in order, as a reader does who has read the README first."""

    def __init__(self, folder: Path, environment: dict[str, str], dashboard: str, shim: PythonShim) -> None:
        self.folder = folder
        self.environment = environment
        self.dashboard = dashboard
        self._shim = shim

    def run(self, block: Block) -> str:
        """Run a block as it is printed; returns what it printed. Fails unless all of its commands end with 0."""
        code = block.code.replace(DASHBOARD, self.dashboard)
        for placeholder, typed in PLACEHOLDERS.items():
            code = re.sub(placeholder, typed, code, flags=re.MULTILINE)
        if block.title == ENDLESS:
            return self._served(block, code)
        command = {
            "sh": ["bash", "-exo", "pipefail", "-c", code],
            "python": ["python", "-c", BEFORE_PYTHON + code],
            "sql": ["python", "jobs/query.py", "build/demo/labels", code, "--format", "csv"],
        }[block.language]
        done = self._shim.shell(command, self.folder, self.environment)
        said = f"{block} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert "Traceback" not in done.stderr, said
        if block.language == "sql":
            assert len(done.stdout.splitlines()) > 1, f"{block} has no rows\n{done.stdout}"
        return done.stdout

    def _served(self, block: Block, code: str) -> str:
        """Run a block until it says that it serves, then stop it."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        command = ["env", "-C", str(self.folder), "bash", "-exo", "pipefail", "-c", code]
        process = ServerProcess(str(block), command, "", log, self.environment)
        process.start()
        try:
            end = time.monotonic() + 240
            while SERVES not in log.read_text():
                assert time.monotonic() < end, f"{block} does not serve\n{log.read_text()}"
                time.sleep(0.1)
            return log.read_text()
        finally:
            process.stop()


@contextlib.contextmanager
def documented_world(folder: Path, head: RayHead, run_job: Run) -> Iterator[World]:
    """Make all of it in `folder` and in buckets of the object store that this process's environment leads to."""
    checkout = folder / "checkout"
    checkout.mkdir()
    (folder / "home").mkdir()
    programs = checkout / ".venv" / "bin"
    with tempfile.TemporaryDirectory() as sockets:  # whose paths may have 107 characters
        shim = PythonShim(programs, f"{sockets}/jobs", run_job)
        _fill_checkout(checkout)
        _fill_buckets()
        not_inherited = ("RAY_", "SCENEPARSE_", SOCKET)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(not_inherited)}
        here = {
            "HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }
        try:
            yield World(checkout, {**inherited, **head.environment, **here}, head.dashboard, shim)
        finally:
            shim.close()


def add_photos() -> None:
    """Put three more photos into the bucket."""
    write_photos("s3://bucket/photos", 3, first=len(storage.find("s3://bucket/photos")))


def _fill_checkout(folder: Path) -> None:
    for name in ("jobs", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    # `ray job submit` uploads all else. The second is of what a reader downloads or makes.
    (folder / ".rayignore").write_text((REPOSITORY / ".rayignore").read_text())
    (folder / ".gitignore").write_text("*.pth\n*.onnx\n")
    (folder / "configs").mkdir()
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        (folder / "configs" / path.name).write_text(_small(path.read_text()))
    mine = (folder / "configs" / "scenes_pspnet18.yaml").read_text()
    mine = mine.replace("data:\n", "data:\n  root: s3://bucket/dataset\n").replace("width: 64", "width: 16")
    (folder / "configs" / "mine.yaml").write_text(mine)

    names = [known.name for known in classes_of("ade20k")]
    (folder / "classes.txt").write_text("\n".join(names))
    torch.save(_weights(Semseg(18, len(names))), folder / "train_epoch_100.pth")
    torch.save(_weights(models.PSPNet(models.Architecture("resnet18", 2)).backbone), folder / "resnet50.pth")
    write_small_output(folder / "build" / "demo" / "labels")
    save_model(folder / "build" / "demo" / "runs" / "scenes" / "best")
    (folder / "build" / "demo" / "photos").mkdir()
    (folder / "build" / "demo" / "photos" / "photo-0000.jpg").write_bytes(_pair(0)[0])
    (folder / "build" / "demo" / "photos" / "broken-text.jpg").write_bytes(b"not an image")
    result = {"run": "a", "experiments": ["pooling"], "backbone": "resnet18", "bins": [1], "pooling": "max"}
    result |= {"reduce": True, "auxiliary_weight": 0.4, "seed": 0, "protocol": "single-scale", "miou": 0.5}
    result |= {"pixel_accuracy": 0.8, "class_iou": [("boat", 0.25)], "steps": 3, "seconds": 1.0, "config_hash": "x"}
    write_table(f"{folder}/build/ablation/results.parquet", pa.Table.from_pylist([result], RESULTS))


def _small(recipe: str) -> str:
    """A recipe that two CPUs train in seconds."""
    values = yaml.safe_load(recipe)
    values["model"] |= {"backbone": "resnet18"}
    values["augment"] |= {"crop": [SIZE, SIZE], "scale": [0.9, 1.1]}
    values["optimization"] |= {"batch_size": 4, "epochs": 1, "steps": None, "log_every": 2}
    values["workers"] |= {"count": 1, "gpu": False, "cpus": 1, "ingest_cpus": 1}
    values["validation"] |= {"predictors": 1, "predictor_cpus": 1, "protocol": {"mode": "whole"}}
    return yaml.safe_dump(values, sort_keys=False)


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return seeded_state_dict({name: tensor.shape for name, tensor in network.state_dict().items()})


def _fill_buckets() -> None:
    for name in ("bucket", "photos", "inventories"):
        filesystem, path = storage.open_filesystem(f"s3://{name}")
        filesystem.mkdir(path)
    write_training_set("s3://bucket/dataset", num_train=16, num_val=4)
    write_photos("s3://bucket/photos", 8)
    storage.write_bytes("s3://bucket/photos/broken.jpg", b"not an image")
    _write_ade20k("s3://bucket/ade")
    _write_voc("s3://bucket/VOC2012")
    _write_inputs()


def _pair(index: int) -> tuple[bytes, Image.Image]:
    """A scene as JPEG, and its label ids, 1 to 11."""
    image_HW3, label_HW = scene(2, index, SIZE, SIZE)
    return encoded(image_HW3, "JPEG"), Image.fromarray(np.minimum(label_HW, 10).astype(np.uint8) + 1)


def _write_ade20k(root: str) -> None:
    for index, split in enumerate(("training", "training", "validation")):
        image, label = _pair(index)
        storage.write_bytes(f"{root}/images/{split}/ADE_{index:08d}.jpg", image)
        storage.write_bytes(f"{root}/annotations/{split}/ADE_{index:08d}.png", encoded(label, "PNG"))


def _write_voc(root: str) -> None:
    lists = {"train_aug": range(8), "val": range(8, 10)}
    for split, indices in lists.items():
        folder = "SegmentationClassAug" if split == "train_aug" else "SegmentationClass"
        for index in indices:
            image, label = _pair(index)
            storage.write_bytes(f"{root}/JPEGImages/2008_{index:06d}.jpg", image)
            storage.write_bytes(f"{root}/{folder}/2008_{index:06d}.png", encoded(label, "PNG"))
        names = "\n".join(f"2008_{index:06d}" for index in indices)
        storage.write_bytes(f"{root}/ImageSets/Segmentation/{split}.txt", names.encode())


def _write_inputs() -> None:
    """Write the inputs that docs/inputs.md names: prefixes, a manifest with a nonempty 1% sample, and an inventory."""
    photo, _ = _pair(0)
    manifest = pa.table(
        {
            "image_uri": [f"s3://photos/cars/{index:04d}.jpg" for index in range(200)],
            "licence": ["CC0"] * 200,
            "camera": ["X100"] * 200,
        }
    )
    write_table("s3://photos/tables/cars/part-0.parquet", manifest)
    names = ["2024/a.jpg", "2023/b.jpg", "2023/may/c.jpg", "2023/notes.txt", "d.jpg", "labels/mask.jpg"]
    uris = [*(f"s3://photos/{name}" for name in names), *manifest["image_uri"].to_pylist()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: storage.write_bytes(uri, photo), uris))
    written = write_inventory("s3://inventories", [[row("d.jpg"), row("labels/mask.jpg")]])
    # As an inventory lies whose destination has no prefix.
    storage.write_bytes(written.replace("s3-inventory/", ""), storage.read_bytes(written))
