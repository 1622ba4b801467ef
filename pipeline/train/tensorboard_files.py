"""TensorBoard event files in OUTPUT/tensorboard: written in place on a local disk, uploaded as copies to a bucket."""

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
FLUSH = 10  # seconds until events are written to the file
LARGEST = 8_000_000  # bytes; then a new file begins, because an object can only be uploaded as a whole


class EventFiles:
    """Writer of scalars and pictures of named runs, which are subfolders. Not thread-safe."""

    def __init__(self, output: str, last_step: int = -1) -> None:
        """Open the folder; `last_step` is the last valid step that earlier processes have logged."""
        self._target = storage.join(output, FOLDER)
        filesystem, path = storage.open_filesystem(self._target)
        in_place = isinstance(filesystem, LocalFileSystem)
        # Deleted when this process exits, unless it is killed.
        self._copies = None if in_place else tempfile.TemporaryDirectory(prefix="sceneparse-tensorboard-")
        self._folder = Path(self._copies.name if self._copies else path)
        self._writers: dict[str, SummaryWriter] = {}
        self._last_step = last_step
        self._purged: set[str] = set()  # runs that have a file with the purge step
        self._uploaded: dict[Path, int] = {}  # size of each uploaded file

    def scalars(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Log numbers by tag; None values are skipped."""
        for tag, value in values.items():
            if value is not None:
                self._writer(run).add_scalar(tag, value, step)

    def picture(self, run: str, step: int, tag: str, image_HW3: NDArray[np.uint8]) -> None:
        """Log an RGB image, H x W x 3."""
        height, width = image_HW3.shape[:2]
        # SummaryWriter.add_image would encode PNGs, which are several times as large as JPEGs.
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encode_image(image_HW3, quality=90)
        )
        writer = self._writer(run)
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def rewind(self, step: int) -> None:
        """Make TensorBoard discard everything logged after `step`, from which training resumes."""
        self._close_writers()
        self._last_step = step
        self._purged.clear()

    def flush(self) -> None:
        """Write everything to OUTPUT. Raises UserError; the next call retries failed uploads."""
        for run, writer in list(self._writers.items()):
            writer.flush()
            if self._copies and self._files(run)[-1].stat().st_size > LARGEST:
                writer.close()
                del self._writers[run]
        if self._copies:
            self._upload()

    def close(self) -> None:
        """Flush and close all files. Raises UserError."""
        self._close_writers()
        if self._copies:
            self._upload()
            self._copies.cleanup()

    def _writer(self, run: str) -> SummaryWriter:
        if run not in self._writers:
            # TensorBoard discards events of earlier files from the purge step on. The first file of a run needs a purge
            # step as well, because TensorBoard takes the first one that it finds as the start of the run.
            purge = None if run in self._purged else self._last_step + 1
            self._purged.add(run)
            self._wait_for_a_later_name(run)
            self._writers[run] = SummaryWriter(str(self._folder / run), flush_secs=FLUSH, purge_step=purge)
        return self._writers[run]

    def _wait_for_a_later_name(self, run: str) -> None:
        """Wait until the second in which the run's last file was created is over, for at most one second.

        TensorBoard reads files in name order. A name starts with the second of creation and ends with a number without
        padding, so within one second file 10 would come before file 9, and purged events would reappear.
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
