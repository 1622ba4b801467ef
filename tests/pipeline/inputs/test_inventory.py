"""S3 Inventories: the objects that there are now, under the names that they have."""

import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs import list_images
from tests.pipeline.input_samples import config, errors, listed, uris

KEYS = ["photos/a.jpg", "photos/a b+c%20.jpg", "photos/ü\n'\"猫,x=1&y.jpg", "z//#?.jpg"]
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"


def row(
    key: str, latest: bool = True, deleted: bool = False, size: int | None = 7, bucket: str = "photos"
) -> list[Any]:
    return [bucket, key, "v1", latest, deleted, size, "2024-05-01T00:00:00.000Z", f"etag-{len(key)}", "STANDARD"]


def _texts(values: list[Any]) -> list[str]:
    return ["" if value is None else str(value).lower() if isinstance(value, bool) else str(value) for value in values]


def csv_file(rows: list[list[Any]]) -> bytes:
    """As Amazon writes it: every value in quotes, no header."""
    lines = []
    for bucket, key, *values in rows:
        texts = [bucket, quote_plus(key, safe="/"), *_texts(values)]
        lines.append(",".join(f'"{text}"' for text in texts))
    return gzip.compress("\n".join(lines).encode())


def parquet_file(rows: list[list[Any]]) -> bytes:
    names = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag"]
    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array(column) for column in zip(*rows, strict=True)][:8], names), buffer)
    return buffer.getvalue()


def write_inventory(
    base: str, data: list[list[list[Any]]], kind: str = "CSV", schema: str = SCHEMA, **changes: Any
) -> str:
    """An inventory under s3-inventory/ of a bucket or folder, laid out as Amazon does; returns its manifest.json."""
    folder = "s3-inventory/photos/daily"
    named = []
    for n, rows in enumerate(data):
        content = csv_file(rows) if kind == "CSV" else parquet_file(rows)
        key = f"{folder}/data/{n}.{'csv.gz' if kind == 'CSV' else 'parquet'}"
        storage.write_bytes(f"{base}/{key}", content)
        named.append({"key": key, "size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()})
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": "1714521600000",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": named,
    } | changes
    uri = f"{base}/{folder}/2024-05-01T01-00Z/manifest.json"
    storage.write_bytes(uri, json.dumps(manifest).encode())
    return uri


def inventoried(uri: str) -> pa.Table:
    """The listing of an inventory, which lies elsewhere than the bucket that it lists."""
    return listed(inventory=uri, allow="s3://photos/")


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_keys_sizes_and_etags_are_taken_as_they_are(bucket: str, kind: str) -> None:
    uri = write_inventory(bucket, [[row(key) for key in KEYS[:2]], [row(key, size=0) for key in KEYS[2:]]], kind)
    found = inventoried(uri)
    assert uris(found) == [f"s3://photos/{key}" for key in KEYS]
    assert found["size_bytes"].to_pylist() == [7, 7, 0, 0]
    assert found["etag"].to_pylist() == [f"etag-{len(key)}" for key in KEYS]
    assert errors(found) == {}


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_only_current_objects_are_images(tmp_path: Path, kind: str) -> None:
    rows = [
        row("new.jpg"),
        row("new.jpg", latest=False),
        row("gone.jpg", deleted=True, size=None),
        row("gone.jpg", latest=False),
        row("folder/", size=0),
    ]
    assert uris(inventoried(write_inventory(str(tmp_path), [rows], kind))) == ["s3://photos/new.jpg"]


def test_an_inventory_of_current_versions_alone_lacks_the_columns_of_versions(tmp_path: Path) -> None:
    content = gzip.compress(b'"photos","a.jpg"\n"photos","b+b.jpg"\n')
    uri = write_inventory(str(tmp_path), [[row("x")]], schema="Bucket, Key")
    data = tmp_path / "s3-inventory/photos/daily/data/0.csv.gz"
    data.write_bytes(content)
    manifest = json.loads(Path(uri).read_text())
    manifest["files"][0]["MD5checksum"] = hashlib.md5(content).hexdigest()
    Path(uri).write_text(json.dumps(manifest))
    found = inventoried(uri)
    assert uris(found) == ["s3://photos/a.jpg", "s3://photos/b b.jpg"]
    assert found["size_bytes"].null_count == found["etag"].null_count == 2


def test_rows_of_another_bucket_are_refused_alone(tmp_path: Path) -> None:
    uri = write_inventory(str(tmp_path), [[row("a.jpg"), row("a.jpg", bucket="secrets"), row("b/../../x/y.jpg")]])
    found = inventoried(uri)
    assert uris(found) == ["s3://photos/a.jpg", "s3://secrets/a.jpg", "s3://photos/b/../../x/y.jpg"]
    assert errors(found) == dict.fromkeys(uris(found)[1:], "NotAllowed")


def test_an_inventory_and_its_data_may_be_copied_elsewhere(tmp_path: Path, bucket: str) -> None:
    """Also where Amazon's manifest names keys with a slash too few, after a prefix that ends in one."""
    uri = write_inventory(str(tmp_path), [[row("a.jpg")]])
    assert uris(inventoried(uri)) == ["s3://photos/a.jpg"]
    in_bucket = write_inventory(f"{bucket}/copy", [[row("a.jpg")]])
    assert uris(inventoried(in_bucket)) == ["s3://photos/a.jpg"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fileFormat": "ORC"}, "data format ORC is not supported"),
        ({"fileFormat": None}, "not the manifest.json of an S3 Inventory"),
        ({"files": [{"key": "x"}]}, "not the manifest.json of an S3 Inventory"),
        ({"files": "none"}, "not the manifest.json of an S3 Inventory"),
        ({"sourceBucket": ""}, "not the manifest.json of an S3 Inventory"),
        ({"fileSchema": "Bucket, Size"}, "fileSchema has no Key column, only Bucket, Size"),
        ({"files": [{"key": "d/lost.csv.gz", "MD5checksum": "00"}]}, "its data file d/lost.csv.gz is missing"),
        ({"files": []}, "lists nothing"),
        ({"files": [{"key": 5, "MD5checksum": "00"}]}, "not the manifest.json of an S3 Inventory"),
        ({"sourceBucket": "arn:aws:s3:::\ud800"}, "not the manifest.json of an S3 Inventory"),
    ],
)
def test_an_inventory_that_cannot_be_read_is_explained(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    uri = write_inventory(str(tmp_path), [[row("a.jpg")]], **changes)
    with pytest.raises(UserError, match=rf"inventory {uri}: {expected}"):
        inventoried(uri)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '"text"', "[" * 100_000])
