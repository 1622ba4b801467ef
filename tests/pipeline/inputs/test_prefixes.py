"""Images under prefixes and globs: every file, none twice, and never a run's own output."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs

from pipeline import inputs, storage
from pipeline.errors import UserError
from pipeline.inputs import check_no_output_inside_input
from pipeline.output.schema import LISTED, image_id
from tests.pipeline.input_samples import config, listed, uris
from tests.pipeline.samples import write_file


def list_images(uri: str) -> pa.Table:
    return listed(input=uri)


@pytest.fixture(scope="module", params=["local", "swift"])
def photos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prefix with five files at two levels, and a neighbour that shares the beginning of its name."""
    base = f"file://{tmp_path_factory.mktemp('manifest')}"
    if request.param == "swift":
        request.getfixturevalue("swift")
        s3fs.S3FileSystem().mkdir("manifest")
        base = "s3://manifest"
    for name in ("b.jpg", "a.jpg", "a.png", "deeper/c.jpg", "deeper/notes.txt"):
        storage.write_bytes(f"{base}/photos/{name}", name.encode())
    storage.write_bytes(f"{base}/photos-old/z.jpg", b"z")
    return f"{base}/photos"


def test_a_prefix_lists_every_file_below_it_once_in_name_order(photos: str) -> None:
    names = ["a.jpg", "a.png", "b.jpg", "deeper/c.jpg", "deeper/notes.txt"]
    assert uris(list_images(photos)) == [f"{photos}/{name}" for name in names]


def test_a_prefix_with_and_without_a_slash_is_the_same(photos: str) -> None:
    """Image ids come from the names: another spelling must not make other images of them."""
    assert list_images(photos + "/").equals(list_images(photos))


def test_a_single_file_is_listed_alone(photos: str) -> None:
    assert uris(list_images(f"{photos}/deeper/c.jpg")) == [f"{photos}/deeper/c.jpg"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "deeper/c.jpg"]),
        ("*/c.jpg", ["deeper/c.jpg"]),
        ("?.png", ["a.png"]),
        ("[b-z].jpg", ["b.jpg"]),
        ("*", ["a.jpg", "a.png", "b.jpg"]),
    ],
)
def test_a_glob_lists_its_matches_with_the_names_that_a_prefix_gives_them(
    photos: str, pattern: str, names: list[str]
) -> None:
    found = list_images(f"{photos}/{pattern}")
    assert uris(found) == [f"{photos}/{name}" for name in names]
    everything = list_images(photos)
    assert found.equals(everything.filter(pa.array([uri in uris(found) for uri in uris(everything)])))


def test_rows_have_the_schema_the_size_and_the_id(photos: str) -> None:
    found = list_images(photos)
    assert found.schema.equals(LISTED, check_metadata=True)
    for row in found.to_pylist():
        assert row["image_id"] == image_id(row["image_uri"])
        assert row["size_bytes"] == len(row["image_uri"].removeprefix(photos + "/"))


@pytest.mark.parametrize("pattern", ["", "/*.jpg"])
def test_a_buckets_etags_are_kept_without_their_quotes(bucket: str, pattern: str) -> None:
    storage.write_bytes(f"{bucket}/photos/a.jpg", b"content")
    (row,) = list_images(f"{bucket}/photos{pattern}").to_pylist()
    assert row["etag"] == hashlib.md5(b"content").hexdigest()


def test_a_disk_has_no_etags(tmp_path: Path) -> None:
    write_file(tmp_path / "photos" / "a.jpg", b"content")
    assert list_images(str(tmp_path / "photos"))["etag"].to_pylist() == [None]


@pytest.mark.parametrize("end", ["", "/", "/*.gif", "-nowhere", "/deeper/nowhere"])
def test_nothing_there_is_an_error_that_names_the_input(photos: str, end: str) -> None:
    uri = f"{photos}{end}" if end not in ("", "/") else f"{photos}/empty{end}"
    with pytest.raises(UserError, match="no files found; check the prefix or pattern") as caught:
        list_images(uri)
    assert uri in str(caught.value)


def test_a_part_of_a_folders_name_is_no_prefix(photos: str) -> None:
    with pytest.raises(UserError, match="no files found"):
        list_images(photos[:-2])


def test_a_path_relative_to_the_working_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "photos" / "a.jpg", b"a")
    monkeypatch.chdir(tmp_path)
    for spelling in ("photos", "./photos", "photos/", "photos/*.jpg", "other/../photos"):
        assert uris(list_images(spelling)) == [f"file://{tmp_path}/photos/a.jpg"], spelling


def test_markers_of_folders_are_no_images_but_empty_files_are(bucket: str) -> None:
    filesystem = s3fs.S3FileSystem()
    for key, content in (("", b""), ("sub/", b""), ("sub/a.jpg", b"a"), ("empty.jpg", b"")):
        filesystem.pipe_file(f"{bucket}/photos/{key}".removeprefix("s3://"), content)
    names = ["photos/empty.jpg", "photos/sub/a.jpg"]
    assert uris(list_images(f"{bucket}/photos")) == [f"{bucket}/{name}" for name in names]
    assert uris(list_images(bucket)) == [f"{bucket}/{name}" for name in names]
    assert uris(list_images(f"{bucket}/photos/*")) == [f"{bucket}/photos/empty.jpg"]


ODD_NAMES = [
    "100%.jpg",
    "a b .jpg",
    "a#1.jpg",
    "a[1].jpg",
    "no extension",
    "q?.jpg",
    "ü猫🐈.jpg",
    "x*.jpg",
]


