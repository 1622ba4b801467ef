"""Listing and fetching by name: every file once, in order, under the very name that it has."""

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import botocore.session
import pytest
import s3fs

from pipeline import storage
from pipeline.demo.local_s3 import local_s3
from pipeline.demo.server_process import LOOPBACK, free_ports
from pipeline.errors import UserError
from pipeline.storage import s3_client, s3_objects
from tests.swift import KEY, SECRET, SwiftServer

NAMES = [
    "a b.jpg",
    " a ",
    "ünïcode 猫 🐈.jpg",
    "100%.jpg",
    "50%25.jpg",
    "day=1/a+b.jpg",
    "quote'\".jpg",
    "hash#tag.jpg",
    "what?.jpg",
    "star*.jpg",
    "a[1].jpg",
    "two::colons.jpg",
    "back\\slash.jpg",
    "semi;comma,&.jpg",
    "<{|}>^`~.jpg",
]
LINE_BREAK = "line\nbreak\tand tab.jpg"  # which moto refuses
SLASHES = ["a//b.jpg", "/first.jpg", "x/./y.jpg", "x/../y.jpg"]  # names in a bucket that no disk has


def listed(uri: str) -> list[storage.ListedFile]:
    return [file for page in storage.listed(uri) for file in page]


def uris(uri: str) -> list[str]:
    return [file.uri for file in listed(uri)]


