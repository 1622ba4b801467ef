"""Lists and manifests: every row becomes an image or says why not, from files of every kind."""

import datetime
import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs import table_files
from pipeline.output.schema import image_id
from tests.pipeline.input_samples import config, errors, listed, uris
from tests.pipeline.samples import write_file


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def carried(**options: Any) -> dict[str, dict[str, str] | None]:
    rows = listed(**options).to_pylist()
    return {row["image_uri"]: None if row["carried"] is None else _as_dict(row["carried"]) for row in rows}


def _as_dict(entries: list[dict[str, str]]) -> dict[str, str]:
    found = {entry["key"]: entry["value"] for entry in entries}
    assert len(found) == len(entries)
    return found


# Lists


def test_a_list_names_an_image_on_each_line_relative_to_its_folder(tmp_path: Path) -> None:
    text = f"\ufeff# photos of May\r\na.jpg\r\n\r\n   \n./b c.jpg\nsub/../d.jpg\n{tmp_path}/e.jpg\nfile://{tmp_path}/ü#1.jpg\n"
    write_file(tmp_path / "list.txt", text.encode())
    found = listed(list_file=str(tmp_path / "list.txt"))
    assert uris(found) == [f"file://{tmp_path}/{name}" for name in ("a.jpg", "b c.jpg", "d.jpg", "e.jpg", "ü#1.jpg")]
    assert errors(found) == {}
    assert found["image_id"].to_pylist() == [image_id(uri) for uri in uris(found)]
    assert found["carried"].null_count == len(found)


def test_the_last_line_needs_no_end_and_a_list_may_be_gzipped(tmp_path: Path) -> None:
    write_file(tmp_path / "list.txt.gz", gzip.compress(b"a.jpg\nb.jpg"))
    assert len(listed(list_file=str(tmp_path / "list.txt.gz"))) == 2


def test_lines_that_straddle_the_blocks_of_reading_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inputs.list_files.BYTES", 64)
    names = [f"{'ä' * (n % 23)}{n}.jpg" for n in range(1000)]
    write_file(tmp_path / "list.txt", "\n".join(names).encode())
    assert uris(listed(list_file=str(tmp_path / "list.txt"))) == [f"file://{tmp_path}/{name}" for name in names]


