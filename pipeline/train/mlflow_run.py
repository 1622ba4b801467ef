"""Logging of a run's metrics, parameters and files to MLflow. mlflow is an optional extra, imported only when used."""

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from pipeline.console import log
from pipeline.errors import UserError

EXPERIMENT = "sceneparse"  # unless MLFLOW_EXPERIMENT_NAME is set
# By default, MLflow waits many minutes for a server that does not respond. Short timeouts suffice: every flush retries.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder as the tracking URI is intended
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
METRICS_AT_ONCE = 1000  # MLflow's limits per request
PARAMETERS_AT_ONCE = 100
LONGEST_PARAMETER = 500  # characters; the limit of older servers
LONGEST_NAME = 200
MAX_WAITING = 200_000  # metrics buffered while the server does not respond


class MlflowRun:
    """Run on an MLflow tracking server. A resumed training continues its MLflow run.

    Metrics that the server does not accept are buffered and sent again later. The failure is logged once, and training
    continues.
    """

    def __init__(self, uri: str, name: str, parameters: Mapping[str, Any], run_id: str | None = None) -> None:
        """Continue the run `run_id` if the server has it, otherwise create a run. Raises UserError."""
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UserError(
                f"tracking.mlflow {uri}: MLflow cannot be imported ({error}); install the extra with "
                "`pip install 'sceneparse[mlflow]'`, or remove the key"
            ) from None
        self._uri = uri
        self._metric = Metric
        self._waiting: list[Any] = []
        self._failing = False
        try:
            self._client = MlflowClient(tracking_uri=uri)
            run = self._continued(run_id) or self._client.create_run(self._experiment(), run_name=name)
            self.run_id: str = run.info.run_id
            # MLflow does not allow changing a parameter once it is set.
            flat = [(key, value) for key, value in flattened(parameters).items() if key not in run.data.params]
            for start in range(0, len(flat), PARAMETERS_AT_ONCE):
                some = [Param(key, value) for key, value in flat[start : start + PARAMETERS_AT_ONCE]]
                self._client.log_batch(self.run_id, params=some)
        except Exception as error:  # MLflow's stores raise exceptions of many types
            raise UserError(
                f"tracking.mlflow {uri}: cannot create or resume a run: {_reason(error)}; start the server, correct "
                "the URI, or remove the key"
            ) from None

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Buffer metrics until the next flush; None values are skipped."""
        now = int(time.time() * 1000)
        self._waiting += [
            self._metric(metric_name(name), value, now, step) for name, value in values.items() if value is not None
        ]
        del self._waiting[:-MAX_WAITING]

    def flush(self) -> bool:
        """Send the buffered metrics. Return True if the server accepted them all."""
        try:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:METRICS_AT_ONCE])
                del self._waiting[:METRICS_AT_ONCE]
        except Exception as error:
            if not self._failing:
                log(
                    f"MLflow at {self._uri} does not accept metrics ({_reason(error)}). Training continues; the "
                    "metrics are sent when the server accepts them again"
                )
            self._failing = True
            return False
        if self._failing:
            log(f"MLflow at {self._uri} accepts metrics again")
        self._failing = False
        return True

    def close(self, status: str, files: Mapping[str, bytes]) -> None:
        """Send the buffered metrics and the text files, and end the run as FINISHED, FAILED or KILLED."""
        if not self.flush():
            log(f"MLflow at {self._uri} is missing {len(self._waiting)} metrics; the run's history has them")
            return
        try:
            self._client.set_terminated(self.run_id, status)
            for name, content in files.items():
                self._client.log_text(self.run_id, content.decode(), name)
        except Exception as error:  # for example, a missing package for the server's artifact store
            log(f"MLflow at {self._uri} did not accept {', '.join(files)}: {_reason(error)}")

    def _continued(self, run_id: str | None) -> Any:
        """Set the earlier run to RUNNING and return it; None if this server does not have it, or no longer."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)


def metric_name(name: str) -> str:
    """Replace every character that MLflow does not allow in a metric name by `_`: `iou/<sky>` -> `iou/_sky_`."""
    group, slash, rest = name.partition("/")
    return group + slash + re.sub(r"[^\w\- :]", "_", rest)[:LONGEST_NAME]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten `{"a": {"b": 1}}` to `{"a.b": "1"}`. Lists and maps of ids become JSON; long values are truncated."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(str(inner).isidentifier() for inner in value):
            flat |= flattened(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[name] = text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 1] + "…"
    return flat


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
