"""Properties of the two S3 servers on this machine: moto for the demo, Swift for stricter tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import s3fs

from pipeline.demo.local_s3 import local_s3
from pipeline.demo.server_process import LOOPBACK, ServerProcess, free_ports
from tests.swift import SwiftServer, swift_server

REPOSITORY = Path(__file__).parents[1]
MIB = 2**20
NAMES = [
    "with space.jpg",
    " leading and trailing ",
    "ünïcode 猫 🐈.jpg",
    "100%.jpg",
    "50%25 off.jpg",
    "day=2024-01-01/part=0.parquet",
    "it's.jpg",
    'say "hi".jpg',
    "plus+amp&question?hash#.jpg",
    "back\\slash.jpg",
    "<tag>.jpg",
]


Connect = Callable[..., s3fs.S3FileSystem]


class S3Server(Protocol):
    @property
    def endpoint(self) -> str: ...
    @property
    def environment(self) -> dict[str, str]: ...


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with local_s3() as server:
        yield server


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    with swift_server(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(params=["moto", "swift"])
def server(request: pytest.FixtureRequest) -> S3Server:
    chosen: S3Server = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """A function that opens a server as the product does: all of the address in the environment."""

    def open_file_system(server: S3Server, **options: object) -> s3fs.S3FileSystem:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # s3fs hands out an earlier instance when the options are the same, whatever the environment says now.
        s3fs.S3FileSystem.clear_instance_cache()
        return s3fs.S3FileSystem(**options)

    yield open_file_system
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(server: S3Server, connect: Connect, request: pytest.FixtureRequest) -> str:
    name = str(request.node.name).split("[")[0].replace("_", "-")[:60].strip("-")
    connect(server).mkdir(name)
    return name


def test_objects_of_every_name_are_written_listed_read_and_deleted(
    server: S3Server, connect: Connect, bucket: str
) -> None:
    files = connect(server)
    paths = [f"{bucket}/images/{name}" for name in NAMES]
    for path in paths:
        files.pipe_file(path, path.encode())

    fresh = connect(server)
    assert sorted(fresh.find(f"{bucket}/images")) == sorted(paths)
    assert {path: fresh.cat_file(path).decode() for path in paths} == {path: path for path in paths}
    assert fresh.info(paths[0])["size"] == len(paths[0].encode())

    for path in paths:
        fresh.rm_file(path)
    assert connect(server).find(bucket) == []


def test_an_upload_in_several_parts_arrives_whole(server: S3Server, connect: Connect, bucket: str) -> None:
    content = os.urandom(MIB) * 12
    files = connect(server)
    with files.open(f"{bucket}/large.bin", "wb", block_size=5 * MIB) as stream:
        stream.write(content)
        parts_before_the_end = len(stream.parts)

    assert parts_before_the_end > 0
    assert connect(server).cat_file(f"{bucket}/large.bin") == content


def test_64_mib_in_one_request_arrive_whole(server: S3Server, connect: Connect, bucket: str) -> None:
    content = os.urandom(MIB) * 64
    connect(server).pipe_file(f"{bucket}/large.bin", content, chunksize=64 * MIB)

    assert connect(server).cat_file(f"{bucket}/large.bin") == content


@pytest.mark.parametrize("operation", ["find", "ls", "info"])
def test_a_missing_bucket_is_reported_as_a_missing_file(server: S3Server, connect: Connect, operation: str) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(connect(server), operation)("no-such-bucket")


def test_writing_into_a_missing_bucket_is_reported_as_a_missing_file(server: S3Server, connect: Connect) -> None:
    with pytest.raises(FileNotFoundError):
        connect(server).pipe_file("no-such-bucket/a.txt", b"a")


@pytest.mark.parametrize("operation", ["find", "ls", "info"])
def test_swift_refuses_a_wrong_secret(swift: SwiftServer, connect: Connect, operation: str) -> None:
    connect(swift).mkdir(f"guarded-{operation}")
    stranger = connect(swift, key=swift.environment["AWS_ACCESS_KEY_ID"], secret="wrong")
    with pytest.raises(PermissionError):
        getattr(stranger, operation)(f"guarded-{operation}")
    with pytest.raises(PermissionError):
        stranger.pipe_file(f"guarded-{operation}/a.txt", b"a")


def test_moto_accepts_any_secret_so_it_proves_nothing_about_access(moto: S3Server, connect: Connect) -> None:
    connect(moto).mkdir("open-to-all")
    assert connect(moto, key="anyone", secret="anything").ls("open-to-all") == []


def test_the_environment_leads_past_settings_for_another_account(
    moto: S3Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://203.0.113.1:9000")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-users-own-session")
    monkeypatch.setenv("http_proxy", "http://203.0.113.1:3128")
    files = connect(moto, config_kwargs={"connect_timeout": 2, "retries": {"max_attempts": 0}})
    assert files.ls("") is not None


def test_two_servers_at_once_have_their_own_buckets(moto: S3Server, connect: Connect) -> None:
    connect(moto).mkdir("of-the-first")
    with local_s3() as second:
        assert second.endpoint != moto.endpoint
        assert connect(second).ls("") == []


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", "raise SystemExit('the disk is on fire')"]
    server = ServerProcess("the server", command, f"http://{LOOPBACK}:{port}/", tmp_path / "server.log")
    server.start()
    with pytest.raises(RuntimeError, match=r"the server ended with status 1 before(.|\n)*the disk is on fire"):
        server.wait_until_it_answers()
    server.stop()


def test_a_server_that_never_answers_is_reported_and_can_be_stopped(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-uc", "import time; print('still thinking'); time.sleep(600)"]
    server = ServerProcess("the server", command, f"http://{LOOPBACK}:{port}/", tmp_path / "server.log")
    server.start()
    with pytest.raises(RuntimeError, match=r"the server did not answer within 1 s(.|\n)*still thinking"):
        server.wait_until_it_answers(seconds=1)
    server.stop()
    assert processes_with("still thinking") == []


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    marker = f"deaf-{os.getpid()}"
    program = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{marker}'); time.sleep(600)"
    log = tmp_path / "server.log"
    server = ServerProcess("the server", [sys.executable, "-uc", program], f"http://{LOOPBACK}:1/", log)
    server.start()
    assert comes_true(lambda: marker in log.read_text())
    server.stop()
    assert processes_with(marker) == []


@pytest.mark.parametrize("start", [local_s3, swift_server], ids=["moto", "swift"])
def test_no_process_is_left_when_the_block_raises(
    start: Callable[[Path], contextlib.AbstractContextManager[S3Server]], tmp_path: Path
) -> None:
    ports = []

    def use_it_and_fail() -> None:
        with start(tmp_path) as server:
            ports.append(server.endpoint.rpartition(":")[2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_it_and_fail()
    assert processes_with(f"-p {ports[0]}") == []
    assert processes_with(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("module", "function"),
    [("pipeline.demo.local_s3", "local_s3"), ("tests.swift", "swift_server")],
    ids=["moto", "swift"],
)
def test_no_process_is_left_when_the_owner_is_killed(module: str, function: str, tmp_path: Path) -> None:
    # Started in a thread that ends: some ways of tying a child to its parent tie it to the thread.
    program = f"""
