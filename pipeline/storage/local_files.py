"""Files on this machine: listed in name order, and written so that they appear whole, as objects in a store do."""

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

# Hidden, so that no reader takes it for a part; reconcile removes what a kill leaves.
PARTIAL = ".partial-"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems say that have none


def read(uri: str, is_wanted: Callable[[int], bool] | None = None) -> Fetched:
    """A file with all its bytes. Raises OSError; Refused where they are not wanted, so many as they are."""
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
    """Path of what is a file. Raises OSError."""
    path = LocalFileSystem._strip_protocol(uri)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file")  # a pipe would keep its reader waiting
    return path


def files_below(path: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[ListedFile]:
    """Files of a folder on this machine, links followed; `above` are the folders around it, by device and inode."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            yield ListedFile(_local_uri(path), 0, None)  # points nowhere: reading it will say so
        return
    if stat.S_ISREG(found.st_mode):
        yield ListedFile(_local_uri(path), found.st_size, None)
    # A link to a folder around it leads to the same files for ever. What is no file, as a pipe, has no content.
    if not stat.S_ISDIR(found.st_mode) or (found.st_dev, found.st_ino) in above:
        return
    with os.scandir(path) as entries:
        # With the slash that their files have, so that "b-1" comes before "b/1".
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.startswith(PARTIAL))
    for name in names:
        yield from files_below(os.path.join(path, name.rstrip("/")), (*above, (found.st_dev, found.st_ino)))


def _local_uri(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r} is not a name in UTF-8, which tables need; rename it") from None
    return f"file://{path}"


class WholeFile(io.BufferedWriter):
    """A local file that appears under its name when it is closed."""

    def __init__(self, path: str) -> None:
        self._path, self._is_whole = path, True
        self._temporary = os.path.join(os.path.dirname(path), PARTIAL + secrets.token_hex(8))
        handle = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less what the umask takes away
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
                super().close()  # on a full disk, too, where the open file would keep its space
            if self._is_whole:
                os.replace(self._temporary, self._path)
                _sync(os.path.dirname(self._path))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


def create(path: str, content: bytes) -> bool:
    """Write a file that is not there yet, so that it appears whole; False where it is."""
    temporary = os.path.join(os.path.dirname(path), PARTIAL + secrets.token_hex(8))
    try:
        with WholeFile(temporary) as file:
            file.write(content)
        try:
            os.link(temporary, path)  # refused where the name is taken, as a rename is not
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
    """Write a folder's names to the disk, so that a file that was renamed there has its name after a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call
            raise
    finally:
        os.close(handle)


class WholeFiles(LocalFileSystem):
    """Local files that appear when they are complete, as objects in a store do."""

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **options)
        self.makedirs(self._parent(path), exist_ok=True)
        return WholeFile(path)
