"""Reading from storage that fails: patient with what passes, quick with what does not, and clear about which it was."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pyarrow as pa
import pytest
import s3fs

from pipeline import storage
from pipeline.demo.server_process import LOOPBACK, free_ports
from pipeline.errors import UserError
from pipeline.output.parquet import read_table, write_table
from pipeline.storage import s3_client
from tests.conftest import REPOSITORY
from tests.faulty_storage import (
    CUT,
    DRIP,
    HANG,
    REFUSE,
    SLOW,
    STALL,
    TRUNCATE,
    Choose,
    FaultyStorage,
    faulty_storage,
    in_turn,
)
from tests.swift import SwiftServer

pytestmark = pytest.mark.slow

KINDS = (REFUSE, CUT, HANG, STALL, TRUNCATE, DRIP)
Serve = Callable[[Choose], contextlib.AbstractContextManager[FaultyStorage]]


@pytest.fixture(autouse=True)
def quick(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The same patience in less time, and connections of this test's environment alone."""
    # Not less, since an answer takes as long on a busy machine.
    for name, value in {"READ_TIMEOUT": 2.0, "DEADLINE": 4.0, "FIRST_PAUSE": 0.02, "LONGEST_PAUSE": 0.1}.items():
        monkeypatch.setattr(s3_client, name, value)
    anew()
    yield monkeypatch
    anew()


@pytest.fixture(params=["obstore", "botocore"])
def reader(request: pytest.FixtureRequest, quick: pytest.MonkeyPatch) -> str:
    """Both ways to an object: the second is for names that obstore does not know, and after a fork."""
    quick.setattr(s3_client, "_runtime_is_lost", request.param == "botocore")
    return request.param


@pytest.fixture
def serve(swift: SwiftServer, quick: pytest.MonkeyPatch) -> Serve:
    """Let this process reach Swift through a proxy that breaks what it is told to."""

    @contextlib.contextmanager
    def through(choose: Choose) -> Iterator[FaultyStorage]:
        with (
            faulty_storage(swift.environment["AWS_ENDPOINT_URL"], choose=choose) as proxy,
            use_endpoint(quick, proxy.endpoint),
        ):
            yield proxy

    return through


@contextlib.contextmanager
def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.setenv(name, endpoint)
        anew()
        yield
    anew()


def anew() -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    s3_client.forget()


def write(bucket: str, count: int) -> dict[str, bytes]:
    files = {f"{bucket}/{index:03d}.jpg": bytes([index]) * 5000 for index in range(count)}
    for uri, content in files.items():
        storage.write_bytes(uri, content)
    return files


def etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def first(count: int, kind: str) -> Choose:
    return lambda method, path, number: kind if number <= count else None


def of_key(name: str, kind: str) -> Choose:
    return lambda method, path, number: kind if path.endswith(name) else None


# What passes


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_passes_is_waited_for(kind: str, reader: str, bucket: str, serve: Serve) -> None:
    ((uri, content),) = write(bucket, 1).items()
    with serve(first(1, kind)) as proxy:
        assert storage.fetch_objects([uri]) == [storage.Fetched(content, etag(content))]
    assert proxy.broken == {kind: 1}
    assert proxy.gets[uri.removeprefix("s3:/")] >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_passes_is_waited_for_in_every_span_of_a_file(
    kind: str, reader: str, bucket: str, serve: Serve
) -> None:
    uri, content = f"{bucket}/a.bin", os.urandom(5000)
    storage.write_bytes(uri, content)

    def every_second(method: str, path: str, number: int) -> str | None:
        return kind if number % 2 else None

    with serve(every_second) as proxy, storage.open_file(uri) as file:
        assert b"".join(iter(lambda: file.read(2000), b"")) == content
    assert sum(proxy.broken.values()) >= 4  # the question for its size, too


def test_a_table_is_read_from_storage_that_cuts_off_one_body_in_two(bucket: str, serve: Serve) -> None:
    uri, table = f"{bucket}/a.parquet", pa.table({"a": list(range(50_000)), "b": ["x"] * 50_000})
    write_table(uri, table)
    with serve(lambda method, path, number: TRUNCATE if number % 2 else None) as proxy:
        assert read_table(uri, ["a"]) == table.select(["a"])
    assert proxy.broken[TRUNCATE] >= 1


