"""The door to storage: the same on a local disk and in a bucket, and plain about what went wrong."""

import contextlib
import os
import resource
import socket
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs

from pipeline import storage
from pipeline.demo.server_process import LOOPBACK, free_ports
from pipeline.errors import UserError
from pipeline.storage import files, s3_client
from tests.swift import SwiftServer

ODD_NAMES = [
    "a[1].jpg",
    "a*b.jpg",
    "a?b.jpg",
    "100%.jpg",
    "50%25 off.jpg",
    " leading and trailing ",
    "ünïcode 猫 🐈.jpg",
    "hash#tag.jpg",
    "day=1/a.jpg",
    "a:b.jpg",
    ".hidden.jpg",
    "~home.jpg",
    "line\nbreak.jpg",
    "quote'\".jpg",
    "back\\slash.jpg",
]


@pytest.fixture(params=["local", "swift"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on each kind of storage."""
    if request.param == "local":
        return f"file://{tmp_path}/place"
    return f"{request.getfixturevalue('bucket')}/place"


@pytest.fixture
def other_environment(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For changes of the AWS environment, which s3fs notices only in a new instance."""
    s3fs.S3FileSystem.clear_instance_cache()
    s3_client.forget()
    monkeypatch.setattr(s3_client, "RETRIES", 0)
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()
    s3_client.forget()


@contextlib.contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let writing a file fail once it has `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# On both kinds of storage


def test_what_is_written_can_be_read_found_overwritten_and_removed(place: str) -> None:
    uri = storage.join(place, "folder", "a.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    assert storage.exists(uri)
    assert storage.exists(storage.join(place, "folder"))
    assert storage.read_bytes(uri) == b"one"
    assert list(storage.find(place)) == [uri]
    assert storage.find(place)[uri]["size"] == 3
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    storage.remove(uri)
    assert not storage.exists(uri)
    assert storage.find(place) == {}


def test_files_of_every_name_are_written_found_fetched_and_removed_one_by_one(place: str) -> None:
    uris = [storage.join(place, name) for name in ODD_NAMES]
    for uri in uris:
        storage.write_bytes(uri, uri.encode())
    assert list(storage.find(place)) == sorted(uris)
    assert storage.fetch(uris) == [uri.encode() for uri in uris]
    assert [storage.read_bytes(uri) for uri in uris] == [uri.encode() for uri in uris]
    # Removed in turn: a name that were taken for a pattern would take others with it.
    for number, uri in enumerate(uris, start=1):
        storage.remove(uri)
        assert sorted(storage.find(place)) == sorted(uris[number:])


@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
def test_two_colons_in_a_name_are_part_of_the_name(place: str, order: int) -> None:
    uris = [storage.join(place, name) for name in ("two::colons.jpg", "plain.jpg")][::order]
    contents = [b"colons", b"plain"][::order]
    for uri, content in zip(uris, contents, strict=True):
        storage.write_bytes(uri, content)
    assert list(storage.find(place)) == sorted(uris)
    assert [storage.read_bytes(uri) for uri in uris] == contents
    assert storage.fetch(uris) == contents


def test_find_lists_all_levels_in_name_order_and_a_single_file_as_itself(place: str) -> None:
    for name in ("b/c/deep", "a", "b/z", "ba"):
        storage.write_bytes(storage.join(place, name), b"x")
    names = ["a", "b/c/deep", "b/z", "ba"]
    assert list(storage.find(place)) == [storage.join(place, name) for name in names]
    assert list(storage.find(place + "/")) == list(storage.find(place))
    assert list(storage.find(storage.join(place, "b"))) == [storage.join(place, name) for name in names[1:3]]
    assert list(storage.find(storage.join(place, "a"))) == [storage.join(place, "a")]


def test_a_missing_folder_holds_nothing(place: str) -> None:
    assert storage.find(storage.join(place, "nowhere")) == {}
    assert not storage.exists(storage.join(place, "nowhere"))


def test_reading_what_is_missing_says_which_file(place: str) -> None:
    with pytest.raises(UserError, match=r"/place/nowhere\.jpg: not found; check the path"):
        storage.read_bytes(storage.join(place, "nowhere.jpg"))


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_unicode_form_is_named_as_the_difference(place: str, form: str, other: str) -> None:
    """Of Unicode's two spellings of an accent, a list may have another one than the storage."""
    storage.write_bytes(f"{place}/{unicodedata.normalize(form, 'Zürich')}.jpg", b"a")
    missing = f"{place}/{unicodedata.normalize(other, 'Zürich')}.jpg"
    difference = f"a file exists whose name differs only in Unicode: it is in form {form}, and this one is {other}"
    with pytest.raises(UserError, match=f"not found, but {difference}; write the name as the storage lists it"):
        storage.read_bytes(missing)
    with pytest.raises(UserError, match=difference):
        storage.open_file(missing)
    (failure,) = storage.fetch([missing])
    assert isinstance(failure, FileNotFoundError)
    assert difference in storage.reason(failure)


def test_removing_what_is_gone_is_fine(place: str) -> None:
    storage.remove(storage.join(place, "nowhere.jpg"))


def test_fetch_returns_a_failure_in_its_files_place(place: str) -> None:
    first, last, missing = (storage.join(place, name) for name in ("a", "z", "missing"))
    storage.write_bytes(first, b"first")
    storage.write_bytes(last, b"last")
    contents = storage.fetch([first, missing, last])
    assert (contents[0], contents[2]) == (b"first", b"last")
    assert isinstance(contents[1], FileNotFoundError)
    assert storage.failure_kind(contents[1]) == "NotFound"


def test_fetching_nothing_gives_nothing() -> None:
    assert storage.fetch([]) == []


def test_files_are_copied_by_name_between_kinds_of_storage(place: str, tmp_path: Path) -> None:
    source, back = storage.join(place, "source"), str(tmp_path / "back")
    for name in ("a", "b", "c"):
        storage.write_bytes(storage.join(source, name), name.encode())
    storage.copy_files(source, back, ["a", "c"])
    assert {path.name: path.read_bytes() for path in Path(back).iterdir()} == {"a": b"a", "c": b"c"}
    with pytest.raises(UserError, match="source/d: not found"):
        storage.copy_files(source, back, ["d"])


def test_a_local_copy_holds_the_files_right_in_a_folder(place: str) -> None:
    for name in ("model.bin", "config [1].json", "deeper/other.bin"):
        storage.write_bytes(storage.join(place, name), name.encode())
    with storage.local_copy(place) as folder:
        assert (folder / "model.bin").read_bytes() == b"model.bin"
        assert (folder / "config [1].json").read_bytes() == b"config [1].json"


def test_any_span_of_a_file_can_be_read_whatever_its_name(place: str) -> None:
    for name in ODD_NAMES:
        uri = storage.join(place, name)
        storage.write_bytes(uri, b"0123456789")
        with storage.open_file(uri) as file:
            assert (file.size, file.read(3), file.read(0), file.tell()) == (10, b"012", b"", 3)
            assert (file.seek(-4, 2), file.read(2), file.seek(1, 1), file.read()) == (6, b"67", 9, b"9")
            assert (file.read(), file.read(5), file.seek(20), file.read(1)) == (b"", b"", 20, b"")
            with pytest.raises(ValueError, match="before the start"):
                file.seek(-1)
        with pytest.raises(ValueError, match="closed file"):
            file.read(1)


def test_an_empty_file_has_no_bytes_to_read(place: str) -> None:
    storage.write_bytes(storage.join(place, "empty"), b"")
    with storage.open_file(storage.join(place, "empty")) as file:
        assert (file.size, file.read(), file.read(1)) == (0, b"", b"")


@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "zstd"])
def test_a_stream_is_decompressed_as_its_name_says(place: str, compression: str | None) -> None:
    content = b"line\n" * 2_000_000
    name = "list.txt" + {None: "", "gzip": ".gz", "bz2": ".BZ2", "zstd": ".zst"}[compression]
    packed = pa.BufferOutputStream()
    with pa.output_stream(packed, compression=compression) as sink:
        sink.write(content)
    storage.write_bytes(storage.join(place, name), packed.getvalue().to_pybytes())
    with storage.open_stream(storage.join(place, name)) as stream:
        assert stream.read() == content


def test_opening_what_is_missing_says_which_file(place: str) -> None:
    for opened in (storage.open_file, storage.open_stream):
        with pytest.raises(UserError, match=r"missing\.bin: not found"):
            opened(storage.join(place, "missing.bin"))


def test_an_arrow_file_system_reads_the_same_file(place: str) -> None:
    storage.write_bytes(storage.join(place, "a"), b"one")
    filesystem, path = storage.arrow_filesystem(place)
    with filesystem.open_input_stream(f"{path}/a") as file:
        assert file.read() == b"one"


# On a local disk


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with disk_full_after(1000), pytest.raises(UserError, match=r"a\.bin: storage failed: .*File too large"):
        storage.write_bytes(f"{tmp_path}/a.bin", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_earlier_file_as_it_was(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/a.bin", b"earlier")
    with disk_full_after(1000), pytest.raises(UserError):
        storage.write_bytes(f"{tmp_path}/a.bin", b"x" * 5000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"earlier"}


def test_writing_over_a_folder_fails_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        storage.write_bytes(f"{tmp_path}/folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_writing_below_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/a: storage failed"):
        storage.write_bytes(f"{tmp_path}/file/a", b"x")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_what_is_written_is_as_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        storage.write_bytes(f"{tmp_path}/a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_the_folder_is_written_to_the_disk_after_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(handle: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), sorted(os.listdir(tmp_path))))

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_bytes(f"{tmp_path}/a", b"x")
    (file, before), (folder, after) = synced
    assert (folder, after) == (str(tmp_path), ["a"])
    assert [os.path.basename(file)] == before, "a name of its own until it is whole"


def test_a_local_folder_is_its_own_local_copy(tmp_path: Path) -> None:
    with storage.local_copy(f"file://{tmp_path}") as folder:
        assert folder == tmp_path


def test_closing_a_file_gives_its_handle_back(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"one")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with storage.open_file(str(tmp_path / "a")) as file:
            assert file.read() == b"one"
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_a_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        storage.read_bytes(str(tmp_path))
    (failure,) = storage.fetch([str(tmp_path)])
    assert isinstance(failure, IsADirectoryError)
    assert storage.failure_kind(failure) == "StorageError"


# Names of places


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("s3://bucket", ["a"], "s3://bucket/a"),
        ("s3://bucket/a/", ["b", "c"], "s3://bucket/a/b/c"),
        ("photos", ["a"], "photos/a"),
        ("/", ["a"], "/a"),
    ],
)
def test_join_puts_one_slash_between(uri: str, parts: list[str], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


@pytest.mark.parametrize(
    "spelling", ["photos", "photos/", "./photos", "a/../photos", ".//photos", "{here}/photos", "file://{here}/photos"]
)
def test_spellings_of_a_local_place_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """Image ids are hashes of names: two names for one image would label it twice."""
    monkeypatch.chdir(tmp_path)
    assert storage.absolute(spelling.format(here=tmp_path)) == f"file://{tmp_path}/photos"


@pytest.mark.parametrize("spelling", ["s3://bucket/photos", "s3://bucket/photos/", "s3a://bucket/photos"])
def test_spellings_of_a_bucket_place_become_one(spelling: str) -> None:
    assert storage.absolute(spelling) == "s3://bucket/photos"


@pytest.mark.parametrize("uri", ["nope://a/b", "gs://bucket/a"])
def test_a_scheme_that_nothing_here_serves_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=f"{uri}: cannot be opened"):
        storage.open_filesystem(uri)


# When a bucket or its server is not as expected


def test_a_missing_bucket_is_named_whatever_is_asked_of_it(swift: SwiftServer) -> None:
    uri = "s3://no-such-store/a/b"
    message = "s3://no-such-store/a/b: the bucket 'no-such-store' does not exist; create it or correct the name"
    for ask in (storage.find, storage.read_bytes, lambda place: storage.write_bytes(place, b"x")):
        with pytest.raises(UserError, match=message):
            ask(uri)


def test_a_missing_object_is_not_blamed_on_its_bucket_by_the_bucket_s_name(swift: SwiftServer) -> None:
    s3fs.S3FileSystem().mkdir("my-bucket")
    with pytest.raises(UserError, match=r"s3://my-bucket/a\.jpg: not found; check the path"):
        storage.read_bytes("s3://my-bucket/a.jpg")


def test_a_wrong_secret_is_called_access_denied(bucket: str, other_environment: pytest.MonkeyPatch) -> None:
    uri = f"{bucket}/a"
    storage.write_bytes(uri, b"x")
    other_environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (
        storage.find,
        storage.read_bytes,
        storage.exists,
        storage.remove,
        lambda place: storage.write_bytes(place, b"y"),
    ):
        with pytest.raises(UserError, match=rf"{uri}: access denied .*; check the AWS credentials in the environment"):
            ask(uri)
    (failure,) = storage.fetch([uri])
    assert isinstance(failure, Exception)
    assert storage.failure_kind(failure) == "AccessDenied"


def test_missing_credentials_are_answered_with_how_to_give_them(
    swift: SwiftServer, tmp_path: Path, other_environment: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        other_environment.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        other_environment.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match="no AWS credentials; set AWS_ACCESS_KEY_ID"):
        storage.find("s3://store/a")


def test_an_endpoint_where_nothing_listens_is_named(other_environment: pytest.MonkeyPatch) -> None:
    endpoint = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    other_environment.setenv("AWS_ENDPOINT_URL", endpoint)
    other_environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    for ask in (storage.find, storage.read_bytes, storage.exists, lambda place: storage.write_bytes(place, b"x")):
        with pytest.raises(UserError, match=f"s3://store/a: storage failed: .*{endpoint}"):
            ask("s3://store/a")


def test_a_server_that_is_not_there_is_no_fault_of_the_files_that_are_fetched(
    other_environment: pytest.MonkeyPatch,
) -> None:
    """Else a whole bucket would become rows of failures, and would be done."""
    endpoint = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    other_environment.setenv("AWS_ENDPOINT_URL", endpoint)
    other_environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(UserError, match=endpoint):
        storage.fetch(["s3://store/a", "s3://store/b"])


def test_a_server_that_never_answers_is_no_fault_of_a_file(other_environment: pytest.MonkeyPatch) -> None:
    other_environment.setattr(s3_client, "READ_TIMEOUT", 1)
    with socket.create_server((LOOPBACK, 0)) as server:
        endpoint = f"http://{LOOPBACK}:{server.getsockname()[1]}"
        other_environment.setenv("AWS_ENDPOINT_URL", endpoint)
        other_environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with pytest.raises(UserError, match=f"s3://store/a: storage failed: {endpoint} does not answer"):
            storage.fetch(["s3://store/a"])
        with pytest.raises(UserError, match=f"s3://store/a: storage failed: {endpoint} does not answer"):
            storage.read_bytes("s3://store/a")


def test_an_upload_that_the_server_never_finishes_is_given_up(other_environment: pytest.MonkeyPatch) -> None:
    other_environment.setattr(s3_client, "READ_TIMEOUT", 1)
    other_environment.setattr(files, "WRITE_TIMEOUT", 1)
    with socket.create_server((LOOPBACK, 0)) as server:
        endpoint = f"http://{LOOPBACK}:{server.getsockname()[1]}"
        other_environment.setenv("AWS_ENDPOINT_URL", endpoint)
        other_environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with pytest.raises(UserError, match="s3://store/a: storage failed"):
            storage.write_bytes("s3://store/a", b"x")
