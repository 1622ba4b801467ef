"""TensorBoard's event files, in OUTPUT/tensorboard: on this machine's disk in place, in a bucket as copies."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import SummaryWriter

from pipeline import storage
from pipeline.images.codec import encode_image

FOLDER = "tensorboard"
FLUSH = 10  # seconds until events are in the file
LARGEST = 8_000_000  # bytes; after that a new file, since an object can only be written whole


class EventFiles:
    """Writes scalars and pictures of named runs, which are subfolders; made for one thread."""

    def __init__(self, output: str, last_step: int = -1) -> None:
        """`last_step` is the last one that counts of what earlier processes have logged."""
        self._target = storage.join(output, FOLDER)
        filesystem, path = storage.open_filesystem(self._target)
        in_place = isinstance(filesystem, LocalFileSystem)
        # Goes with this process, however it ends short of a kill.
        self._copies = None if in_place else tempfile.TemporaryDirectory(prefix="sceneparse-tensorboard-")
        self._folder = Path(self._copies.name if self._copies else path)
        self._writers: dict[str, SummaryWriter] = {}
        self._last_step = last_step
        self._purged: set[str] = set()  # runs that have a file which says so
        self._uploaded: dict[Path, int] = {}  # sizes

    def scalars(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Log numbers by tag; None is left out."""
        for tag, value in values.items():
            if value is not None:
                self._writer(run).add_scalar(tag, value, step)

    def picture(self, run: str, step: int, tag: str, image_HW3: NDArray[np.uint8]) -> None:
        """Log an RGB image, H x W x 3."""
        height, width = image_HW3.shape[:2]
        # As JPEG: SummaryWriter.add_image would make PNGs of several times the size.
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encode_image(image_HW3, quality=90)
        )
        writer = self._writer(run)
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def rewind(self, step: int) -> None:
        """Let TensorBoard forget what was logged after `step`: training goes on from there."""
        self._close_writers()
        self._last_step = step
        self._purged.clear()

    def flush(self) -> None:
        """Bring everything to OUTPUT. Raises UserError; what failed is tried again by the next call."""
        for run, writer in list(self._writers.items()):
            writer.flush()
            if self._copies and self._files(run)[-1].stat().st_size > LARGEST:
                writer.close()
                del self._writers[run]
        if self._copies:
            self._upload()

    def close(self) -> None:
        """Flush and end. Raises UserError."""
        self._close_writers()
        if self._copies:
            self._upload()
            self._copies.cleanup()

    def _writer(self, run: str) -> SummaryWriter:
        if run not in self._writers:
            # TensorBoard drops what earlier files have from this step on. A run's first file has to name a step, too,
            # since TensorBoard takes the first that it finds for the start of the run.
            purge = None if run in self._purged else self._last_step + 1
            self._purged.add(run)
            self._wait_for_a_later_name(run)
            self._writers[run] = SummaryWriter(str(self._folder / run), flush_secs=FLUSH, purge_step=purge)
        return self._writers[run]

    def _wait_for_a_later_name(self, run: str) -> None:
        """Wait until the second in which the run's last file began is over, a second at the most.

        TensorBoard reads files in the order of their names, which begin with that second and end in a number that is
        not padded: within a second, file 10 would come before file 9, and what it voids would come back.
        """
        last = max((int(path.name.split(".")[3]) for path in self._files(run)), default=0)
        while last <= (now := time.time()) < last + 1:
            time.sleep(last + 1 - now)

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _files(self, run: str = "*") -> list[Path]:
        return sorted(self._folder.glob(f"{run}/events.*"))

    def _upload(self) -> None:
        for file in self._files():
            size = file.stat().st_size
            if self._uploaded.get(file) != size:
                storage.write_bytes(storage.join(self._target, file.parent.name, file.name), file.read_bytes())
                self._uploaded[file] = size
