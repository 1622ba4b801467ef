"""Datasets in Parquet: bytes or URIs in columns, and the labels that a segmentation has written."""

import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets import Cell, Pair, fingerprint, list_pairs, list_split, load_pair, parquet
from pipeline.errors import UserError
from pipeline.images.codec import encode_mask
from pipeline.output import parts
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, PREDICTED, image_id, masks_and_class_stats, table
from tests.pipeline.samples import encoded, failed, random_image

HEIGHT, WIDTH = 6, 8
NAMES = ["sky", "road", "car"]
PALETTE = np.array([[k, k, k] for k in range(3)], np.uint8)


def data_config(root: Path | str, split: str = "train", **values: Any) -> DataConfig:
    classes = [{"name": name, "color": color} for name, color in zip(NAMES, PALETTE.tolist(), strict=True)]
    given = {"root": str(root), "format": "parquet", "train_split": split, "classes": classes, **values}
    return DataConfig.model_validate(given)


def image(seed: int) -> bytes:
    return encoded(random_image(HEIGHT, WIDTH, seed), "PNG")


def label(*ids: int) -> bytes:
    label_HW = np.full((HEIGHT, WIDTH), ids[-1], np.uint8)
    label_HW[0, : len(ids)] = ids
    return encoded(label_HW, "PNG")


def write(root: Path | str, name: str, columns: dict[str, Any], row_group_size: int = 2) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size)
    storage.write_bytes(f"{root}/{name}", sink.getvalue().to_pybytes())


def assert_row(pair: Pair, data: DataConfig, row: int, first_id: int) -> None:
    image_HW3, label_HW = load_pair(pair, data)
    np.testing.assert_array_equal(image_HW3, random_image(HEIGHT, WIDTH, row))
    assert label_HW[0, 0] == first_id


