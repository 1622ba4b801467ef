"""In-memory file system that counts the bytes and requests that an object store would serve."""

import io
from datetime import UTC, datetime
from typing import Any

import fsspec


class CountedFiles(fsspec.AbstractFileSystem):
    """File system of files by name, `counted://NAME`. `bytes_read` and `reads` count since `start`."""

    protocol = "counted"
    cachable = False

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self._files = files
        self.bytes_read = self.reads = 0

    def start(self) -> None:
        self.bytes_read = self.reads = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name in self._files:
            return {"name": name, "size": len(self._files[name]), "type": "file"}
        if any(file.startswith(f"{name}/") for file in self._files):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = self._strip_protocol(path)
        prefix = f"{folder}/" if folder else ""
        below = {prefix + name.removeprefix(prefix).split("/")[0] for name in self._files if name.startswith(prefix)}
        return [self.info(name) for name in sorted(below)] if detail else sorted(below)

    def modified(self, path: str) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)  # DuckDB calls this

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "CountedFile":
        assert mode == "rb", mode
        return CountedFile(self._files[self._strip_protocol(path)], self)


class CountedFile(io.BytesIO):
    def __init__(self, content: bytes, counter: CountedFiles) -> None:
        super().__init__(content)
        self._counter = counter
        self.size = len(content)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self._count(len(content))
        return content

    def readinto(self, buffer: Any) -> int:
        read = super().readinto(buffer)
        self._count(read)
        return read

    def _count(self, read: int) -> None:
        self._counter.bytes_read += read
        self._counter.reads += 1
