"""Import of published weights into a checkpoint folder."""

import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

import models
from models.weights.importers import Imported, import_weights
from pipeline import storage
from pipeline.checkpoints.checkpoint import code_version, holds_checkpoint, write_checkpoint
from pipeline.errors import UserError


@dataclass(frozen=True)
class ImportSummary:
    """Summary of an import; `written` is False if the output already held the checkpoint."""

    imported: Imported
    model_id: str
    output: str
    written: bool


def import_checkpoint(
    source: str,
    output: str,
    classes: list[str] | None = None,
    bins: tuple[int, ...] | None = None,
    align_corners: bool | None = None,
    ema: bool = False,
) -> ImportSummary:
    """Convert the file `source` to a checkpoint folder at `output`; both are paths or URIs.

    The other arguments are those of `import_weights`.

    Raises: UserError if the source cannot be imported, or if the output holds a different checkpoint.
    """
    with _local_file(source) as path:
        try:
            imported = import_weights(path, classes, bins, align_corners, ema)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error).replace(str(path), source)) from error
    imported.metadata.code_version = code_version()
    model_id = models.model_id(imported.model, imported.metadata)
    written = not holds_checkpoint(output, model_id, imported.metadata)
    # Imports of releases without the mark of untrained heads get it.
    if written or not imported.metadata.has_trained_heads:
        write_checkpoint(output, imported.model, imported.metadata)
    return ImportSummary(imported, model_id, output, written)


def read_classes(text: str) -> list[str]:
    """Return class names from `wall,building,sky`, or from a text file (path or URI) with one name per line.

    Raises: UserError if the file is missing or not text, or if names repeat.
    """
    if "," in text and "://" not in text:
        names = [name.strip() for name in text.split(",")]
        if not all(names):
            raise UserError(f"classes {text!r}: a name is empty; separate the names with single commas")
    else:
        try:
            lines = storage.read_bytes(text).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"classes {text}: not a UTF-8 text file ({error}); put one name on each line") from error
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f"classes {text}: the file is empty; put one name on each line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"classes: names must differ; given more than once: {', '.join(repeated)}")
    return names


@contextmanager
def _local_file(uri: str) -> Iterator[Path]:
    """Yield a local path of the file, with its own name because the suffix determines the format."""
    filesystem, path = storage.open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        local = Path(folder, posixpath.basename(path))
        with storage.explained(uri):
            filesystem.get_file(path, str(local))
        yield local