def complaint(data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        list_pairs(data, data.train_split)
    return str(caught.value)


# Bytes and URIs


def test_rows_of_all_row_groups_are_pairs_in_any_order(tmp_path: Path) -> None:
    rows = range(5)
    write(tmp_path, "train.parquet", {"image": [image(row) for row in rows], "mask": [label(row % 3) for row in rows]})
    data = data_config(tmp_path)
    pairs = list_pairs(data, "train")
    assert [(pair.image.row_group, pair.image.row) for pair in pairs if isinstance(pair.image, Cell)] == [
        *((0, 0), (0, 1), (1, 2), (1, 3), (2, 4))
    ]
    for row in (4, 0, 3, 1, 2):
        assert_row(pairs[row], data, row, row % 3)
    assert pairs[0].files == dict.fromkeys(["image", "annotation"], storage.absolute(f"{tmp_path}/train.parquet"))


def test_structs_of_bytes_and_path_in_a_bucket_of_several_files(bucket: str) -> None:
    """As Hugging Face writes images; a path stands in where there are no bytes."""
    storage.write_bytes(f"{bucket}/set/train/files/3.png", image(3))
    for part in range(2):
        cells = [{"bytes": image(2 * part), "path": "x.png"}, {"bytes": image(2 * part + 1), "path": None}]
        if part == 1:
            cells[1] = {"bytes": None, "path": "files/3.png"}
        masks = [{"bytes": label(1), "path": None}, {"bytes": label(2), "path": None}]
        write(f"{bucket}/set/train", f"{part}.parquet", {"photo": cells, "label": masks})
    data = data_config(f"{bucket}/set", image_column="photo", label_column="label")
    pairs = list_pairs(data, "train")
    assert len(pairs) == 4
    for row, pair in enumerate(pairs):
        assert_row(pickle.loads(pickle.dumps(pair)), data, row, 1 + row % 2)


def test_uris_may_be_whole_or_beside_the_table(tmp_path: Path) -> None:
    for row in range(2):
        (tmp_path / f"{row}.png").write_bytes(image(row))
        (tmp_path / f"label{row}.png").write_bytes(label(row))
    images = ["0.png", f"file://{tmp_path}/1.png"]
    write(tmp_path, "train.parquet", {"image": images, "mask": ["label0.png", "label1.png"]})
    data = data_config(tmp_path)
    pairs = list_pairs(data, "train")
    assert [pair.image_uri for pair in pairs] == [f"file://{tmp_path}/0.png", f"file://{tmp_path}/1.png"]
    for row, pair in enumerate(pairs):
        assert_row(pair, data, row, row)


def test_a_split_may_be_a_uri_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "table.parquet", {"image": [image(0)], "mask": [label(1)]})
    data = data_config(tmp_path / "root", f"file://{tmp_path}/elsewhere/table.parquet")
    (pair,) = list_pairs(data, data.train_split)
    assert_row(pair, data, 0, 1)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())),
        *(pa.dictionary(pa.int8(), pa.large_binary()), pa.binary(len(label(1)))),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
    ],
    ids=str,
)
def test_bytes_may_have_any_type_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    cells: list[Any] = [label(1)] * 3
    if pa.types.is_struct(kind):
        cells = [{"bytes": cell, "path": None} for cell in cells]
    images = [image(row) for row in range(3)]
    # pyarrow cannot split views between row groups.
    write(tmp_path, "train.parquet", {"image": images, "mask": column(cells, kind)}, row_group_size=3)
    data = data_config(tmp_path)
    for row, pair in enumerate(list_pairs(data, "train")):
        assert_row(pair, data, row, 1)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.large_string(), pa.string_view()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    ],
    ids=str,
)
def test_uris_may_have_any_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "0.png").write_bytes(image(0))
    (tmp_path / "label.png").write_bytes(label(2))
    write(tmp_path, "train.parquet", {"image": column(["0.png"], kind), "mask": column(["label.png"], kind)})
    data = data_config(tmp_path)
    (pair,) = list_pairs(data, "train")
    assert_row(pair, data, 0, 2)


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.DictionaryType):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("root", ["set", "set [1]"])
def test_a_split_may_be_a_glob_of_shards_beside_those_of_other_splits(tmp_path: Path, root: str) -> None:
    for split, ids in (("train", (1, 2)), ("validation", (0,))):
        for shard, first_id in enumerate(ids):
            name = f"data/{split}-{shard:05d}-of-{len(ids):05d}.parquet"
            write(tmp_path / root, name, {"image": [image(shard)], "mask": [label(first_id)]})
    data = data_config(tmp_path / root)
    pairs = list_pairs(data, "data/train-*-of-*.parquet")
    assert len(pairs) == 2
    for shard, pair in enumerate(pairs):
        assert_row(pair, data, shard, 1 + shard)
    (pair,) = list_pairs(data, f"{tmp_path.as_uri()}/*/data/validation-*.parquet")
    assert_row(pair, data, 0, 0)


def test_a_glob_of_shards_in_a_bucket_is_matched(bucket: str) -> None:
    write(f"{bucket}/set", "data/train-00000-of-00001.parquet", {"image": [image(0)], "mask": [label(1)]})
    data = data_config(f"{bucket}/set")
    (pair,) = list_pairs(data, "data/train-*-of-*.parquet")
    assert_row(pair, data, 0, 1)


def test_a_glob_that_matches_no_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "data/train-00000-of-00001.parquet", {"image": [image(0)], "mask": [label(1)]})
    message = complaint(data_config(tmp_path, "data/test-*-of-*.parquet"))
    assert f"{tmp_path}/data/test-*-of-*.parquet: found no Parquet file that matches this pattern" in message


def test_a_bad_row_is_named_by_file_and_row(tmp_path: Path) -> None:
    cells = {
        "image": [image(0), image(1), b"no image"],
        "mask": [label(9), encoded(np.zeros((2, 2), np.uint8), "PNG"), label(0)],
    }
    write(tmp_path, "train.parquet", cells)
    data = data_config(tmp_path)
    at = f"file://{tmp_path}/train.parquet#row="
    for pair, told in zip(
        list_pairs(data, "train"),
        [
            f"annotation {at}0&column=mask: label id(s) 9",
            f"annotation {at}1&column=mask is 2 x 2",
            f"image {at}2&column=image: not a known image format",
        ],
        strict=True,
    ):
        with pytest.raises(UserError) as caught:
            load_pair(pair, data)
        assert str(caught.value).startswith(told)


