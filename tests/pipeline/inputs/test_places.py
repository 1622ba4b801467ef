"""Rows that would lead out of the places that a list may name are refused, each alone."""

import gzip
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.inputs.uris import Names, Resolver
from pipeline.output.schema import image_id
from pipeline.storage.places import canonical, place_prefix
from tests.pipeline.input_samples import errors, listed, uris
from tests.pipeline.samples import write_file

OUTSIDE = [
    "s3://store-of-others/a.jpg",
    "s3://STORE/a.jpg",
    "s3://store2/a.jpg",
    "S3A://other/a.jpg",
    "s3://store/../other/a.jpg",
    "s3://store/a/./b.jpg",
    "s3://store/photos/../../other/a.jpg",
    "../other/a.jpg",
    "./../other/a.jpg",
    "/etc/passwd",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "local:///etc/passwd",
    "gs://store/a.jpg",
    "memory://store/a.jpg",
    "hdfs://evil/a.jpg",
    "ftp://store/a.jpg",
    "http://169.254.169.254/latest/meta-data/a",
    "https://store/a.jpg",
    "http://s3://store/a.jpg",
    "s3://other@store/a.jpg",
    "s3://store\\/a.jpg",
    "s3://ѕtore/a.jpg",  # a Cyrillic s
    "s3://store%2f..%2fother/a.jpg",
]
BAD = ["", "s3://", "s3://store", "s3://store/", "s3:///store/a.jpg", "photos/", "file://etc/passwd", "file://~/x"]
BAD += ["a\0.jpg", "s3://store/" + "a" * 10_000, "https://good.org/\t../x", "https://good.org\\@evil.org/x"]
# They look like a way out, and are names inside the bucket.
INSIDE = {
    "a.jpg": "s3://store/lists/a.jpg",
    ".//./a.jpg": "s3://store/lists/a.jpg",
    "s3a://store/a.jpg": "s3://store/a.jpg",
    "S3://store/a.jpg": "s3://store/a.jpg",
    "s3://store//etc/passwd": "s3://store//etc/passwd",
    "s3://store/%2e%2e/other/a.jpg": "s3://store/%2e%2e/other/a.jpg",
    "s3://store/..a/...jpg": "s3://store/..a/...jpg",
    "simplecache::file:/etc/passwd": "s3://store/lists/simplecache::file:/etc/passwd",
    "169.254.169.254/latest": "s3://store/lists/169.254.169.254/latest",
    "~/a.jpg": "s3://store/lists/~/a.jpg",
    "a\nfile:///etc/passwd": "s3://store/lists/a\nfile:///etc/passwd",
    "s3://store/ü 猫\u0308.jpg": "s3://store/ü 猫\u0308.jpg",
}


def test_a_malicious_manifest_in_a_bucket_gets_nowhere(bucket: str, tmp_path: Path) -> None:
    """And its other rows are listed as if nothing was."""
    name = bucket.removeprefix("s3://")
    rows: list[str | None] = [text.replace("//store/", f"//{name}/") for text in (*INSIDE, *OUTSIDE, *BAD)] + [None]
    pq.write_table(pa.table({"image_uri": rows}), tmp_path / "m.parquet")
    storage.write_bytes(f"{bucket}/lists/m.parquet", (tmp_path / "m.parquet").read_bytes())
    found = listed(manifest=f"{bucket}/lists/m.parquet")
    inside = list(dict.fromkeys(text.replace("//store/", f"//{name}/") for text in INSIDE.values()))
    assert uris(found)[: len(inside)] == inside
    kinds = errors(found)
    assert not set(kinds) & set(inside)
    assert len(kinds) == len(found) - len(inside)
    assert {"NotAllowed", "BadURI"} == set(kinds.values())
    for uri, kind in kinds.items():
        assert kind == "BadURI" or not uri.startswith(bucket + "/") or "/.." in uri or "/./" in uri, uri
        assert (kind == "BadURI") == uri.startswith(f"{bucket}/lists/m.parquet#row="), uri
    assert len(set(found["image_id"].to_pylist())) == len(found)


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_lies_outside_is_not_allowed(text: str) -> None:
    found = resolve(text, ["s3://store"])
    assert found["error_type"] == "NotAllowed"
    assert found["error_stage"] == "list"
    assert found["error_message"]