@pytest.fixture(params=["local", "swift"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on each kind of storage."""
    return f"file://{tmp_path}/place" if request.param == "local" else f"{request.getfixturevalue('bucket')}/place"


@pytest.fixture
def other_environment(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An AWS environment without keys, for the other places that keys come from."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    s3_client.forget()


# Names


def test_files_are_listed_and_fetched_under_the_names_that_they_have(place: str) -> None:
    expected = sorted(storage.join(place, name) for name in [*NAMES, LINE_BREAK])
    for uri in expected:
        storage.write_bytes(uri, uri.encode())
    assert uris(place) == expected == list(storage.find(place))
    assert storage.fetch(expected) == [uri.encode() for uri in expected]
    assert [storage.absolute(uri) for uri in expected] == expected


def test_a_second_kind_of_server_agrees_on_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("store")
        expected = sorted(f"s3://store/photos/{name}" for name in NAMES)
        for uri in expected:
            storage.write_bytes(uri, uri.encode())
        assert uris("s3://store/photos") == expected
        assert storage.fetch(expected) == [uri.encode() for uri in expected]
    s3fs.S3FileSystem.clear_instance_cache()


def test_names_that_only_a_bucket_can_have_are_fetched(bucket: str) -> None:
    """obstore would take some of them for others."""
    client = botocore.session.get_session().create_client("s3")
    for key in [*SLASHES, "a/b.jpg", "first.jpg", "y.jpg"]:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=key.encode())
    names = uris(bucket)
    assert set(names) >= {f"{bucket}/{name}" for name in ("a//b.jpg", "a/b.jpg", "first.jpg", "y.jpg")}
    assert storage.fetch(names) == [name.removeprefix(f"{bucket}/").encode() for name in names]


def test_files_of_several_places_are_fetched_together(bucket: str, tmp_path: Path) -> None:
    names = [f"{bucket}/a", f"{tmp_path}/b", f"file://{tmp_path}/c", f"{bucket.replace('s3', 's3a', 1)}/a"]
    for name in names:
        storage.write_bytes(name, b"x")
    assert storage.fetch(names) == [b"x"] * 4


# Listings


def test_a_listing_is_in_name_order_over_all_levels_and_knows_sizes(place: str) -> None:
    names = ["b/c/deep", "a", "b/z", "ba", "b-1", "b.txt", "b0", "z/1/2/3"]
    for name in names:
        storage.write_bytes(storage.join(place, name), name.encode())
    assert [(file.uri, file.size) for file in listed(place)] == [
        (storage.join(place, name), len(name)) for name in sorted(names)
    ]
    assert listed(place + "/") == listed(place)
    assert uris(storage.join(place, "b")) == [storage.join(place, name) for name in ("b/c/deep", "b/z")]
    assert uris(storage.join(place, "ba")) == [storage.join(place, "ba")]
    assert listed(storage.join(place, "nowhere")) == []


def test_etags_in_a_listing_are_those_of_the_objects(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/a", b"content")
    storage.write_bytes(f"{tmp_path}/a", b"content")
    ((found,),) = storage.listed(bucket)
    assert found.etag == storage.fetch_objects([f"{bucket}/a"])[0].etag  # type: ignore[union-attr]
    assert len(found.etag or "") == 32
    assert [file.etag for file in listed(str(tmp_path))] == [None]


def test_markers_of_folders_are_left_out_and_empty_files_are_not(bucket: str) -> None:
    for key, content in (("photos/", b""), ("photos/sub/", b""), ("photos/empty.jpg", b""), ("photos/a.jpg", b"a")):
        s3fs.S3FileSystem().pipe_file(f"{bucket}/{key}".removeprefix("s3://"), content)
    assert uris(bucket) == uris(f"{bucket}/photos") == [f"{bucket}/photos/a.jpg", f"{bucket}/photos/empty.jpg"]
    assert listed(f"{bucket}/photos/sub") == []


def test_a_listing_comes_page_by_page(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_objects.PAGE == 1000
    monkeypatch.setattr(s3_objects, "PAGE", 3)
    names = [storage.join(place, f"{index:04d}") for index in range(7)]
    for name in names:
        storage.write_bytes(name, b"")
    assert [[file.uri for file in page] for page in storage.listed(place)] == [names[:3], names[3:6], names[6:]]


def test_a_local_listing_opens_a_folder_when_its_turn_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a disk of a hundred million files can be listed at all."""
    for folder in range(5):
        for index in range(1000):
            storage_path = tmp_path / str(folder) / f"{index:04d}"
            storage_path.parent.mkdir(exist_ok=True)
            storage_path.touch()
    scanned = []
    scandir = os.scandir

    def noted(path: str) -> object:
        scanned.append(os.path.basename(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    pages = storage.listed(str(tmp_path))
    assert len(next(pages)) == 1000
    assert scanned == [tmp_path.name, "0"]


def test_partial_files_and_pipes_are_left_out_of_a_disk_s_listing(tmp_path: Path) -> None:
    (tmp_path / f"{storage.PARTIAL}x1").touch()
    (tmp_path / ".hidden.jpg").touch()
    os.mkfifo(tmp_path / "pipe")
    assert uris(str(tmp_path)) == [f"file://{tmp_path}/.hidden.jpg"]
    (error,) = storage.fetch([f"{tmp_path}/pipe"])  # reading it would wait for a writer
    assert isinstance(error, OSError)
    assert storage.failure_kind(error) == "StorageError"


def test_links_are_followed_once_and_those_to_nowhere_are_listed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.jpg").write_bytes(b"aa")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "file.jpg").symlink_to(tmp_path / "store" / "a.jpg")
    (photos / "folder").symlink_to(tmp_path / "store")
    (photos / "loop").symlink_to(photos)
    (photos / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    assert listed(str(photos)) == [
        storage.ListedFile(f"file://{photos}/file.jpg", 2, None),
        storage.ListedFile(f"file://{photos}/folder/a.jpg", 2, None),
        storage.ListedFile(f"file://{photos}/nowhere.jpg", 0, None),
    ]
    (error,) = storage.fetch([f"{photos}/nowhere.jpg"])
    assert isinstance(error, FileNotFoundError)


def test_a_name_that_is_no_text_is_explained(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"\\udcff.jpg' is not valid UTF-8, which tables require; rename the file"):
        listed(str(tmp_path))


def test_a_missing_bucket_and_no_bucket_are_explained(bucket: str) -> None:
    with pytest.raises(UserError, match="the bucket 'no-such-store' does not exist"):
        listed("s3://no-such-store/photos")
    with pytest.raises(UserError, match="s3://: the bucket is missing"):
        listed("s3://")


def test_a_listing_that_is_not_allowed_is_explained(bucket: str, other_environment: pytest.MonkeyPatch) -> None:
    other_environment.setenv("AWS_ACCESS_KEY_ID", KEY)
    other_environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=f"{bucket}: access denied"):
        listed(bucket)


# Who is asked, and with which credentials


@pytest.mark.parametrize("from_profile", [True, False])
def test_keys_and_the_address_may_come_from_a_profile(
    from_profile: bool, bucket: str, swift: SwiftServer, tmp_path: Path, other_environment: pytest.MonkeyPatch
) -> None:
    endpoint = swift.environment["AWS_ENDPOINT_URL"]
    profile = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    if from_profile:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            other_environment.delenv(name)
        profile += f"region = us-east-1\nendpoint_url = {endpoint}\n"
    (tmp_path / "config").write_text(f"[profile work]\n{profile}")
    other_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    other_environment.setenv("AWS_PROFILE", "work")
    s3fs.S3FileSystem.clear_instance_cache()
    storage.write_bytes(f"{bucket}/a", b"x")
    assert storage.fetch([f"{bucket}/a"]) == [b"x"]
    assert uris(bucket) == [f"{bucket}/a"]
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_address_for_s3_goes_before_the_general_one(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{bucket}/a", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{free_ports(1)[0]}")
    assert storage.fetch([f"{bucket}/a"]) == [b"x"]
    assert uris(bucket) == [f"{bucket}/a"]
    s3_client.forget()


def test_a_role_s_credentials_are_asked_for(bucket: str, other_environment: pytest.MonkeyPatch) -> None:
    """As on ECS and EKS: an address on this machine hands out keys for a time."""
    with other_environment.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        storage.write_bytes(f"{bucket}/a", b"x")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            end = (datetime.now(UTC) + timedelta(hours=6)).isoformat()
            keys = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "token", "Expiration": end}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(keys).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other_environment.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{LOOPBACK}:{server.server_port}/keys")
        assert storage.fetch([f"{bucket}/a"] * 3) == [b"x"] * 3
        server.shutdown()
    assert "/keys" in asked


@pytest.mark.parametrize(
    ("endpoint", "bucket_name", "address"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "photos", "https://photos.s3.eu-west-1.amazonaws.com"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "photos", "https://photos.s3.cn-north-1.amazonaws.com.cn"),
        ("https://s3.eu-west-1.amazonaws.com", "photos.old", "https://s3.eu-west-1.amazonaws.com"),
        ("http://minio:9000", "photos", "http://minio:9000"),
        ("https://amazonaws.com.example.org", "photos", "https://amazonaws.com.example.org"),
    ],
)
def test_the_bucket_is_in_the_host_name_at_amazon_alone(endpoint: str, bucket_name: str, address: str) -> None:
    assert s3_client.address_of(endpoint, bucket_name) == (address, address != endpoint)


def test_names_that_obstore_would_change_do_not_go_to_it() -> None:
    for key in ("a//b", "/a", "a/", "", "./a", "a/..", "a/../b", "a/./b", "a\nb", "a\x7f"):
        assert not s3_objects.PLAIN_KEY.fullmatch(key), key
    for key in ("a", ".a", "..a/b", "a/.b", "a./b", "...", "a b/c d"):
        assert s3_objects.PLAIN_KEY.fullmatch(key), key
