"""Local files: listed in name order, and written atomically, like objects in an object store."""

import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError
from pipeline.storage.range_file import RangeFile
from pipeline.storage.s3_objects import Fetched, ListedFile, Refused

# Hidden, so that readers do not take it for a part. Reconciling an output removes those that killed processes leave.
PARTIAL = ".partial-"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # from file systems without hard links


def read(uri: str, is_wanted: Callable[[int], bool] | None = None) -> Fetched:
    """Read a whole file. Raises OSError, or Refused if `is_wanted` returns False for its size in bytes."""
    with open(_regular(uri), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if is_wanted and not is_wanted(size):
            raise Refused(size)
        return Fetched(file.read(), None)


def open_file(uri: str) -> RangeFile:
    handle = os.open(_regular(uri), os.O_RDONLY)
    return RangeFile(
        os.fstat(handle).st_size,
        None,
        lambda span: os.pread(handle, span.end - span.start, span.start),
        lambda: os.close(handle),
    )


def _regular(uri: str) -> str:
    """Return the path of a URI. Raises OSError if it is not a regular file."""
    path = LocalFileSystem._strip_protocol(uri)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file")  # reading a pipe would block
    return path


def files_below(path: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[ListedFile]:
    """Yield the files below a local folder, following links. `above` has the (device, inode) of its parent folders."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            yield ListedFile(_local_uri(path), 0, None)  # broken link: reading it reports the error
        return
    if stat.S_ISREG(found.st_mode):
        yield ListedFile(_local_uri(path), found.st_size, None)
    # A link to a parent folder would recurse forever. Special files such as pipes have no content.
    if not stat.S_ISDIR(found.st_mode) or (found.st_dev, found.st_ino) in above:
        return
    with os.scandir(path) as entries:
        # Sort folders with a trailing slash, so that "b-1" comes before "b/1".
        names = sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in entries
            if not entry.name.startswith(PARTIAL)
        )
    for name in names:
        yield from files_below(os.path.join(path, name.rstrip("/")), (*above, (found.st_dev, found.st_ino)))


def _local_uri(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r} is not valid UTF-8, which tables require; rename the file") from None
    return f"file://{path}"


class WholeFile(io.BufferedWriter):
    """Local file that appears under its name only when it is closed."""

    def __init__(self, path: str) -> None:
        self._path, self._is_whole = path, True
        self._temporary = os.path.join(os.path.dirname(path), PARTIAL + secrets.token_hex(8))
        handle = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # minus the umask
        super().__init__(io.FileIO(handle, "w"))

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._is_whole = kind is None
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            try:
                self.flush()
                os.fsync(self.fileno())
            finally:
                super().close()  # also on a full disk, because an open file would keep its space
            if self._is_whole:
                os.replace(self._temporary, self._path)
                _sync(os.path.dirname(self._path))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


def create(path: str, content: bytes) -> bool:
    """Create a file atomically. Return False if it exists already."""
    temporary = os.path.join(os.path.dirname(path), PARTIAL + secrets.token_hex(8))
    try:
        with WholeFile(temporary) as file:
            file.write(content)
        try:
            os.link(temporary, path)  # unlike a rename, fails if the name exists
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with open(path, "xb") as target:
                target.write(content)
        _sync(os.path.dirname(path))
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    return True


def _sync(folder: str) -> None:
    """Sync a folder to the disk, so that a file renamed in it keeps its name after a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not support it
            raise
    finally:
        os.close(handle)


class WholeFiles(LocalFileSystem):
    """Local file system whose files appear only when they are complete, like objects in an object store."""

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **options)
        self.makedirs(self._parent(path), exist_ok=True)
        return WholeFile(path)
