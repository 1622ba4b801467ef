"""Images on web servers: read as they are, and no redirect leads to another host."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline import storage
from pipeline.demo.server_process import LOOPBACK
from pipeline.errors import UserError

CONTENT = b"0123456789" * 100


@contextmanager
def web_server(redirects: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for. `redirects`: path -> where it leads."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            self._answer(CONTENT[int(first) : int(last) + 1 if last else None])

        def _answer(self, body: bytes) -> None:
            asked.append(self.path)
            if self.path in redirects:
                self.send_response(302)
                self.send_header("Location", redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body) if self.command == "GET" else len(CONTENT)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as address:
        yield address, asked


def test_a_file_is_read_whole_and_in_spans() -> None:
    with web_server({}) as (address, _):
        uri = f"{address}/a.jpg"
        assert storage.fetch_objects([uri]) == [storage.Fetched(CONTENT, None)]
        with storage.open_file(uri) as file:
            file.seek(100)
            assert file.read(30) == CONTENT[100:130]


def test_a_server_may_redirect_within_itself() -> None:
    with web_server({"/a.jpg": "/b/a.jpg", "/b/a.jpg": "../c.jpg"}) as (address, asked):
        assert storage.read_bytes(f"{address}/a.jpg") == CONTENT
        assert asked == ["/a.jpg", "/b/a.jpg", "/c.jpg"]


@pytest.mark.parametrize("through", ["fetch", "read", "open", "size"])
def test_no_other_host_is_asked_on_a_servers_word(through: str) -> None:
    """As the metadata service of a cloud, which has credentials to give, to whoever asks from inside."""
    with web_server({}) as (inside, asked), web_server({"/a.jpg": f"{inside}/keys?X-Amz-Signature=hush"}) as (out, _):
        uri = f"{out}/a.jpg"
        match through:
            case "fetch" | "size":
                wanted = (lambda size: True) if through == "size" else None
                (found,) = storage.fetch_objects([uri], wanted)
                assert isinstance(found, OSError)
                assert storage.failure_kind(found) == "StorageError"
                said = storage.reason(found)
            case _:
                with pytest.raises(UserError) as caught:
                    storage.read_bytes(uri) if through == "read" else storage.open_file(uri)
                said = str(caught.value)
        assert f"redirects to {inside}, and redirects to other hosts are not followed" in said
        assert "hush" not in said
        assert asked == []


class Answer(BaseHTTPRequestHandler):
    """Handler that answers each request with `status`, or with all of CONTENT, even if a range is requested."""

    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yield the address of a server."""
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("read", [storage.read_bytes, storage.open_file, storage.find])
@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (401, "access denied (401, message='Unauthorized'"),
        (403, "access denied (403, message='Forbidden'"),
        (500, "storage failed: 500, message='Internal Server Error'"),
    ],
)
def test_a_refusal_of_a_web_server_is_one_sentence(status: int, problem: str, read: Callable[[str], object]) -> None:
    with answering(type("Refusal", (Answer,), {"status": status})) as address, pytest.raises(UserError) as caught:
        read(f"{address}/a.jpg")
    assert str(caught.value).startswith(f"{address}/a.jpg: {problem}")


def test_a_file_of_a_web_server_without_byte_ranges_is_read_whole_or_refused() -> None:
    with answering(Answer) as address:
        uri = f"{address}/a.jpg"
        assert list(storage.listed(uri)) == [[storage.ListedFile(uri, None, None)]]
        assert storage.read_bytes(uri) == CONTENT
        with pytest.raises(UserError, match="the server ignores byte ranges"), storage.explained(uri):
            storage.open_file(uri).read(10)


# Hugging Face


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server in place of the hub."""
    from huggingface_hub import HfFileSystem, constants

    HfFileSystem.clear_instance_cache()
    with answering(type("Refusal", (Answer,), {"status": 404})) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address
    HfFileSystem.clear_instance_cache()


def test_a_missing_data_set_of_hugging_face_is_named_with_the_token(hub: str) -> None:
    uri = "hf://datasets/owner/name/data/train.parquet"
    with pytest.raises(UserError) as caught:
        storage.find(uri)
    assert str(caught.value) == f"{uri}: not found; check the path, and set HF_TOKEN if it is private"


def test_an_error_that_only_a_client_library_defines_is_one_sentence(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://{LOOPBACK}:1")
    for uri, problem in (("hf://datasets/owner/other/a", "Connection refused"), ("hf://a", "Repository id must be")):
        with pytest.raises(UserError, match=rf"{uri}: storage failed: .*{problem}"):
            storage.read_bytes(uri)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("gs://bucket/a", "gs:// needs another package, here and on each node: pip install gcsfs"),
        ("az://container/a", "az:// needs another package, here and on each node: pip install adlfs"),
        ("sftp://host/a", "sftp:// needs another package"),
        ("ftp://host/a", "servers of ftp:// are not supported"),
        ("nope://host/a", "Protocol not known: nope"),
    ],
)
def test_a_scheme_that_cannot_be_opened_is_explained(uri: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        storage.open_filesystem(uri)
    assert problem in str(caught.value)


def test_a_bug_inside_an_explained_block_keeps_its_traceback() -> None:
    with pytest.raises(AttributeError), storage.explained("gs://bucket/a"):
        storage.join(None)  # type: ignore[arg-type]
