"""An output as a whole: whose it is, and what failed in it."""

import posixpath
from collections import Counter

import pyarrow.compute as pc

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.output.parquet import read_table, write_table
from pipeline.output.schema import CLASSES, MASKS, SCHEMA_VERSION, table


def claim_output(output: str, model: Checkpoint) -> None:
    """Write the output's class table, which names its model.

    Raises: UserError for an output of another model, other classes or another schema, or one that cannot be written.
    """
    if is_claimed(output, model):
        return
    rows = [
        {"class_id": k, "class_name": name, "red": red, "green": green, "blue": blue}
        for k, (name, (red, green, blue)) in enumerate(zip(model.class_names, model.metadata.colors, strict=True))
    ]
    # Whose the output is.
    marks = {"sceneparse.model_id": model.model_id, "sceneparse.schema_version": SCHEMA_VERSION}
    write_table(_class_table(output), table(rows, CLASSES.with_metadata(marks)))


def is_begun(output: str) -> bool:
    """Whether a run has ever written to the output."""
    return storage.exists(_class_table(output))


def is_claimed(output: str, model: Checkpoint) -> bool:
    """Whether the output has its class table; raises UserError where it is not this model's."""
    uri = _class_table(output)
    if storage.exists(uri):
        existing = read_table(uri, schema=CLASSES)
        found = {key.decode(): value.decode() for key, value in (existing.schema.metadata or {}).items()}
        version, model_id = found.get("sceneparse.schema_version"), found.get("sceneparse.model_id")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"output {output} has table schema version {version}, this program writes {SCHEMA_VERSION}; choose "
                "another --output, or go on with the version of this program that began it"
            )
        if model_id != model.model_id:
            raise UserError(
                f"output {output} belongs to another model ({model_id}, this one is {model.model_id}); an output holds "
                "one model with one preprocessing: choose another --output, or use that checkpoint"
            )
        if existing["class_name"].to_pylist() != model.class_names:
            raise UserError(
                f"output {output} names its classes {existing['class_name'].to_pylist()}, the checkpoint "
                f"{model.class_names}; choose another --output, or use a checkpoint of those classes"
            )
        return True
    if storage.find(storage.join(output, "masks")):
        raise UserError(f"output {output} has masks but no classes.parquet, so its model is unknown; choose another")
    return False


def _class_table(output: str) -> str:
    return storage.join(output, "classes.parquet")


def outcomes_of(output: str, run_id: str) -> dict[str, int]:
    """How many images of a run ended how, by the parts that it has written: 'ok' or a kind of failure -> images."""
    outcomes: Counter[str] = Counter()
    for uri in storage.find(storage.join(output, "masks")):
        if posixpath.basename(uri).startswith(f"part-{run_id}-"):
            kinds = read_table(uri, ["error_type"], MASKS)["error_type"]
            outcomes.update(kind or "ok" for kind in kinds.to_pylist())
    return dict(outcomes)


def first_failures(output: str, names: list[str], most: int) -> list[dict[str, str]]:
    """The first failed images of some parts: image_uri, error_stage, error_type, error_message."""
    columns = ["image_uri", "error_stage", "error_type", "error_message"]
    failures: list[dict[str, str]] = []
    for name in names:
        part = read_table(storage.join(output, "masks", name), columns, MASKS)
        failures += part.filter(pc.is_valid(part["error_type"])).to_pylist()
        if len(failures) >= most:
            break
    return failures[:most]