def test_one_request_in_ten_that_fails_costs_no_file(bucket: str, serve: Serve, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(s3_client, "READ_TIMEOUT", 4.0)
    quick.setattr(s3_client, "DEADLINE", 30.0)
    kinds = (REFUSE, CUT, HANG, TRUNCATE)
    files = write(bucket, 60)
    with serve(in_turn(kinds)) as proxy:
        assert storage.fetch(list(files)) == list(files.values())
    assert set(proxy.broken) == set(kinds)


@pytest.mark.parametrize("kind", [REFUSE, HANG, TRUNCATE])
def test_a_listing_waits_for_a_fault_that_passes(kind: str, bucket: str, serve: Serve) -> None:
    files = write(bucket, 3)
    with serve(first(1, kind)):
        assert [file.uri for page in storage.listed(bucket) for file in page] == list(files)


def test_a_file_has_time_for_all_its_bytes(reader: str, bucket: str, serve: Serve, quick: pytest.MonkeyPatch) -> None:
    ((uri, content),) = write(bucket, 1).items()
    with serve(lambda method, path, number: SLOW) as proxy:
        quick.setattr(s3_client, "SLOWEST_DOWNLOAD", 5000)
        (error,) = storage.fetch([uri])
        assert isinstance(error, Exception)
        assert storage.failure_kind(error) == "Timeout"
        quick.setattr(s3_client, "SLOWEST_DOWNLOAD", 500)
        anew()
        assert storage.fetch([uri]) == [content]
    assert proxy.broken[SLOW] >= 2


# What lasts


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (REFUSE, "StorageError"),
        (CUT, "StorageError"),
        (HANG, "Timeout"),
        (STALL, "Timeout"),
        (DRIP, "Timeout"),
        (TRUNCATE, "Truncated"),
    ],
)
def test_a_file_that_always_fails_is_a_failure_of_its_own(
    kind: str, failure: str, reader: str, bucket: str, serve: Serve, quick: pytest.MonkeyPatch
) -> None:
    """Alone or among others: that nothing else was asked for does not make the server dead."""
    quick.setattr(s3_client, "RETRIES", 1)
    if failure != "Timeout":  # no fault here takes time, so none may be taken for one where the machine stands still
        quick.setattr(s3_client, "READ_TIMEOUT", 60.0)
        quick.setattr(s3_client, "DEADLINE", 60.0)
    uris, contents = zip(*write(bucket, 3).items(), strict=True)
    with serve(of_key("001.jpg", kind)) as proxy:
        (alone,) = storage.fetch(uris[1:2])
        tries = 4 if (reader, kind) == ("obstore", TRUNCATE) else 2  # once more from the start
        assert proxy.gets[uris[1].removeprefix("s3:/")] == tries
        before, found, after = storage.fetch(list(uris))
    assert (before, after) == (contents[0], contents[2])
    for error in (alone, found):
        assert isinstance(error, Exception)
        assert storage.failure_kind(error) == failure
        assert len(str(error)) < 300


