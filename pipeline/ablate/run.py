"""The paper's ablations: a grid of trainings under Ray Tune, each equivalent to jobs/train.py, and their tables.

OUTPUT/ablation.yaml             the resolved configuration; a different base recipe is rejected
OUTPUT/runs/NAME/                a training's run folder, which can be inspected and resumed like any other
OUTPUT/runs/NAME/ablation.json   its results; the file marks a completed trial
OUTPUT/results.parquet           one row per training and protocol (tables.RESULTS)
OUTPUT/ablation.md               the tables; this file and results.parquet are rewritten after each training
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import yaml
from ray import tune

from pipeline import storage
from pipeline.ablate.grid import SINGLE, Trial, protocol_of, training_of, trials_of
from pipeline.ablate.tables import RESULTS, Row, Table, tables_of
from pipeline.cluster import connection
from pipeline.cluster.sizing import Reservation, check_capacity, needed
from pipeline.config.jobs import AblateConfig, TrainConfig
from pipeline.console import duration, log
from pipeline.datasets import list_pairs
from pipeline.errors import UserError
from pipeline.evaluate.evaluation import evaluate
from pipeline.evaluate.stages import EvalOptions
from pipeline.output.parquet import write_table
from pipeline.train.history import read_history
from pipeline.train.run import train
from pipeline.train.run_folder import differing_keys, fixed_keys
from pipeline.train.validation import predictor_spec, predictors_of

CONFIG, RECORD, RESULTS_FILE, TABLES = "ablation.yaml", "ablation.json", "results.parquet", "ablation.md"
TUNE = "tune"  # folder of Ray Tune's own files, deleted at the end
SECONDS_BETWEEN_LINES = 60.0
# CPUs of a trial in addition to its workers and predictors: for its driver, and for a task that decodes images.
DRIVER_CPUS, DECODING_CPUS = 1, 1


@dataclass
class Ablation:
    """Result of an ablation."""

    results: str  # URI of results.parquet
    report: str  # URI of ablation.md
    tables: list[Table]


def ablate(config: AblateConfig) -> Ablation:
    """Train and test every remaining trial of the grid on the Ray cluster that this process connects to.

    Raises: UserError for errors that the user can fix. Failed trainings are reported after all others have finished.
    """
    output = config.output
    num_images = {split: len(list_pairs(config.data, split)) for split in _splits(config)}
    _claim(output, config, num_images)
    grid = _Grid(config, output, num_images)
    finished = {trial.name: record for trial in grid.trials if (record := grid.record(trial))}
    waiting = [trial for trial in grid.trials if trial.name not in finished]
    problems: dict[str, str] = {}
    if waiting:
        connection.connect(config.verbose)
        at_once = min(trials_at_once(config, connection.resources()), len(waiting))
        log(
            f"Ablation: {len(grid.trials)} trainings of {len(grid.trials) // len(config.seeds)} settings, "
            f"{len(finished)} already completed, {at_once} in parallel; output {output}"
        )
        progress = _Progress(grid, len(finished), at_once, lambda: _write(grid))
        problems = _tuned(grid, waiting, at_once, progress)
    else:
        log(f"Ablation: all {len(grid.trials)} trainings are already completed; output {output}")
    ablation = _write(grid)
    if problems:
        listed = "\n".join(f"  {name}: {problem}" for name, problem in sorted(problems.items()))
        raise UserError(
            f"{len(problems)} of {len(grid.trials)} trainings failed; the results of the others are in "
            f"{ablation.report}. Fix the cause and run the same command again to retry:\n{listed}"
        )
    return ablation


@dataclass(frozen=True)
class _Grid:
    """Inputs of every trial, which may run on any node."""

    config: AblateConfig
    output: str
    num_images: dict[str, int]
    trials: list[Trial] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", trials_of(self.config))

    def run_folder(self, trial: Trial) -> str:
        return storage.join(self.output, "runs", trial.name)

    def training(self, trial: Trial) -> TrainConfig:
        return training_of(trial, self.config, self.run_folder(trial))

    @property
    def steps(self) -> int:
        """Number of steps of each training."""
        return self.config.optimization.total_steps(self.num_images[self.config.data.train_split])

    def config_hash(self, trial: Trial) -> str:
        resolved = self.training(trial).model_dump(mode="json") | {"num_images": self.num_images}
        canonical = json.dumps(fixed_keys(resolved), sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    def tests(self, trial: Trial) -> dict[str, dict[str, Any]]:
        """Return the protocols with which to test a trial's model, by name, as in its record."""
        return {name: protocol_of(name, self.config).model_dump(mode="json") for name in trial.protocols}

    def record(self, trial: Trial) -> dict[str, Any] | None:
        """Return the results of a completed trial; None if it is incomplete or its configuration has changed."""
        uri = storage.join(self.run_folder(trial), RECORD)
        if not storage.exists(uri):
            return None
        record = json.loads(storage.read_bytes(uri))
        tested = {name: test["protocol"] for name, test in record["tests"].items()}
        same = record["config_hash"] == self.config_hash(trial)
        return record if same and self.tests(trial).items() <= tested.items() else None

    def rows(self) -> list[Row]:
        """Return the results of the completed trials as rows of tables.RESULTS."""
        return [
            _row(trial, name, record)
            for trial in self.trials
            if (record := self.record(trial))
            for name in trial.protocols
        ]


