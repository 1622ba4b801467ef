"""Folder of a training run: its configuration, its checkpoints and its published models.

OUTPUT/config.yaml            the resolved configuration, which must be the same when the run is resumed
OUTPUT/checkpoint_00000063/   model and training state after that many steps; Ray Train keeps only a few of them
OUTPUT/best/, OUTPUT/last/    the published models, without training state
"""

import json
import re
from typing import Any

import yaml

from pipeline import storage
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import AugmentConfig, LossConfig, ModelConfig, OptimizationConfig
from pipeline.errors import UserError

CONFIG = "config.yaml"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of valid checkpoints
CHECKPOINT = re.compile(r"checkpoint_\d.*")

# A resumed run must have the same values in these sections, except for the keys in MAY_CHANGE.
FIXED = ("weights", "data", "model", "augment", "loss", "optimization", "validation")
MAY_CHANGE = (
    "data.root",
    "optimization.log_every",
    *(f"validation.{key}" for key in ("asynchronous", "gpu", "predictors", "predictor_cpus")),
)


def claim_run(output: str, config: TrainConfig, num_images: dict[str, int]) -> dict[str, Any]:
    """Save the resolved configuration and return it, and remove the unfinished files of an interrupted run.

    `num_images`, the images per split, is part of the configuration, because the batches depend on it.

    Raises: UserError if the output has checkpoints of a run with a different configuration.
    """
    resolved = {**config.model_dump(mode="json"), "num_images": num_images}
    uri = storage.join(output, CONFIG)
    if recorded_checkpoints(output):
        changed = differing_keys(yaml.safe_load(storage.read_bytes(uri)), resolved)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"output {output} contains a run with a different configuration:\n  {listed}\n"
                "Use the previous values to resume it, or choose another --output"
            )
    remove_orphans(output)
    storage.write_bytes(uri, yaml.safe_dump(resolved, sort_keys=False).encode())
    return resolved


def remove_orphans(output: str) -> None:
    """Delete orphaned checkpoints (written but not recorded) and partly deleted ones. No run may be active."""
    recorded = recorded_checkpoints(output)
    for folder in {name.split("/")[0] for name in _below(output)}:
        if CHECKPOINT.fullmatch(folder) and folder not in recorded:
            storage.remove_folder(storage.join(output, folder))
        elif folder.startswith(storage.PARTIAL):
            storage.remove(storage.join(output, folder))


def checkpoint_name(steps_taken: int) -> str:
    """Return the name of the checkpoint folder after that many steps."""
    return f"checkpoint_{steps_taken:08d}"


def num_steps(name: str) -> int:
    """Return the number of steps from the name of a checkpoint folder."""
    return int(name.rsplit("_", 1)[1])


def recorded_checkpoints(output: str) -> set[str]:
    """Return the names of the checkpoint folders that Ray Train has recorded."""
    uri = storage.join(output, SNAPSHOT)
    if not storage.exists(uri):
        return set()
    book = json.loads(storage.read_bytes(uri))
    results = [*book["checkpoint_results"], *book["pending_training_results"], book["latest_checkpoint_result"]]
    return {result["checkpoint_dir_name"] for result in results if result}


def publish(checkpoint: str, target: str, metrics: dict[str, Any]) -> None:
    """Copy the model of a checkpoint folder to the folder `target` and add its metrics."""
    from models.weights.checkpoint import CONFIG as ABOUT
    from models.weights.checkpoint import WEIGHTS

    about = json.loads(storage.read_bytes(storage.join(checkpoint, ABOUT)))
    about["metrics"] |= metrics
    storage.copy_files(checkpoint, target, (WEIGHTS,))
    storage.write_bytes(storage.join(target, ABOUT), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


def _below(output: str) -> list[str]:
    """Return the names of all files of the run, relative to its folder."""
    return [uri.removeprefix(output).lstrip("/") for uri in storage.find(output)]


def differing_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one line for each fixed key whose value differs between two resolved configurations."""
    new = fixed_keys(now)
    # A key that the release which recorded the run did not have yet means its default.
    old = {key: value for key, value in fixed_keys(_defaults()).items() if key in new} | fixed_keys(before)
    if old.get("weights"):
        old["weights"] = storage.absolute(old["weights"])  # earlier releases recorded it as it was given
    return [
        f"{key}: {old.get(key)!r} before, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def fixed_keys(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved configuration that determines a run's outcome, as dotted keys and values."""
    return {
        key: value
        for key, value in _flat(resolved).items()
        if key.split(".")[0] in (*FIXED, "num_images") and key not in MAY_CHANGE
    }


def _defaults() -> dict[str, Any]:
    sections = {
        "model": ModelConfig(),
        "augment": AugmentConfig(),
        "loss": LossConfig(),
        "optimization": OptimizationConfig(),
    }
    return {name: section.model_dump(mode="json") for name, section in sections.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