def test_a_list_in_a_bucket_names_objects_of_the_bucket(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/lists/may.txt", f"a.jpg\n{bucket}/photos/b.jpg\ns3a{bucket[2:]}/c.jpg\n".encode())
    found = listed(list_file=f"{bucket}/lists/may.txt")
    assert uris(found) == [f"{bucket}/{name}" for name in ("lists/a.jpg", "photos/b.jpg", "c.jpg")]
    assert errors(found) == {}


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# nothing\n"])
def test_a_list_without_names_is_refused(tmp_path: Path, text: bytes) -> None:
    write_file(tmp_path / "list.txt", text)
    with pytest.raises(UserError, match=r"list_file .*list.txt: contains no image URIs"):
        listed(list_file=str(tmp_path / "list.txt"))


UTF_16 = ["utf-16", "utf-16-le", "utf-16-be"]  # the first with a byte order mark


@pytest.mark.parametrize("encoding", UTF_16)
def test_a_csv_manifest_in_utf16_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    write_file(tmp_path / "m.csv", "image_uri\na.jpg\n".encode(encoding))
    with pytest.raises(UserError, match=r"m.csv: the file is encoded as UTF-16; save it as UTF-8"):
        listed(manifest=str(tmp_path / "m.csv"))


def test_a_list_names_hidden_images_explicitly(tmp_path: Path) -> None:
    write_file(tmp_path / "list.txt", b"._a.jpg\n")
    assert uris(listed(list_file=str(tmp_path / "list.txt"))) == [f"file://{tmp_path}/._a.jpg"]


def test_a_list_in_utf16_is_refused_and_one_in_latin1_has_a_row_for_each_bad_line(tmp_path: Path) -> None:
    for encoding in UTF_16:
        write_file(tmp_path / "utf16.txt", "a.jpg\n".encode(encoding))
        with pytest.raises(UserError, match=r"utf16.txt: the file is encoded as UTF-16; save it as UTF-8"):
            listed(list_file=str(tmp_path / "utf16.txt"))
    write_file(tmp_path / "latin1.txt", "a.jpg\nü.jpg\n".encode("latin-1"))
    found = listed(list_file=str(tmp_path / "latin1.txt"))
    assert errors(found) == {f"file://{tmp_path}/latin1.txt#line=2": "BadURI"}
    assert len(found) == 2


def test_a_file_without_lines_is_no_list(tmp_path: Path) -> None:
    write_file(tmp_path / "image.jpg", b"\xff\xd8" * (1 << 20))
    with pytest.raises(UserError, match="check that this is a list of URIs"):
        listed(list_file=str(tmp_path / "image.jpg"))


# Manifests


ROWS = {"image_uri": ["/data/a.jpg", '/data/b,\n"c".jpg', "/data/d.jpg"], "label": ["x", None, "z"], "n": [1, 2, 3]}
CSV = b'n,image_uri,label\n1,/data/a.jpg,x\n2,"/data/b,\n""c"".jpg",\n3,/data/d.jpg,z\n'


@pytest.mark.parametrize("kind", ["m.parquet", "m.csv", "m.csv.gz", "m.PARQUET"])
def test_parquet_and_csv_manifests_say_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if "csv" in kind:
        write_file(path, gzip.compress(CSV) if kind.endswith("gz") else CSV)
    else:
        parquet(path, ROWS)
    assert carried(manifest=str(path), allow="/data", carry=["label", "n"]) == {
        "file:///data/a.jpg": {"label": "x", "n": "1"},
        'file:///data/b,\n"c".jpg': {"n": "2"},
        "file:///data/d.jpg": {"label": "z", "n": "3"},
    }


def test_a_row_whose_carried_columns_are_all_null_carries_nothing(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", ROWS)
    found = carried(manifest=path, allow="/data", carry="label")
    assert list(found.values()) == [{"label": "x"}, None, {"label": "z"}]


def test_another_column_can_name_the_images(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", {"image_uri": ["no"], "photo url": [f"{tmp_path}/a.jpg"]})
    assert uris(listed(manifest=path, uri_column="photo url")) == [f"file://{tmp_path}/a.jpg"]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    ],
    ids=str,
)
def test_text_of_every_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array(["a.jpg", None, "", "a.jpg"], pa.string())
    values = values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values.cast(kind)
    found = listed(manifest=parquet(tmp_path / "m.parquet", {"image_uri": values}))
    bad = [f"file://{tmp_path}/m.parquet#row={n}" for n in (2, 3)]
    assert uris(found) == [f"file://{tmp_path}/a.jpg", *bad]
    assert errors(found) == dict.fromkeys(bad, "BadURI")


def test_names_of_one_length_may_be_binary_of_fixed_size(tmp_path: Path) -> None:
    values = pa.array([b"a.jpg", b"b.jpg"], pa.binary(5))
    found = listed(manifest=parquet(tmp_path / "m.parquet", {"image_uri": values}))
    assert uris(found) == [f"file://{tmp_path}/a.jpg", f"file://{tmp_path}/b.jpg"]


@pytest.mark.parametrize("parts", ["folder", "glob", "one by one"])
def test_a_folder_of_parts_is_one_manifest(tmp_path: Path, parts: str) -> None:
    """As Spark writes them, with a marker, checksums and a folder for each value of a column."""
    folder = tmp_path / "manifest.parquet"
    files = [
        parquet(folder / f"day={day}" / "part-0.snappy.parquet", {"image_uri": [f"{folder}/{day}.jpg"]}) for day in "ab"
    ]
    write_file(folder / "_SUCCESS", b"")
    write_file(folder / "day=a" / ".part-0.snappy.parquet.crc", b"x")
    given = {"folder": str(folder), "glob": f"{folder}/**/*.parquet", "one by one": files}[parts]
    found = listed(manifest=given, allow=str(folder))
    assert uris(found) == [f"file://{folder}/{day}.jpg" for day in "ab"]
    assert errors(found) == {}


def test_a_manifest_in_a_bucket_is_read_from_there(bucket: str, tmp_path: Path) -> None:
    content = Path(
        parquet(tmp_path / "m.parquet", {"image_uri": ["photos/a b%20+.jpg", f"{bucket}/c.jpg"]})
    ).read_bytes()
    storage.write_bytes(f"{bucket}/m.parquet", content)
    storage.write_bytes(f"{bucket}/m.csv.gz", gzip.compress(b"image_uri\nd.jpg\n"))
    found = listed(manifest=[f"{bucket}/m.parquet", f"{bucket}/m.csv.gz"])
    assert uris(found) == [f"{bucket}/{name}" for name in ("photos/a b%20+.jpg", "c.jpg", "d.jpg")]
    assert errors(found) == {}
    with pytest.raises(UserError, match=r"manifest .*nothing.parquet: no files found"):
        listed(manifest=f"{bucket}/nothing.parquet")


def test_a_large_manifest_comes_in_small_tables_in_order(tmp_path: Path) -> None:
    names = [f"{n:06}.jpg" for n in range(25_000)]
    path = parquet(tmp_path / "m.parquet", {"image_uri": names}, row_group_size=7_000)
    write_file(tmp_path / "m.csv", "\n".join(["image_uri", *names]).encode())
    expected = [f"file://{tmp_path}/{name}" for name in names]
    assert uris(listed(manifest=path)) == expected
    assert uris(listed(manifest=str(tmp_path / "m.csv"))) == expected


VALUES = {
    "text": (pa.array(['Grüße, "ja"\n']), 'Grüße, "ja"\n'),
    "empty": (pa.array([""]), ""),
    "integer": (pa.array([2**62]), "4611686018427387904"),
    "float": (pa.array([0.1]), "0.1"),
    "truth": (pa.array([True]), "true"),
    "decimal": (pa.array([Decimal("1.10")]), "1.10"),
    "date": (pa.array([datetime.date(2024, 5, 1)]), "2024-05-01"),
    "time": (pa.array([datetime.datetime(2024, 5, 1, 12, 30)], pa.timestamp("ms")), "2024-05-01 12:30:00.000"),
    "utc": (pa.array([datetime.datetime(2024, 5, 1)], pa.timestamp("s", "UTC")), "2024-05-01 00:00:00.000Z"),
    "bytes": (pa.array([b"\x00\xff"]), "00ff"),
    "fixed": (pa.array([b"\x01\x02"], pa.binary(2)), "0102"),
    "list": (pa.array([[1, None]]), "[1, null]"),
    "struct": (pa.array([{"a": "ü", "b": [datetime.date(2024, 5, 1)]}]), '{"a": "ü", "b": ["2024-05-01"]}'),
    "category": (pa.array(["cat"]).dictionary_encode(), "cat"),
    "not utf-8": (pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers()), "a\ufffd"),
}


