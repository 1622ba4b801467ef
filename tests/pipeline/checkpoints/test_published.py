"""Download of published weights from a server on this machine, with every fault that a user meets."""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.checkpoints import published
from pipeline.checkpoints.published import PublishedWeights, downloaded, find, is_name, published_weights
from pipeline.errors import UserError
from tests.in_process import REPOSITORY

CONTENT = bytes(range(256)) * 20_000  # several chunks


@dataclass
class Server:
    """HTTP server of one file; `stop_after` bytes it closes the connection, once."""

    address: str = ""
    stop_after: int | None = None
    ranges: bool = True
    status: int = 200
    starts: list[int] = field(default_factory=list)  # first byte of each answer

    def weights(self, content: bytes = CONTENT) -> PublishedWeights:
        name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        return PublishedWeights("net", "VOC", "MIT", f"{self.address}/{name}", None, None, None)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if state.status != 200:
                self.send_error(state.status)
                return
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked and state.ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            state.starts.append(start)
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end, state.stop_after = state.stop_after, None
            self.wfile.write(CONTENT[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        state.address = f"http://127.0.0.1:{http.server_address[1]}"
        yield state
        http.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = downloaded(server.weights(), tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert f"Downloading {server.address}/net-" in capsys.readouterr().out
    assert downloaded(server.weights(), tmp_path / "cache") == path
    assert "downloaded before" in capsys.readouterr().out
    assert server.starts == [0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_progress_is_printed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "SECONDS_BETWEEN_LINES", 0.0)
    downloaded(server.weights(), tmp_path)
    assert "  5 MB (100%)\n" in capsys.readouterr().out


def test_an_interrupted_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.stop_after = 2_000_000
    with pytest.raises(UserError, match=r"the download stopped at 2,000,000 bytes .*run the same command again"):
        downloaded(server.weights(), tmp_path)
    assert downloaded(server.weights(), tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 2_000_000]


def test_a_server_without_ranges_sends_the_whole_file_again(server: Server, tmp_path: Path) -> None:
    server.stop_after, server.ranges = 2_000_000, False
    with pytest.raises(UserError, match="the download stopped"):
        downloaded(server.weights(), tmp_path)
    assert downloaded(server.weights(), tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 0]


def test_a_complete_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    weights = server.weights()
    (tmp_path / f"{weights.file_name}.part").write_bytes(CONTENT)
    assert downloaded(weights, tmp_path).read_bytes() == CONTENT
    assert server.starts == []


def test_of_a_file_with_another_hash_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SHA-256 of the downloaded file does not begin with \w{8}.* nothing was kept"):
        downloaded(server.weights(b"another"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / server.weights().file_name).write_bytes(b"damaged")
    assert downloaded(server.weights(), tmp_path).read_bytes() == CONTENT


def test_a_server_that_refuses_is_quoted(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="the server answers 404 Not Found; download it where there is access, and"):
        downloaded(server.weights(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_file_can_be_imported_by_hand(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening, so that connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/net-00000000.pth"
        with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused\); .*import the file net-00000000.pth"):
            downloaded(replace(server.weights(), url=url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_name("mmseg-r50-voc")
    assert not any(map(is_name, ("net.pth", "a/net", "s3://bucket/net", "file:///net")))
    Path("mmseg-r50-voc").touch()
    assert not is_name("mmseg-r50-voc")


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UserError, match=r"source mmseg-r50-vok: no such file.*are mmseg-r50-voc, "):
        find("mmseg-r50-vok")
    with pytest.raises(UserError, match=r"those with a name are resnet18-imagenet, .*mmseg-r101-voc \(docs"):
        find("zzz")


def test_every_name_has_a_hash_and_a_row_in_the_documentation() -> None:
    page = (REPOSITORY / "docs/weights.md").read_text()
    for weights in published_weights().values():
        assert re.fullmatch("[0-9a-f]{8}", weights.sha256_start)
        miou = "" if weights.miou is None else f"{weights.miou:.2f} / {weights.miou_multi_scale:.2f}"
        cells = [f"[{weights.name}]({weights.url})", weights.data, miou, weights.license]
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in page


def test_a_relative_cache_folder_is_one_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCENEPARSE_CACHE", "cache")
    assert published.cache_folder() == tmp_path / "cache" / "weights"
