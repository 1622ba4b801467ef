"""Files that are read piece by piece, wherever they lie."""

import io
from collections.abc import Callable

from pipeline.storage import s3_objects
from pipeline.storage.s3_client import Connection
from pipeline.storage.s3_objects import Changed, Span


class RangeFile(io.RawIOBase):
    """A binary file of which any span of bytes can be read; every reading is a request, so ask for large ones.

    Args:
        size: bytes.
        etag: of the version that is read; None where there are none.
        fetch: returns the bytes of a span within the size.
        release: called when the file is closed.

    `failure` is what a reading last failed with, which tells a fault of storage from damage that a parser finds.
    """

    def __init__(
        self,
        size: int,
        etag: str | None,
        fetch: Callable[[Span], bytes],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.size, self.etag = size, etag
        self.failure: Exception | None = None
        self._fetch, self._release = fetch, release
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek: {base + offset} is before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of any bytes-like object
        if self.closed:
            raise ValueError("read of a closed file")
        end = min(self._position + len(buffer), self.size)
        if end <= self._position:
            return 0
        try:
            content = self._fetch(Span(self._position, end))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._release()
        super().close()


def object_file(uri: str, connection: Connection) -> RangeFile:
    """An object in S3, all of one version. Raises as objects.get does, and Changed when another takes its place."""
    _, size, etag = s3_objects.head(uri, connection)

    def fetch(span: Span) -> bytes:
        found = s3_objects.get(uri, connection, span)
        if found.etag != etag:
            raise Changed(f"changed while it was read: its ETag was {etag} and is {found.etag}")
        return found.content

    return RangeFile(size, etag, fetch)