def test_values_of_every_type_are_carried_as_text(tmp_path: Path) -> None:
    columns = {"image_uri": ["a.jpg"], **{name: values for name, (values, _) in VALUES.items()}}
    path = parquet(tmp_path / "m.parquet", columns)
    (found,) = carried(manifest=path, carry=list(VALUES)).values()
    assert found == {name: text for name, (_, text) in VALUES.items()}


def test_only_the_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    """A manifest may hold the images themselves in another column."""
    path = parquet(tmp_path / "m.parquet", {"image_uri": ["a.jpg"], "pixels": [b"pixels"]}, use_dictionary=False)
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content = bytearray(Path(path).read_bytes())
    content[start : start + 20] = b"\xff" * 20  # any reading of it fails
    Path(path).write_bytes(content)
    assert uris(listed(manifest=path)) == [f"file://{tmp_path}/a.jpg"]
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        listed(manifest=path, carry="pixels")


# What cannot be read is explained


@pytest.mark.parametrize("name", ["missing.parquet", "missing.csv", "missing", "missing/*.parquet"])
def test_a_missing_manifest_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"manifest .*missing.*: no files found"):
        listed(manifest=f"{tmp_path}/{name}")


def test_a_missing_list_is_named(tmp_path: Path, bucket: str) -> None:
    for uri in (f"{tmp_path}/missing.txt", f"{bucket}/missing.txt", "s3://no-such-store/missing.txt"):
        with pytest.raises(UserError, match=rf"{uri}: not found"):
            listed(list_file=uri)


@pytest.mark.parametrize("name", ["m.orc", "m.json", "m.txt", "m"])
def test_a_manifest_of_unknown_format_is_refused(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, b"x")
    with pytest.raises(UserError, match=r"unknown format; .*\.parquet"):
        listed(manifest=str(tmp_path / name))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    if ending == "csv":
        write_file(path, b"url,label\na.jpg,x\n")
    else:
        parquet(path, {"url": ["a.jpg"], "label": ["x"]})
    with pytest.raises(UserError, match=r"no column 'image_uri' \(--uri-column\); its columns are 'url', 'label'"):
        listed(manifest=str(path))
    with pytest.raises(UserError, match=r"no column 'labels' \(--carry\); its columns are 'url', 'label'"):
        listed(manifest=str(path), uri_column="url", carry="labels")


