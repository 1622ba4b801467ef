"""Parquet files with values that run a command when they are turned into Python objects."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType  # which `import ray.data` registers


class _Command:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return open, (str(self.made), "w")


def pickled(made: Path, count: int = 1) -> pa.ExtensionArray:
    """Return `count` pickles, each of which makes the file `made`, in an Arrow type that unpickles its values."""
    content = pa.array([pickle.dumps(_Command(made))] * count, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), content)


def pickled_struct(made: Path) -> pa.StructArray:
    """Return one image file as datasets hold it, whose bytes are such a pickle."""
    return pa.StructArray.from_arrays([pickled(made), pa.array(["a.jpg"])], ["bytes", "path"])


def tensors(made: Path, name: str = "ray.data.arrow_tensor") -> pa.Table:
    """Return a table whose type of tensors says of itself such a pickle, where Ray Data has their shape."""
    about = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(_Command(made))}
    values = pa.array([[1.0, 2.0]], pa.list_(pa.float32()))
    return pa.table([values], schema=pa.schema([pa.field("label", values.type, metadata=about)]))


def add_pickles(file: Path, made: Path) -> None:
    """Add a column of such pickles to a Parquet file."""
    table = pq.read_table(file)
    pq.write_table(table.append_column("planted", pickled(made, len(table))), file)
