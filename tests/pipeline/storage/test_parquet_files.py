"""Parquet files of others: no value of theirs becomes an object that runs something."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.export_masks import tasks
from pipeline.output.parquet import read_table
from pipeline.report import gallery
from pipeline.storage.parquet_files import ExtensionTypeError, open_parquet, read_metadata, require_plain
from pipeline.verify.part_reader import Unusable, read_classes
from tests.pipeline.datasets.test_parquet import complaint, data_config
from tests.pipeline.input_samples import listed
from tests.pipeline.pickled_columns import pickled, pickled_struct, tensors

OBJECT = pickled(Path()).type


def test_the_planted_command_would_run(tmp_path: Path) -> None:
    pickled(tmp_path / "made")[0].as_py()
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "kind",
    [
        OBJECT,
        pa.struct([("x", OBJECT)]),
        pa.list_(OBJECT),
        pa.large_list(OBJECT),
        pa.list_(OBJECT, 2),
        pa.list_view(OBJECT),
        pa.map_(pa.string(), OBJECT),
        pa.map_(OBJECT, pa.string()),
        pa.dictionary(pa.int32(), OBJECT),
        pa.run_end_encoded(pa.int32(), OBJECT),
        pa.sparse_union([pa.field("x", OBJECT)]),
        pa.struct([("x", pa.list_(pa.map_(pa.string(), pa.dictionary(pa.int8(), OBJECT))))]),
    ],
    ids=str,
)
def test_an_extension_type_is_refused_at_any_depth(kind: pa.DataType) -> None:
    with pytest.raises(ExtensionTypeError, match=r"column 'label' has the extension type ray\.data\.arrow_pickled_obj"):
        require_plain(pa.schema([("key", pa.string()), ("label", kind)]))


TENSORS = ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_variable_shaped_tensor"]


def nested(table: pa.Table) -> pa.Table:
    """The same column within others."""
    inner = pa.StructArray.from_arrays([table["label"].combine_chunks()], fields=[table.schema.field("label")])
    return pa.table({"key": ["a"], "label": pa.ListArray.from_arrays([0, 1], inner)})


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_what_a_type_says_of_itself_is_never_unpickled(
    name: str, is_nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data does so as soon as pyarrow opens the file, where a variable of the environment allows it."""
    from ray.data._internal.tensor_extensions import arrow

    monkeypatch.setattr(arrow, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)
    table = tensors(tmp_path / "made", name)
    sink = io.BytesIO()
    pq.write_table(nested(table) if is_nested else table, sink)
    for read in (open_parquet, read_metadata):
        with pytest.raises(ExtensionTypeError, match=rf"column 'label' has the extension type {re.escape(name)}, "):
            read(sink)
    assert not (tmp_path / "made").exists()
    with pytest.raises((ValueError, TypeError)):
        pq.ParquetFile(sink)
    assert (tmp_path / "made").exists() == (
        name != "ray.data.arrow_variable_shaped_tensor"
    )  # whose type it doubts first


@pytest.mark.parametrize("place", [b"ARROW:schema\x18", b"ARROW:schema"])
def test_a_schema_that_cannot_be_found_is_refused(place: bytes, tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(tensors(tmp_path / "made"), sink)
    content = sink.getvalue()
    at = content.rindex(place) + len(place)
    for other in (b"\x28", b"\xff", b"\x00"):
        with pytest.raises(pa.ArrowInvalid, match="its Arrow schema cannot be read"):
            open_parquet(io.BytesIO(content[:at] + other + content[at + 1 :]))
    assert not (tmp_path / "made").exists()


def test_a_footer_of_any_size_is_read(tmp_path: Path) -> None:
    few, many = pa.table({"a": [1]}), pa.table({f"column-{n:05}": [n] for n in range(3000)})
    for table in (few, many):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        assert open_parquet(sink).read().equals(table)
    for content in (b"", b"PAR1", b"PAR1" * 3, sink.getvalue()[:-1], b"x" * 100):
        with pytest.raises(pa.ArrowInvalid):
            open_parquet(io.BytesIO(content))


def test_types_of_parquet_itself_are_what_they_are_stored_as() -> None:
    table = pa.table({"id": pa.array([b"0123456789abcdef"], pa.uuid()), "about": pa.array(["{}"], pa.json_())})
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False)
    read = open_parquet(sink).read().to_pylist()
    assert read == [{"id": b"0123456789abcdef", "about": "{}"}]


def write(folder: Path, name: str, **columns: Any) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def by_a_carried_column(folder: Path, made: Path) -> None:
    label = pa.StructArray.from_arrays([pickled(made)], ["x"])
    manifest = write(folder, "rows.parquet", image_uri=["a.jpg"], label=label)
    listed(manifest=manifest, carry=["label"])


def by_a_manifests_uris(folder: Path, made: Path) -> None:
    listed(manifest=write(folder, "rows.parquet", image_uri=pickled(made)))


def by_a_training_table(folder: Path, made: Path) -> None:
    write(folder, "train.parquet", image=pickled_struct(made), label=[b""])
    raise UserError(complaint(data_config(folder)))


def by_a_part(folder: Path, made: Path) -> None:
    read_table(write(folder, "part.parquet", image_id=pickled(made)), ["image_id"])


def by_the_classes(folder: Path, made: Path) -> None:
    write(folder, "classes.parquet", class_name=pickled(made))
    read_classes(str(folder))


def by_a_masks_column_of_an_export(folder: Path, made: Path) -> None:
    uri = write(folder, "part.parquet", image_uri=["a"], mask=pickled_struct(made))
    list(tasks._read(uri, {"a": "a"}, 1))


def by_a_masks_column_of_a_report(folder: Path, made: Path) -> None:
    gallery._masks_of_part(write(folder, "part.parquet", mask=pickled_struct(made)), [0])


@pytest.mark.parametrize(
    "read",
    [
        by_a_carried_column,
        by_a_manifests_uris,
        by_a_training_table,
        by_a_part,
        by_the_classes,
        by_a_masks_column_of_an_export,
        by_a_masks_column_of_a_report,
    ],
)
def test_every_reader_refuses_pickles_and_names_the_file(read: Callable[[Path, Path], None], tmp_path: Path) -> None:
    with pytest.raises((UserError, Unusable)) as caught:
        read(tmp_path / "files", tmp_path / "made")
    assert "has the extension type ray.data.arrow_pickled_object" in str(caught.value)
    assert ".parquet" in str(caught.value)
    assert not (tmp_path / "made").exists()