def run_trial(grid: _Grid, trial: Trial) -> float:
    """Train the model, unless that is completed, then test it. Return the single-scale mIoU. Raises UserError."""
    config, folder = grid.training(trial), grid.run_folder(trial)
    train(config)
    # The last checkpoint, not the best one: selecting on the split that is reported would bias the result upward.
    last = storage.join(folder, "last")
    tests = {SINGLE: json.loads(storage.read_bytes(storage.join(last, "config.json")))["metrics"]}
    for name in trial.protocols:
        if name not in tests:
            tests[name] = evaluate(
                predictor_spec(last, config, protocol_of(name, grid.config)),
                list_pairs(config.data, config.data.val_split),
                config.data,
                predictors_of(config.validation),
                EvalOptions(calibration=False),
            ).as_dict([entry.name for entry in config.data.classes])
    protocols = grid.tests(trial)
    record = {
        "config_hash": grid.config_hash(trial),
        "steps": grid.steps,
        "seconds": read_history(folder).elapsed,
        "tests": {name: {"protocol": protocols[name], "metrics": tests[name]} for name in trial.protocols},
    }
    storage.write_bytes(storage.join(folder, RECORD), (json.dumps(record, indent=2) + "\n").encode())
    return tests[SINGLE]["miou"]


def _tuned(grid: _Grid, waiting: list[Trial], at_once: int, progress: "_Progress") -> dict[str, str]:
    """Run trials under Ray Tune. Return the errors that the user has to fix, by trial name."""
    by_name = {trial.name: trial for trial in waiting}

    def trainable(parameters: dict[str, Any]) -> None:
        try:
            tune.report({"miou": run_trial(grid, by_name[parameters["trial"]])})
        except UserError as error:  # not raised, because other settings may still succeed
            tune.report({"problem": str(error)})

    _silence(grid.config.verbose)
    filesystem, path = storage.arrow_filesystem(grid.output)
    own_files = storage.join(grid.output, TUNE)
    storage.remove_folder(own_files)  # left by a run that was killed
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": DRIVER_CPUS}),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[progress],
            # A trial whose node is lost resumes on another node.
            failure_config=tune.FailureConfig(max_failures=grid.config.workers.max_failures),
            verbose=0,
        ),
    )
    results = tuner.fit()
    storage.remove_folder(own_files)
    if results.errors:
        raise results.errors[0]
    return progress.problems