def test_a_column_of_numbers_names_no_images(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", {"image_uri": [1, 2]})
    with pytest.raises(UserError, match="has type int64, not text"):
        listed(manifest=path)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    if ending == "csv":
        write_file(path, b"image_uri,label,image_uri\na.jpg,x,b.jpg\n")
    else:
        columns = [pa.array([text]) for text in ("a.jpg", "x", "b.jpg")]
        pq.write_table(pa.Table.from_arrays(columns, ["image_uri", "label", "image_uri"]), path)
    with pytest.raises(UserError, match=rf"m.{ending}: more than one column is named 'image_uri'; rename"):
        listed(manifest=str(path))


def test_a_header_in_another_encoding_is_explained(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.csv", "image_uri,größe\na.jpg,7\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"m\.csv: column names are not valid UTF-8"):
        listed(manifest=str(path))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            pa.array([{"t": 2**62}, {"t": 0}], pa.struct([("t", pa.timestamp("us"))])),
            "<value out of range: 4611686018427387904>",
        ),
        (pa.array([[2**62], [0]], pa.list_(pa.duration("s"))), "4611686018427387904"),
        (pa.array([0, 1], pa.timestamp("s", "Nowhere/Land")), "1970-01-01 00:00:00.000Z"),
    ],
    ids=["year", "duration", "zone"],
)
def test_a_value_that_has_no_text_is_carried_as_arrow_shows_it(tmp_path: Path, values: pa.Array, text: str) -> None:
    """It may stand in the last of a hundred million rows, which must not end the run."""
    path = parquet(tmp_path / "m.parquet", {"image_uri": ["a.jpg", "b.jpg"], "taken": values})
    first, second = carried(manifest=path, carry="taken").values()
    assert first
    assert second
    assert text in first["taken"]
    assert text not in second["taken"]


BROKEN = {
    "empty.parquet": b"",
    "text.parquet": b"image_uri\na.jpg\n",
    "cut.parquet": None,
    "empty.csv": b"",
    "cells.csv": b"image_uri,label\na.jpg,x\nb.jpg\n",
    "plain.csv.gz": b"image_uri\na.jpg\n",
    "cut.csv.gz": gzip.compress(b"image_uri\n" + b"".join(b"%x.jpg\n" % (n**5) for n in range(50_000)))[:-2000],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_named(tmp_path: Path, name: str) -> None:
    content = BROKEN[name]
    if content is None:
        content = Path(parquet(tmp_path / "whole.parquet", {"image_uri": ["a.jpg"] * 1000})).read_bytes()[:-30]
    write_file(tmp_path / name, content)
    kind = "Parquet" if name.endswith("parquet") else "CSV"
    with pytest.raises(UserError, match=rf"{name}: cannot be read as {kind}"):
        listed(manifest=str(tmp_path / name))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_manifest_without_rows_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    if ending == "csv":
        write_file(path, b"image_uri\n")
    else:
        parquet(path, {"image_uri": pa.array([], pa.string())})
    with pytest.raises(UserError, match=rf"manifest .*m.{ending}: has no rows"):
        listed(manifest=str(path))


def test_what_is_wrong_with_any_source_is_known_before_the_first_table(tmp_path: Path) -> None:
    """A run of a day should not end at its second manifest."""
    from pipeline.inputs import list_images

    good = parquet(tmp_path / "good.parquet", {"image_uri": ["a.jpg"]})
    bad = parquet(tmp_path / "bad.parquet", {"uri": ["a.jpg"]})
    with pytest.raises(UserError, match="no column 'image_uri'"):
        list_images(config(manifest=[good, bad]))


def test_a_small_file_that_unfolds_to_much_comes_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second row has the same 10 kB, which the file holds once."""
    monkeypatch.setattr("pipeline.inputs.table_files.PIECE", 100_000)
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 1000), ["a" * 10_000, "b.jpg"])
    path = parquet(tmp_path / "m.parquet", {"image_uri": texts, "n": list(range(2000))})
    assert Path(path).stat().st_size < 20_000
    batches = list(table_files.read(path, ["n", "image_uri"], {}))
    assert 100 < len(batches) < 110
    assert [n for batch in batches for n in batch.column("n").to_pylist()] == list(range(2000))
    assert pa.types.is_string(batches[0].column("image_uri").type)
    assert list(errors(listed(manifest=path)).values()) == ["BadURI"] * 1000


def test_batches_of_a_large_csv_file_are_small(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.csv", b"a\n" * 50_000)
    assert {batch.num_rows for batch in table_files.read(str(path), ["a"], {})} <= set(range(1, 10_001))