@pytest.mark.parametrize("kind", ["local", "swift"])
def test_odd_names_are_kept_as_they_are(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = f"file://{tmp_path}/photos" if kind == "local" else f"{request.getfixturevalue('bucket')}/photos"
    for name in ODD_NAMES:
        storage.write_bytes(f"{base}/{name}", b"x")
    assert uris(list_images(base)) == sorted(f"{base}/{name}" for name in ODD_NAMES)


HIDDEN_NAMES = [".DS_Store", "._a.jpg", "sub/._b.jpg", ".trash/a.jpg", "__MACOSX/a.jpg", "Thumbs.db", "Desktop.ini"]
VISIBLE_NAMES = ["a.jpg", "my.ini.jpg", "notes.txt", "sub/b.jpg", "sub/thumbs.db.png"]


@pytest.mark.parametrize("kind", ["local", "swift"])
def test_hidden_files_are_skipped_and_counted(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = f"file://{tmp_path}/.photos" if kind == "local" else f"{request.getfixturevalue('bucket')}/.photos"
    for name in HIDDEN_NAMES + VISIBLE_NAMES:
        storage.write_bytes(f"{base}/{name}", b"x")
    for pattern in (base, f"{base}/**"):
        listing = inputs.list_images(config(input=pattern))
        assert uris(pa.concat_tables(listing)) == [f"{base}/{name}" for name in VISIBLE_NAMES]
        assert listing.num_hidden == len(HIDDEN_NAMES)
        everything = inputs.list_images(config("--hidden", input=pattern))
        assert uris(pa.concat_tables(everything)) == sorted(f"{base}/{name}" for name in HIDDEN_NAMES + VISIBLE_NAMES)
        assert everything.num_hidden == 0
    assert uris(list_images(f"{base}/._a.jpg")) == [f"{base}/._a.jpg"]  # named explicitly


def test_an_input_of_hidden_files_alone_names_the_option_that_includes_them(tmp_path: Path) -> None:
    write_file(tmp_path / ".DS_Store", b"x")
    with pytest.raises(UserError, match=rf"input {tmp_path.as_uri()}: its 1 files are all hidden; --hidden includes"):
        list_images(tmp_path.as_uri())


def test_a_link_to_an_image_is_an_image_for_a_prefix_and_for_a_glob(tmp_path: Path) -> None:
    """Local datasets are often folders of links; a glob once left all of them out."""
    write_file(tmp_path / "store" / "a.jpg", b"a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "store" / "a.jpg")
    for spelling in ("photos", "photos/*.jpg"):
        assert uris(list_images(f"{tmp_path}/{spelling}")) == [f"file://{tmp_path}/photos/link.jpg"]


def test_a_name_that_is_no_text_is_explained(tmp_path: Path) -> None:
    """Parquet holds UTF-8 alone, so such a file cannot have a row."""
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="UTF-8"):
        list_images(str(tmp_path))


@pytest.mark.parametrize("uri", ["s3://no-such-store", "s3://no-such-store/photos/", "s3://no-such-store/*.jpg"])
def test_a_missing_bucket_is_named(bucket: str, uri: str) -> None:
    with pytest.raises(UserError, match="bucket 'no-such-store' does not exist"):
        list_images(uri)


def test_all_buckets_at_once_are_refused(bucket: str) -> None:
    with pytest.raises(UserError, match="s3://"):
        list_images("s3://")


# An output inside its input would be labelled by the next run


@pytest.mark.parametrize(
    ("input_uri", "output_uri"),
    [
        ("s3://store/photos", "s3://store/photos/out"),
        ("s3://store/photos/", "s3://store/photos/out"),
        ("s3://store/photos", "s3://store/photos"),
        ("s3://store/photos/", "s3://store/photos"),
        ("s3://store", "s3://store/out"),
        ("s3://store/photos", "s3a://store/photos/out"),
        ("s3://store/photos/*.jpg", "s3://store/photos/out"),
        ("s3://store/**/*.jpg", "s3://store/out"),
        ("s3://store/photos/[ab]/*", "s3://store/photos/a"),
        ("s3://store/ph*", "s3://store/photos"),
        ("photos", "photos/out"),
        ("photos", "./photos/out"),
        ("photos", "{here}/photos/out"),
        ("photos", "file://{here}/photos/out"),
        ("{here}/photos", "photos/out"),
        ("photos", "out/../photos/out"),
        ("photos/../photos", "photos/out"),
        (".", "out"),
        ("*.jpg", "out"),
        ("photos/**", "photos/out"),
    ],
)
def test_an_output_inside_the_input_is_refused(
    input_uri: str, output_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = config(input=input_uri.format(here=tmp_path), output=output_uri.format(here=tmp_path))
    with pytest.raises(UserError, match=r"is inside input .*; choose an output outside of it"):
        check_no_output_inside_input(options, options.output)


@pytest.mark.parametrize(
    ("input_uri", "output_uri"),
    [
        ("s3://store/photos", "s3://store/photos-labelled"),
        ("s3://store/photos/*.jpg", "s3://store/out"),
        ("s3://store/photos", "s3://other/photos/out"),
        ("s3://store/photos/in", "s3://store/photos"),
        ("photos", "photos2"),
        ("photos/*.jpg", "out"),
        ("photos", "photos/../out"),
        ("photos", "s3://store/photos"),
    ],
)
def test_an_output_beside_the_input_is_fine(input_uri: str, output_uri: str) -> None:
    options = config(input=input_uri, output=output_uri)
    check_no_output_inside_input(options, options.output)