def _silence(verbose: bool) -> None:
    """Turn off Ray Tune's tables, log files and Ctrl-C handler, so that Ctrl-C works as in every other job."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # it prints a banner even with verbose=0
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.ERROR)


class _Progress(tune.Callback):
    """Callback that logs when a trial starts and ends, and regularly the progress of running trials."""

    def __init__(self, grid: _Grid, num_before: int, at_once: int, finished: Callable[[], object]) -> None:
        self.problems: dict[str, str] = {}
        self._grid, self._at_once, self._finished = grid, at_once, finished
        self._total, self._ended_before, self._ended = len(grid.trials), num_before, num_before
        self._started = self._last_line = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._log(f"started: {trial.config['trial']}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        name, result = trial.config["trial"], trial.last_result
        if "problem" in result:
            self.problems[name] = result["problem"]
            self._log(f"failed: {name}: {result['problem']}")
            return
        self._log(f"finished: {name} · mIoU {result['miou']:.4f}{self._time_left()}")
        self._finished()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        self._log(f"failed: {trial.config['trial']}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        running = {trial.config["trial"] for trial in trials if trial.status == "RUNNING"}
        progress = [self._how_far(trial) for trial in self._grid.trials if trial.name in running]
        self._log(" · ".join(progress) or "waiting for resources")

    def _time_left(self) -> str:
        done, left = self._ended - self._ended_before, self._total - self._ended
        if done < self._at_once or not left:  # no rate until one batch of parallel trials is complete
            return ""
        return f" · about {duration((time.monotonic() - self._started) / done * left)} left"

    def _how_far(self, trial: Trial) -> str:
        try:
            history = read_history(self._grid.run_folder(trial))
        except UserError as error:  # a storage error must not stop the progress lines
            return f"{trial.name}: {error}"
        if not history.steps:
            return f"{trial.name} is starting"
        text = f"{trial.name} step {history.steps[-1]['step']:,} of {self._grid.steps:,}"
        best = history.best()
        return f"{text}, mIoU {best['metrics']['miou']:.4f}" if best else text

    def _log(self, line: str) -> None:
        self._last_line = time.monotonic()
        log(f"{self._ended} of {self._total} · {line}")


def _claim(output: str, config: AblateConfig, num_images: dict[str, int]) -> None:
    """Save the configuration. Raises UserError if the output belongs to a different base recipe."""
    uri = storage.join(output, CONFIG)
    resolved = config.model_dump(mode="json", exclude={"config", "verbose"}) | {"num_images": num_images}
    if storage.exists(uri):
        changed = differing_keys(_base(yaml.safe_load(storage.read_bytes(uri))), _base(resolved))
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"output {output} contains an ablation of a different base recipe:\n  {listed}\n"
                "Use the previous values to resume it (experiments, seeds and what they vary may change), or choose "
                "another --output"
            )
    storage.write_bytes(uri, yaml.safe_dump(resolved, sort_keys=False).encode())


def _base(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration without the keys that the grid sets itself."""
    model = {key: value for key, value in resolved["model"].items() if key not in ("bins", "pooling", "reduce")}
    optimization = {key: value for key, value in resolved["optimization"].items() if key != "seed"}
    return resolved | {"model": model, "optimization": optimization}


def trials_at_once(config: AblateConfig, have: connection.Resources) -> int:
    """Return how many trials can run in parallel with all their resources. Raises UserError if none can."""
    workers = config.workers
    one_trial = [
        Reservation("drivers", 1, DRIVER_CPUS),
        Reservation("workers", workers.most, workers.cpus, workers.gpu),
        predictors_of(config.validation),
    ]
    cpus, gpus = needed(one_trial)
    most = have.max_cpus // (cpus + DECODING_CPUS)
    if gpus:
        most = min(most, have.max_gpus // gpus)
    count = config.trials_at_once or max(most, 1)
    check_capacity(
        "trials_at_once",
        [replace(each, count=count * each.count) for each in one_trial],
        have,
        "lower trials_at_once, workers.count or workers.cpus, or add nodes",
        decode_cpus=count * DECODING_CPUS,
    )
    return count


def _write(grid: _Grid) -> Ablation:
    """Write results.parquet and the tables of the completed trials."""
    rows = grid.rows()
    results, report = storage.join(grid.output, RESULTS_FILE), storage.join(grid.output, TABLES)
    write_table(results, pa.Table.from_pylist(rows, RESULTS))
    tables = tables_of(grid.config, rows)
    recipe = grid.config.optimization
    about = (
        f"{grid.steps:,} steps of {recipe.batch_size} images for each training, {len(grid.config.seeds)} seed(s), "
        f"{len({row['run'] for row in rows})} of {len(grid.trials)} trainings completed."
    )
    text = "\n\n".join(["# Ablation", about, *(table.markdown() for table in tables)]) + "\n"
    storage.write_bytes(report, text.encode())
    return Ablation(results, report, tables)


def _row(trial: Trial, protocol: str, record: dict[str, Any]) -> Row:
    setting, metrics = trial.setting, record["tests"][protocol]["metrics"]
    return {
        "run": trial.name,
        "experiments": list(trial.experiments),
        "backbone": setting.backbone,
        "bins": list(setting.bins),
        "pooling": setting.pooling if setting.bins else None,
        "reduce": setting.reduce if setting.bins else None,
        "auxiliary_weight": setting.auxiliary_weight,
        "seed": trial.seed,
        "protocol": protocol,
        "miou": metrics["miou"],
        "pixel_accuracy": metrics["pixel_accuracy"],
        "class_iou": list(metrics["iou"].items()),
        "steps": record["steps"],
        "seconds": record["seconds"],
        "config_hash": record["config_hash"],
    }


def _splits(config: AblateConfig) -> Sequence[str]:
    return (config.data.train_split, config.data.val_split)