import pathlib, threading, time
from {module} import {function}
def start():
    server = {function}(pathlib.Path({str(tmp_path)!r}))
    print(server.__enter__().endpoint, flush=True)
    kept.append(server)
kept = []
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with owner:
        assert owner.stdout is not None
        port = owner.stdout.readline().strip().rpartition(":")[2]
        # One look later: the thread that started the server is gone by now, the server must not be.
        time.sleep(0.3)
        marker = f"-p {port}" if function == "local_s3" else str(tmp_path / "proxy-server.conf")
        assert processes_with(marker)
        os.kill(owner.pid, signal.SIGKILL)
    assert comes_true(lambda: not processes_with(marker))
    assert comes_true(lambda: not processes_with(str(tmp_path)))


@pytest.mark.slow
def test_swift_keeps_what_it_acknowledged_through_a_sigkill(connect: Connect, tmp_path: Path) -> None:
    with swift_server(tmp_path) as swift:
        files = connect(swift)
        files.mkdir("durable")
        for number in range(20):
            files.pipe_file(f"durable/{number:02}", b"x" * number * 1000)
        swift.kill()
        assert processes_with(str(tmp_path)) == []
        swift.start()

        again = connect(swift)
        assert again.du("durable", total=False) == {f"durable/{number:02}": number * 1000 for number in range(20)}
        again.pipe_file("durable/after", b"the restart")

        swift.stop()
        swift.start()
        assert connect(swift).cat_file("durable/after") == b"the restart"


def test_swift_says_so_when_the_file_system_cannot_hold_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.setxattr", refuse)
    with pytest.raises(RuntimeError, match="extended attributes"), swift_server(tmp_path):
        pass


def processes_with(text: str) -> list[str]:
    """Command lines of the processes, other than this one, that contain `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command and int(folder.name) != os.getpid():
                found.append(command)
    return found


def comes_true(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return True
        time.sleep(0.05)
    return False