@pytest.mark.parametrize("text", BAD)
def test_what_names_no_file_is_a_bad_uri_that_its_row_identifies(text: str) -> None:
    found = resolve(text, ["s3://store"])
    assert (found["error_type"], found["image_uri"]) == ("BadURI", "s3://store/lists/m.csv#row=17")


@pytest.mark.parametrize("text", INSIDE)
def test_what_lies_inside_has_one_spelling(text: str) -> None:
    found = resolve(text, ["s3://store"])
    assert (found["image_uri"], found["error_type"]) == (INSIDE[text], None)
    assert canonical(INSIDE[text]) == INSIDE[text]


def resolve(text: str, allowed: list[str]) -> dict[str, str]:
    """Return the outcome of a row, alone and among plain ones."""
    resolver = Resolver(allowed, "s3://store/labels")
    texts = ["s3://store/1.jpg", text, "s3://store/2.jpg"]
    numbers = pa.array([16, 17, 18], pa.int64())
    origin, folder = "s3://store/lists/m.csv#row=", "s3://store/lists"
    _, among, _ = resolver.resolve(Names(pa.array(texts), numbers, origin, folder, {})).to_pylist()
    (alone,) = resolver.resolve(Names(pa.array([text]), numbers[1:2], origin, folder, {})).to_pylist()
    assert alone == among
    return alone


@pytest.mark.parametrize(
    ("text", "allowed", "kind"),
    [
        ("s3://other/photos/a.jpg", "s3://other/photos", None),
        ("s3://other/photos/a.jpg", "s3a://other/photos/", None),
        ("s3://other/photos/a.jpg", "s3://", None),
        ("s3://other/photos-old/a.jpg", "s3://other/photos", "NotAllowed"),
        ("s3://other/photos/../secret/a.jpg", "s3://", "NotAllowed"),
        ("s3://other/photos", "s3://other/photos", None),
        ("/data/a.jpg", "/data", None),
        ("/data/a.jpg", "file:///data/", None),
        ("/data/x/../a.jpg", "/data", None),
        ("/data//a.jpg", "/", None),
        ("/etc/passwd", "file://", None),
        ("/data/../etc/passwd", "/data", "NotAllowed"),
        ("file:///data/..//etc/passwd", "/data", "NotAllowed"),
        ("/data2/a.jpg", "/data", "NotAllowed"),
        ("s3://store/a.jpg", "/data", "NotAllowed"),
        ("https://good.org/a%20b.jpg?x=../..", "https://good.org", None),
        ("https://GOOD.org/a.jpg", "https://good.org/", None),
        ("https://good.org/open/%2e%2e/secret.jpg", "https://good.org/open", "NotAllowed"),
        ("https://good.org/open/..%2fsecret.jpg", "https://good.org/open", "NotAllowed"),
        ("https://good.org.evil.org/a.jpg", "https://good.org", "NotAllowed"),
        ("https://good.org@169.254.169.254/a.jpg", "https://good.org", "BadURI"),
        ("https://good.org:8080/a.jpg", "https://good.org", "NotAllowed"),
        ("http://good.org/a.jpg", "https://good.org", "NotAllowed"),
        ("gcs://photos/a.jpg", "gs://photos", None),
        ("s3://store/labels/masks/x.parquet", "s3://store", "InsideOutput"),
        ("s3://store/labels", "s3://store", "InsideOutput"),
        ("s3://store/labels-old/a.jpg", "s3://store", None),
    ],
)
def test_allow_names_places_to_the_letter(text: str, allowed: str, kind: str | None) -> None:
    assert resolve(text, [allowed])["error_type"] == kind


def test_a_place_is_the_beginning_of_what_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spelling in ("photos", "./photos/", f"{tmp_path}/photos", f"file://{tmp_path}/x/../photos"):
        assert place_prefix(spelling) == f"file://{tmp_path}/photos/"
    assert place_prefix("/") == place_prefix("file:///") == "file:///"