def test_null_cells_are_told(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", {"image": ["a.png", None, "b.png"], "mask": ["a.png", "b.png", None]})
    findings = list_split(data_config(tmp_path), "train").findings
    assert [(finding.kind, finding.where[-5:]) for finding in findings] == [
        ("missing image", "row=1"),
        ("missing annotation", "row=2"),
    ]
    write(tmp_path, "bytes.parquet", {"image": pa.array([None], pa.binary()), "mask": [label(0)]})
    data = data_config(tmp_path, "bytes")
    with pytest.raises(UserError, match=r"bytes\.parquet#row=0&column=image: the cell is null"):
        load_pair(list_pairs(data, "bytes")[0], data)


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    assert "found no Parquet file here or at this path with .parquet" in complaint(data)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but no more")
    assert "train.parquet: cannot be read as Parquet" in complaint(data)
    write(tmp_path, "train.parquet", {"picture": [b""], "mask": [b""]})
    assert (
        "column 'image' is missing; set data.image_column and data.label_column to columns of this table: picture, mask"
        in complaint(data)
    )
    write(tmp_path, "train.parquet", {"image": [1.5], "mask": [b""]})
    assert "column 'image' has type double; it must hold image files" in complaint(data)


def test_images_and_annotations_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    small, large = image(0), encoded(random_image(HEIGHT + 1, WIDTH, 0), "PNG")
    wide = encoded(np.zeros((HEIGHT, WIDTH + 1), np.uint8), "PNG")
    write(tmp_path, "train.parquet", {"image": [small, large, small], "mask": [label(0), label(0), wide]})
    data = data_config(tmp_path, max_pixels=HEIGHT * WIDTH)
    good, *bad = list_pairs(data, "train")
    load_pair(good, data)
    for pair, what, pixels in zip(bad, ("image", "annotation"), (56, 54), strict=True):
        with pytest.raises(UserError, match=rf"^{what} .* is {pixels} pixels; the limit is 48"):
            load_pair(pair, data)


def test_few_row_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = range(6)
    write(tmp_path, "train.parquet", {"image": [image(row) for row in rows], "mask": ["m.png"] * 6}, row_group_size=1)
    cache = parquet._RowGroups()
    monkeypatch.setattr(parquet, "_row_groups", cache)
    monkeypatch.setattr(parquet, "CACHED_BYTES", 2 * len(image(0)) + 64)
    for pair in list_pairs(data_config(tmp_path), "train"):
        assert isinstance(pair.image, Cell)
        assert parquet.read_cell(pair.image) == image(pair.image.row)
    assert [row_group for _, row_group, _ in cache._columns] == [4, 5]


def test_the_fingerprint_of_a_table_changes_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", {"image": [image(0)], "mask": [label(0)]})
    before = fingerprint(list_pairs(data_config(tmp_path), "train"))
    write(tmp_path, "train.parquet", {"image": [image(0) + b"more"], "mask": [label(0)]})
    assert fingerprint(list_pairs(data_config(tmp_path), "train")) != before


# The output of a segmentation


def write_output(root: Path | str, confidences: dict[str, list[float]]) -> str:
    """An output whose images hold sky, road and car in three bands, with these mean confidences; and one failure."""
    ids_HW = np.repeat(np.arange(3, dtype=np.uint8), 2)[:, None].repeat(WIDTH, 1)
    rows = []
    for name, of_classes in confidences.items():
        uri = f"{storage.absolute(str(root))}/photos/{name}.png"
        storage.write_bytes(uri, image(0))
        classes = [
            {
                **{"class_id": k, "pixel_count": 2 * WIDTH, "pixel_fraction": 1 / 3, "mean_confidence": confidence},
                **{"x_min": 0, "y_min": 2 * k, "x_max": WIDTH, "y_max": 2 * k + 2},
            }
            for k, confidence in enumerate(of_classes)
        ]
        identity = {"image_id": image_id(uri), "image_uri": uri, "width": WIDTH, "height": HEIGHT}
        mask = {"bytes": encode_mask(ids_HW, PALETTE), "path": "mask.png"}
        rows.append({**identity, "mask": mask, "classes": classes})
    rows.append(failed("s3://photos/broken.jpg"))
    output = f"{root}/labels"
    masks, class_stats = masks_and_class_stats(table(rows, PREDICTED), NAMES, "model", "run", datetime.now(UTC))
    parts.write_part(output, parts.part_name("run", masks), masks, class_stats)
    colors = [dict(zip(("red", "green", "blue"), color, strict=True)) for color in PALETTE.tolist()]
    classes = [{"class_id": k, "class_name": NAMES[k], **color} for k, color in enumerate(colors)]
    write_table(f"{output}/classes.parquet", table(classes, CLASSES))
    return output


def bands(pair: Pair, data: DataConfig) -> list[int]:
    """The class id of each band."""
    _, label_HW = load_pair(pair, data)
    assert (label_HW == label_HW[:, :1]).all()
    return label_HW[::2, 0].tolist()


@pytest.mark.parametrize("place", ["labels", "labels/masks", "labels/"])
def test_a_labelled_bucket_trains_the_next_model(bucket: str, place: str) -> None:
    write_output(bucket, {"a": [0.9, 0.9, 0.9], "b": [0.2, 0.9, 0.9]})
    data = data_config(bucket, place)
    pairs = list_pairs(data, data.train_split)
    assert [pair.image_uri.rpartition("/")[2] for pair in pairs] == ["a.png", "b.png"], "the failure is no pair"
    assert [bands(pair, data) for pair in pairs] == [[0, 1, 2], [0, 1, 2]]


def test_classes_below_the_confidence_are_ignored_image_by_image(tmp_path: Path) -> None:
    write_output(tmp_path, {"a": [0.9, 0.49, 0.5], "b": [0.2, 0.9, 0.9], "c": [0.1, 0.1, 0.1]})
    data = data_config(tmp_path, "labels", min_confidence=0.5, label_map={0: 1})
    pairs = list_pairs(data, data.train_split)
    assert [bands(pair, data) for pair in pairs] == [[1, 255, 2], [255, 1, 2]], "c, of which nothing is left, is out"
    assert fingerprint(pairs) != fingerprint(list_pairs(data_config(tmp_path, "labels"), "labels"))


def test_labels_of_other_classes_are_refused_until_they_are_mapped(tmp_path: Path) -> None:
    write_output(tmp_path, {"a": [0.9, 0.9, 0.9]})
    others = [{"name": name, "color": [9, 9, 9]} for name in ("sky", "car")]
    told = complaint(data_config(tmp_path, "labels", classes=others))
    assert (
        "1 is 'road' in the masks but 'car' in data.classes; 2 is 'car' in the masks but 'no class' in data.classes"
        in told
    )
    data = data_config(tmp_path, "labels", classes=others, label_map={1: 255, 2: 1})
    (pair,) = list_pairs(data, "labels")
    assert bands(pair, data) == [0, 255, 1]


def test_a_confidence_needs_a_table_that_knows_it(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", {"image": [image(0)], "mask": [label(0)]})
    assert "was not written by segment_bucket.py" in complaint(data_config(tmp_path, min_confidence=0.5))
    output = write_output(tmp_path, {"a": [0.9, 0.9, 0.9]})
    for statistics in Path(output, "class_stats").iterdir():
        statistics.unlink()
    assert "class_stats/part-" in complaint(data_config(tmp_path, "labels", min_confidence=0.5))
