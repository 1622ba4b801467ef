"""Tracking of a training run in the driver: history, TensorBoard event files, MLflow and the report."""

import json
import queue
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.config.jobs import TrainConfig
from pipeline.console import log
from pipeline.errors import UserError
from pipeline.html.pictures import kept, strip, views
from pipeline.train.history import HISTORY, Record, pictures_uri, read_history
from pipeline.train.mlflow_run import MlflowRun
from pipeline.train.report import build_report
from pipeline.train.tensorboard_files import EventFiles

EVERY = 30.0  # seconds between writes to storage
MAX_PICTURES = 24  # in the panel, and of the worst images

# Keys of a step record, and their names in TensorBoard and MLflow.
SCALARS = {
    "loss": "loss/main",
    "auxiliary_loss": "loss/auxiliary",
    "learning_rate": "optimization/learning_rate",
    "gradient_norm": "optimization/gradient_norm",
    "images_per_second": "speed/images_per_second",
    "epoch": "speed/epoch",
}


class Tracker:
    """Background thread that saves the records sent by the workers while training runs.

    A storage failure is logged once and retried. It is an error only if it persists at the end.
    """

    def __init__(self, output: str, config: TrainConfig) -> None:
        """Continue the history in `output`, or start a new one. Raises UserError."""
        for other in config.tracking.compare:
            if not storage.exists(storage.join(other, HISTORY)):
                raise UserError(f"tracking.compare {other}: has no {HISTORY}; give the output of another training run")
        self._output = output
        self._palette = np.array([entry.color for entry in config.data.classes], np.uint8)
        self._history = read_history(output)
        self._elapsed_before, self._started = self._history.elapsed, time.monotonic()
        self._pictures: dict[str, bytes] = {}  # URI -> content still to be written
        self._changed = False
        self._failing = False
        self._mlflow: MlflowRun | None = None
        if config.tracking.mlflow:
            name = output.rpartition("/")[2]
            parameters = config.model_dump(mode="json", exclude={"config", "verbose", "tracking"})
            self._mlflow = MlflowRun(config.tracking.mlflow, name, parameters, self._history.mlflow_run)
            self._history.mlflow_run = self._mlflow.run_id
            storage.write_bytes(storage.join(output, HISTORY), self._history.content())
        last_step = max((record["step"] for record in self._history.steps), default=-1)
        self._events = EventFiles(output, last_step) if config.tracking.tensorboard else None
        self._queue: queue.SimpleQueue[list[Record] | None] = queue.SimpleQueue()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def add(self, records: list[Record]) -> None:
        """Queue new records and return immediately."""
        if records:
            elapsed = self._elapsed_before + time.monotonic() - self._started
            self._queue.put([{**record, "elapsed": elapsed} for record in records])

    def close(self, status: str = "FINISHED") -> str:
        """Write all records, build the report and return its URI. Raises UserError.

        `status` is the MLflow status of the run: FINISHED, FAILED or KILLED.
        """
        self._queue.put(None)
        self._thread.join()
        if self._fault:
            raise self._fault
        self._write()
        if self._events:
            self._events.close()
        report = build_report(self._output)
        if self._mlflow:
            config = storage.join(self._output, "config.yaml")
            files = {uri.rpartition("/")[2]: storage.read_bytes(uri) for uri in (report, config) if storage.exists(uri)}
            self._mlflow.close(status, files)
        return report

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close("FAILED" if isinstance(error, Exception) else "KILLED")
        except UserError as second:  # not raised, so that the user sees the first error
            log(f"The run's history could not be written: {second}")

    def _work(self) -> None:
        """Run the thread: take records as they arrive, and write them every EVERY seconds."""
        due = time.monotonic() + EVERY
        try:
            while True:
                try:
                    records = self._queue.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    self._flush()
                    due = time.monotonic() + EVERY
                    continue
                if records is None:
                    return
                for record in records:
                    self._take(record)
                    if record["kind"] == "validation":
                        due = time.monotonic()  # write at once: a validation is costly to lose
        except Exception as error:
            self._fault = error
            log(f"Tracking stopped because of an internal error ({error!r}). Training continues")

    def _take(self, record: Record) -> None:
        self._changed = True
        step = record["step"]
        if record["kind"] == "resume":
            self._history.rewind(step)
            if self._events:
                self._events.rewind(step)
            return
        self._history.add(record)
        if record["kind"] == "step":
            self._log("train", step, {name: record[key] for key, name in SCALARS.items()})
            return
        metrics = dict(record["metrics"])
        ious = {f"iou/{name}": iou for name, iou in metrics.pop("iou").items()}
        plain = {f"metrics/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        self._log("validation", step, {**plain, **ious})
        self._take_pictures(record)

    def _log(self, run: str, step: int, values: dict[str, float | None]) -> None:
        if self._events:
            self._events.scalars(run, step, values)
        if self._mlflow:
            self._mlflow.metrics(step, values)

    def _take_pictures(self, validation: Record) -> None:
        """Log the panel, and store all pictures for the report."""
        step = validation["step"]
        content: dict[str, Any] = {"step": step, "epoch": validation["epoch"], "panel": [], "worst": []}
        for kind in ("panel", "worst"):
            for position, entry in enumerate(validation[kind][:MAX_PICTURES]):
                pictures = views(entry, self._palette)
                content[kind].append(kept(entry, pictures))
                if self._events and kind == "panel":
                    name = entry["image_uri"].rpartition("/")[2]
                    self._events.picture("validation", step, f"panel/{position:02d} {name}", strip(pictures))
        self._pictures[pictures_uri(self._output, "latest")] = json.dumps(content).encode()
        best = self._history.best()
        if best and best["step"] == step:
            self._pictures[pictures_uri(self._output, "best")] = json.dumps(content).encode()

    def _flush(self) -> None:
        """Write everything that is pending; log a storage failure and continue."""
        try:
            self._write()
            if self._events:
                self._events.flush()
            self._failing = False
        except UserError as error:
            if not self._failing:
                log(f"The run's history cannot be written at the moment ({error}). Training continues")
            self._failing = True
        if self._mlflow:
            self._mlflow.flush()

    def _write(self) -> None:
        """Write history and pictures to storage. Raises UserError."""
        for uri in list(self._pictures):
            storage.write_bytes(uri, self._pictures[uri])
            del self._pictures[uri]
        if self._changed:
            storage.write_bytes(storage.join(self._output, HISTORY), self._history.content())
            self._changed = False