def test_a_local_list_may_name_its_folder_and_what_is_allowed_beside(tmp_path: Path) -> None:
    lines = ["a.jpg", "../b.jpg", str(tmp_path / "photos/c.jpg"), "s3://store/d.jpg"]
    write_file(tmp_path / "lists" / "list.txt", "\n".join(lines).encode())
    given = {"list_file": str(tmp_path / "lists" / "list.txt")}
    every = [f"file://{tmp_path}/{name}" for name in ("lists/a.jpg", "b.jpg", "photos/c.jpg")] + [lines[3]]
    found = listed(**given)
    assert (uris(found), set(errors(found))) == (every, set(every[1:]))
    found = listed(**given, allow=[str(tmp_path / "photos"), "s3://store/"])
    assert (uris(found), set(errors(found))) == (every, set(every[:2]))


def test_an_input_is_allowed_without_saying_so_twice(tmp_path: Path) -> None:
    photo = write_file(tmp_path / "photos" / "a.jpg", b"a")
    write_file(tmp_path / "lists" / "list.txt", f"{photo}\n{photo}x\n/else/b.jpg\n".encode())
    found = listed(list_file=str(tmp_path / "lists" / "list.txt"), input=str(tmp_path / "photos"))
    assert uris(found) == [f"file://{photo}", f"file://{photo}x", "file:///else/b.jpg"]
    assert errors(found) == {"file:///else/b.jpg": "NotAllowed"}


def test_rows_inside_the_output_are_refused_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "list.txt", b"a.jpg\nlabels/masks/part-1.parquet\n")
    found = listed(list_file=str(tmp_path / "list.txt"), output=str(tmp_path / "labels"))
    assert errors(found) == {f"file://{tmp_path}/labels/masks/part-1.parquet": "InsideOutput"}
    assert len(found) == 2


def test_a_row_that_is_bad_is_the_same_row_in_the_next_run(tmp_path: Path) -> None:
    write_file(tmp_path / "m.csv.gz", gzip.compress(b'image_uri,x\n,1\na.jpg,2\n"",3\n'))
    first, again = (listed(manifest=str(tmp_path / "m.csv.gz")) for _ in range(2))
    assert first.equals(again)
    bad = [f"file://{tmp_path}/m.csv.gz#row={n}" for n in (1, 3)]
    assert errors(first) == dict.fromkeys(bad, "BadURI")
    assert first["image_id"].to_pylist()[0] == image_id(bad[0])


PIECES = ["s3://", "s3a://", "S3://", "file://", "https://", "/", "//", ".", "..", "%2e", "\\", "~", "#", "?", "@", ":"]
PIECES += ["store", "data", "other", "labels", "a.jpg", "ü", " ", "\n", "\0", "%2f", "169.254.169.254"]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_row_says_what_is_opened_lies_inside_and_has_one_spelling(seed: int) -> None:
    """Also that looking at all rows of a batch at once decides as looking at each does."""
    choose = random.Random(seed)
    resolver = Resolver(["s3://store", "/data", "https://store/data"], "s3://store/labels")
    texts = ["".join(choose.choices(PIECES, k=choose.randrange(1, 9))) for _ in range(4000)]
    texts += [choose.choice(["s3://store/", "/data/", "https://store/data/"]) + text for text in texts]
    names = Names(pa.array(texts), pa.array(range(len(texts)), pa.int64()), "s3://store/m.csv#row=", "s3://store/x", {})
    accepted = 0
    for text, row in zip(texts, resolver.resolve(names).to_pylist(), strict=True):
        uri = row["image_uri"]
        again = resolver.verdict(uri)
        if row["error_type"] == "BadURI":
            assert uri.startswith("s3://store/m.csv#row=")
            continue
        assert (again.uri, again.kind) == (uri, row["error_type"]), text
        if row["error_type"] is None:
            accepted += 1
            assert f"{uri}/".startswith(("s3://store/", "file:///data/", "https://store/data/")), text
            path = re.split("[?#]", uri)[0] if uri.startswith("https") else uri
            assert not {".", ".."} & set(path.split("/")), text
            assert not uri.startswith("s3://store/labels/")
            assert not uri.endswith("/")
            assert "\0" not in uri
    assert accepted > 500
