"""Ownership of an output: the model that it belongs to, the outcomes of its runs, and its failures."""

import posixpath
from collections import Counter
from dataclasses import dataclass, fields

import pyarrow.compute as pc

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.output.parquet import read_table, write_table
from pipeline.output.schema import CLASSES, MASKS, SCHEMA_VERSION, table


def claim_output(output: str, model: Checkpoint) -> None:
    """Write the output's class table, which names its model, if it is not there yet.

    Raises: UserError if the output has another model, other classes or another schema version, or cannot be written.
    """
    if is_claimed(output, model):
        return
    rows = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(zip(model.class_names, model.metadata.colors, strict=True))
    ]
    # The owner of the output, which is_claimed compares with.
    marks = {"sceneparse.model_id": model.model_id, "sceneparse.schema_version": SCHEMA_VERSION}
    write_table(_class_table(output), table(rows, CLASSES.with_metadata(marks)))


def is_begun(output: str) -> bool:
    """Return True if a run has ever written to the output."""
    return storage.exists(_class_table(output))


def is_claimed(output: str, model: Checkpoint) -> bool:
    """Return True if the output has its class table. Raises: UserError if the table is not this model's."""
    uri = _class_table(output)
    if storage.exists(uri):
        existing = read_table(uri, schema=CLASSES)
        found = {key.decode(): value.decode() for key, value in (existing.schema.metadata or {}).items()}
        version, model_id = found.get("sceneparse.schema_version"), found.get("sceneparse.model_id")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"output {output} has table schema version {version}, but this program writes {SCHEMA_VERSION}; choose "
                "another --output, or use the version of this program that created it"
            )
        if model_id != model.model_id:
            raise UserError(
                f"output {output} belongs to another model ({model_id}; this one is {model.model_id}). An output holds "
                "the labels of one model with one preprocessing: choose another --output, or use that checkpoint"
            )
        if existing["class_name"].to_pylist() != model.class_names:
            raise UserError(
                f"output {output} has the classes {existing['class_name'].to_pylist()}, but the checkpoint has "
                f"{model.class_names}; choose another --output, or use a checkpoint with the classes of the output"
            )
        return True
    if storage.find(storage.join(output, "masks")):
        raise UserError(
            f"output {output} has masks but no classes.parquet, so its model is unknown; choose another --output"
        )
    return False


def _class_table(output: str) -> str:
    return storage.join(output, "classes.parquet")


def outcomes_of(output: str, run_id: str) -> dict[str, int]:
    """Count the images of a run by outcome, from the parts that it wrote: 'ok' or error type -> images."""
    outcomes: Counter[str] = Counter()
    for uri in storage.find(storage.join(output, "masks")):
        if posixpath.basename(uri).startswith(f"part-{run_id}-"):
            kinds = read_table(uri, ["error_type"], MASKS)["error_type"]
            outcomes.update(kind or "ok" for kind in kinds.to_pylist())
    return dict(outcomes)


@dataclass(frozen=True)
class FailedImage:
    """Image of an output that has no labels, and why."""

    image_uri: str
    error_stage: str
    error_type: str
    error_message: str


def first_failures(output: str, names: list[str], most: int) -> list[FailedImage]:
    """Return the first `most` failed images of some parts."""
    columns = [field.name for field in fields(FailedImage)]
    failures: list[FailedImage] = []
    for name in names:
        part = read_table(storage.join(output, "masks", name), columns, MASKS)
        rows = part.filter(pc.is_valid(part["error_type"])).to_pylist()
        failures += [FailedImage(**row) for row in rows]
        if len(failures) >= most:
            break
    return failures[:most]
