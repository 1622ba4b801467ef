"""Images on web servers: read as they are, and no redirect leads to another host."""

import threading
from collections.abc import Iterator
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

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}", asked
        server.shutdown()
        thread.join()


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