def test_bytes_that_come_one_by_one_do_not_keep_a_reader_longer_than_its_deadline(
    reader: str, bucket: str, serve: Serve, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(s3_client, "DEADLINE", 3.0)
    uri, other = write(bucket, 2)
    with serve(of_key("000.jpg", DRIP)):
        storage.fetch([other])  # to connect
        begin = time.monotonic()
        (error,) = storage.fetch([uri])
        seconds = time.monotonic() - begin
    assert isinstance(error, Exception)
    assert storage.failure_kind(error) == "Timeout"
    assert 3 < seconds < 3 * 3 + 10  # three deadlines, on a busy machine


def test_what_is_missing_or_forbidden_is_asked_for_once(
    reader: str, bucket: str, serve: Serve, quick: pytest.MonkeyPatch
) -> None:
    (uri,) = write(bucket, 1)
    missing = f"{bucket}/missing.jpg"
    quick.setattr(s3_client, "READ_TIMEOUT", 60.0)
    quick.setattr(s3_client, "DEADLINE", 60.0)
    with serve(lambda *_: None) as proxy:
        (error,) = storage.fetch([missing])
        assert isinstance(error, Exception)
        assert storage.failure_kind(error) == "NotFound"
        quick.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        (error,) = storage.fetch([uri])
        assert isinstance(error, Exception)
        assert storage.failure_kind(error) == "AccessDenied"
        assert proxy.gets == {name.removeprefix("s3:/"): 1 for name in (uri, missing)}


def test_a_missing_bucket_fails_its_files_and_no_others(reader: str, bucket: str) -> None:
    storage.write_bytes(f"{bucket}/a.jpg", b"here")
    found, missing = storage.fetch([f"{bucket}/a.jpg", "s3://no-such-store/b.jpg"])
    assert found == b"here"
    assert isinstance(missing, Exception)
    assert storage.failure_kind(missing) == "NotFound"
    assert "bucket does not exist" in str(missing)


def test_missing_credentials_are_no_failure_of_the_files(
    reader: str, bucket: str, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        quick.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        quick.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match="no AWS credentials; set AWS_ACCESS_KEY_ID"):
        storage.fetch([f"{bucket}/a.jpg"])


# Nobody there


@contextlib.contextmanager
def dead(kind: str) -> Iterator[str]:
    if kind == "hanging":
        with socket.create_server((LOOPBACK, 0), backlog=100) as server:
            yield f"http://{LOOPBACK}:{server.getsockname()[1]}"
    else:
        yield f"http://{LOOPBACK}:{free_ports(1)[0]}" if kind == "refusing" else "http://no-such-host.invalid"


@pytest.mark.parametrize("kind", ["refusing", "hanging", "unknown"])
def test_a_dead_endpoint_is_given_up_within_its_bound(kind: str, reader: str, quick: pytest.MonkeyPatch) -> None:
    """However many files wait for it: else a bucket would become rows of failures, slowly, and would be done."""
    quick.setattr(s3_client, "READ_TIMEOUT", 1.0)
    uris = [f"s3://store/{index}" for index in range(200)]
    with dead(kind) as endpoint, use_endpoint(quick, endpoint):
        for ask in (storage.fetch, lambda uris: storage.read_bytes(uris[0])):
            begin = time.monotonic()
            with pytest.raises(UserError, match=f"{endpoint} does not answer"):
                ask(uris)
            # Five tries with their pauses, and two more to be sure; botocore's pauses are its own.
            pauses = 5 * 0.1 if reader == "obstore" else 15
            assert time.monotonic() - begin < 7 * 1.0 + pauses + 20  # a busy machine takes seconds to connect


def test_no_file_is_tried_after_the_endpoint_was_given_up(serve: Serve, quick: pytest.MonkeyPatch) -> None:
    """Else every thread would wait for one more."""
    quick.setattr(s3_client, "RETRIES", 0)
    with serve(lambda *_: HANG) as proxy, pytest.raises(UserError, match="does not answer"):
        storage.fetch([f"s3://store/{index}" for index in range(100)])
    assert len(proxy.gets) == storage.FETCHES


@pytest.mark.parametrize("kind", ["refusing", "hanging", "unknown"])
def test_listing_a_dead_endpoint_ends(kind: str, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(s3_client, "READ_TIMEOUT", 1.0)
    begin = time.monotonic()
    with dead(kind) as endpoint, use_endpoint(quick, endpoint), pytest.raises(UserError, match=endpoint):
        list(storage.listed("s3://store/photos"))
    assert time.monotonic() - begin < 5 * 1.0 + 15 + 20


# Files that change


def test_a_file_that_changed_since_it_was_listed_has_the_etag_of_what_was_read(reader: str, bucket: str) -> None:
    uri = f"{bucket}/a.jpg"
    storage.write_bytes(uri, b"before")
    ((file,),) = storage.listed(bucket)
    assert file == storage.ListedFile(uri, 6, etag(b"before"))
    storage.write_bytes(uri, b"after!")
    assert storage.fetch_objects([uri]) == [storage.Fetched(b"after!", etag(b"after!"))]
    storage.remove(uri)
    (error,) = storage.fetch_objects([uri])
    assert isinstance(error, FileNotFoundError)


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed_with_the_new_one(
    reader: str, bucket: str, swift: SwiftServer, serve: Serve
) -> None:
    """The rest of a body that was cut off may be asked for by itself."""
    uri = f"{bucket}/a.jpg"
    before, after = b"1" * 5000, b"2" * 5000
    storage.write_bytes(uri, before)

    client = botocore.session.get_session().create_client("s3", endpoint_url=swift.environment["AWS_ENDPOINT_URL"])

    def replace_after_the_first_half(method: str, path: str, number: int) -> str | None:
        if number == 2:
            client.put_object(Bucket=bucket.removeprefix("s3://"), Key="a.jpg", Body=after)
        return TRUNCATE if number == 1 else None

    with serve(replace_after_the_first_half):
        assert storage.fetch_objects([uri]) == [storage.Fetched(after, etag(after))]


def test_a_file_that_is_replaced_between_two_spans_is_not_read_on(reader: str, bucket: str) -> None:
    uri = f"{bucket}/a.bin"
    storage.write_bytes(uri, b"1" * 5000)
    with storage.open_file(uri) as file:
        assert (file.etag, file.read(10)) == (etag(b"1" * 5000), b"1" * 10)
        storage.write_bytes(uri, b"2" * 5000)
        with pytest.raises(OSError, match="changed while it was read"):
            file.read(10)


# Many reads, many processes


def test_many_fetches_leave_no_threads_and_no_open_files(reader: str, bucket: str, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(s3_client, "READ_TIMEOUT", 30.0)
    quick.setattr(s3_client, "DEADLINE", 60.0)
    files = write(bucket, 20)
    rounds = 20

    def open_now() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        storage.fetch(list(files))
    threads, descriptors = open_now()
    for _ in range(rounds):
        assert storage.fetch(list(files)) == list(files.values())
    # A leak would be one in each round or more. Pools of the libraries and of the tests' servers, which are threads of
    # this process, grow by a few when the machine is busy.
    assert open_now()[0] < threads + rounds / 2
    assert open_now()[1] < descriptors + rounds / 2


FORKING = """
import multiprocessing, sys
from pipeline import storage
uris = sys.argv[1:]
mine = storage.fetch(uris)
with multiprocessing.get_context("fork").Pool(2) as pool:
    theirs = pool.map_async(storage.fetch, [uris] * 4).get(60)
assert theirs == [mine] * 4 and mine == [bytes([i]) * 5000 for i in range(len(uris))], theirs
assert storage.fetch(uris) == mine
print("alike")
"""


def test_forked_processes_read_what_their_parent_reads(bucket: str) -> None:
    """obstore's threads do not survive a fork; the child would wait for ever."""
    uris = list(write(bucket, 5))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, *uris],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.stdout, run.returncode) == ("alike\n", 0), run.stderr
