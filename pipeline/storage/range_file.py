"""File objects that read byte ranges from any storage."""

import io
from collections.abc import Callable

from pipeline.storage import s3_objects
from pipeline.storage.s3_client import Connection
from pipeline.storage.s3_objects import Changed, Span


class RangeFile(io.RawIOBase):
    """Seekable binary file that fetches byte ranges on demand. Each read is one request, so read large pieces.

    Args:
        size: bytes.
        etag: of the version that is read; None if the storage has no ETags.
        fetch: returns the bytes of a span within the size.
        release: called when the file is closed.

    `failure` is the exception of the last failed read. It distinguishes storage errors from damage that a parser
    detects.
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
            if len(content) > end - self._position:
                raise OSError("the server ignores byte ranges and sends the whole file; copy it to a disk or a bucket")
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
    """Open an object in S3 for reading. Raises like s3_objects.get, and Changed if it is overwritten meanwhile."""
    _, size, etag = s3_objects.head(uri, connection)
    assert size is not None, uri

    def fetch(span: Span) -> bytes:
        found = s3_objects.get(uri, connection, span)
        if found.etag != etag:
            raise Changed(f"changed while it was read: the ETag was {etag} and is now {found.etag}")
        return found.content

    return RangeFile(size, etag, fetch)