def test_what_is_no_manifest_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"not the manifest\.json of an S3 Inventory"):
        inventoried(str(tmp_path / "manifest.json"))
    with pytest.raises(UserError, match="not found"):
        inventoried(str(tmp_path / "missing.json"))


def test_a_data_file_that_is_damaged_gives_no_row(tmp_path: Path) -> None:
    uri = write_inventory(str(tmp_path), [[row("a.jpg")]])
    data = tmp_path / "s3-inventory/photos/daily/data/0.csv.gz"
    data.write_bytes(csv_file([row("b.jpg")]))
    with pytest.raises(UserError, match=r"0.csv.gz has the MD5 .* but the manifest lists"):
        inventoried(uri)


def test_a_data_file_of_other_content_is_named_by_its_own_name(tmp_path: Path) -> None:
    uri = write_inventory(str(tmp_path), [[row("a.jpg")]], schema="Bucket, Key")
    with pytest.raises(UserError, match=rf"{tmp_path}/.*/data/0.csv.gz: cannot be read as CSV"):
        inventoried(uri)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("key", pa.array([1])),
        ("key", pa.array([["a.jpg"]])),
        ("bucket", pa.array([{"a": 1}])),
        ("size", pa.array([{"a": 1}])),
        ("size", pa.array(["large"])),
        ("size", pa.array([2**64 - 1], pa.uint64())),
        ("is_latest", pa.array([[True]])),
        ("is_delete_marker", pa.array([1.5])),
        ("e_tag", pa.array([b"\xff"])),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, name: str, column: pa.Array) -> None:
    columns = {"bucket": pa.array(["photos"]), "key": pa.array(["a.jpg"])} | {name: column}
    uri = _inventory_of(tmp_path, pa.table(columns))
    with pytest.raises(UserError, match=rf"0\.parquet: column {name} of type .* cannot be read as "):
        inventoried(uri)


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    uri = _inventory_of(tmp_path, pa.Table.from_arrays([pa.array(["a.jpg"])] * 2, ["key", "key"]))
    with pytest.raises(UserError, match=r"0\.parquet: more than one column is named key"):
        inventoried(uri)
    uri = write_inventory(str(tmp_path), [[row("x")]], schema="Bucket, Key, Key")
    with pytest.raises(
        UserError, match=r"0\.csv\.gz: more than one column is named Key; its columns are Bucket, Key, Key"
    ):
        inventoried(uri)


def _inventory_of(folder: Path, table: pa.Table) -> str:
    """An inventory with this table as its data file."""
    uri = write_inventory(str(folder), [[row("x")]], "Parquet")
    data = folder / "s3-inventory/photos/daily/data/0.parquet"
    pq.write_table(table, data)
    manifest = json.loads(Path(uri).read_text())
    manifest["files"][0]["MD5checksum"] = hashlib.md5(data.read_bytes()).hexdigest()
    Path(uri).write_text(json.dumps(manifest))
    return uri


def test_a_bucket_that_the_manifest_alone_names_has_to_be_allowed(bucket: str, tmp_path: Path) -> None:
    """Whoever can write the manifest could name any bucket that the job may read."""
    for place in (bucket, str(tmp_path)):
        uri = write_inventory(place, [[row("a.jpg")]])
        with pytest.raises(UserError, match=r"lists the bucket 'photos', which is neither .* add --allow s3://photos/"):
            listed(inventory=uri)
    name = bucket.removeprefix("s3://")
    own = write_inventory(bucket, [[row("a.jpg", bucket=name), row("a.jpg")]], sourceBucket=name)
    found = listed(inventory=own)
    assert uris(found) == [f"{bucket}/a.jpg", "s3://photos/a.jpg"]
    assert errors(found) == {"s3://photos/a.jpg": "NotAllowed"}


def test_a_bucket_that_is_an_inputs_need_not_be_allowed(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/new/b.jpg", b"b")
    name = bucket.removeprefix("s3://")
    uri = write_inventory(str(tmp_path), [[row("a.jpg", bucket=name)]], sourceBucket=name)
    assert uris(listed(inventory=uri, input=f"{bucket}/new/")) == [f"{bucket}/new/b.jpg", f"{bucket}/a.jpg"]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_hidden_objects_are_skipped_and_counted(bucket: str, kind: str) -> None:
    keys = [".DS_Store", "a.jpg", "photos/._b.jpg", "photos/b.jpg", "photos/Thumbs.db"]
    uri = write_inventory(bucket, [[row(key) for key in keys]], kind)
    listing = list_images(config(inventory=uri, allow="s3://photos/"))
    assert uris(pa.concat_tables(listing)) == ["s3://photos/a.jpg", "s3://photos/photos/b.jpg"]
    assert listing.num_hidden == 3
    everything = list_images(config("--hidden", inventory=uri, allow="s3://photos/"))
    assert uris(pa.concat_tables(everything)) == [f"s3://photos/{key}" for key in keys]
