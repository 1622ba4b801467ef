"""Parquet files of others: no value of theirs becomes an object that runs something."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import parts
from pipeline.errors import UserError
from pipeline.mask_export import tasks
from pipeline.parquet_files import ExtensionTypeError, open_parquet, require_plain
from pipeline.part_reading import Unusable, read_classes
from pipeline.report import gallery
from tests.pipeline.input_samples import listed
from tests.pipeline.pickled_columns import pickled, pickled_struct
from tests.pipeline.test_datasets_tables import complaint, data_config

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
    parts.read_table(write(folder, "part.parquet", image_id=pickled(made)), ["image_id"])


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
