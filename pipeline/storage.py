"""The one door to storage: every path and URI is opened here, and every storage fault explained here.

Endpoint, region and credentials of S3 come from the standard AWS environment (AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID, instance roles ...) and from nowhere else.
"""

import io
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import botocore.exceptions
import fsspec
import pyarrow.fs
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from pipeline.errors import UserError

# s3fs waits for minutes on an endpoint that hangs unless it is told otherwise; seconds.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 15
WRITE_TIMEOUT = 60
SLOWEST_UPLOAD = 1_000_000  # bytes a second
RETRIES = 3  # after the first try, with growing pauses
FETCHES = 16  # at once, from one process

NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
UNREACHABLE = (*NO_CREDENTIALS, botocore.exceptions.EndpointConnectionError)
# Hidden, so that no reader takes it for a part; reconcile removes what a kill leaves.
PARTIAL = ".partial-"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system of a path or URI, and the path inside it without a trailing slash.

    Raises UserError for a scheme that no installed package serves.
    """
    options: dict[str, Any] = {}
    if uri.startswith(("s3://", "s3a://")):
        config: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "retries": {"max_attempts": RETRIES, "mode": "standard"},
        }
        if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
            # Servers other than Amazon's seldom have a host name for each bucket.
            config["s3"] = {"addressing_style": "path"}
        options = {"config_kwargs": config, "use_listings_cache": False}
    try:
        # Not fsspec.core.url_to_fs, which takes "::" in a name for a chain of file systems.
        scheme = SCHEME.match(uri)
        kind = fsspec.get_filesystem_class(scheme[1] if scheme else "file")
        filesystem = kind(**options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{uri}: cannot be opened: {error}") from None
    path = kind._strip_protocol(uri)
    if isinstance(filesystem, LocalFileSystem):
        path = os.path.normpath(path)
    if isinstance(filesystem, S3FileSystem):
        filesystem.retries = 1  # botocore's are enough; s3fs would multiply them
    return filesystem, path.rstrip("/") or "/"


def join(uri: str, *parts: str) -> str:
    """`join("s3://bucket/a/", "b")` -> `s3://bucket/a/b`; works for plain paths too."""
    return posixpath.join(uri.rstrip("/") or "/", *parts)


def absolute(uri: str) -> str:
    """URI with its scheme: `photos` -> `file:///here/photos`; two spellings of a place become one."""
    filesystem, path = open_filesystem(uri)
    return filesystem.unstrip_protocol(path)


def read_bytes(uri: str) -> bytes:
    """Content of one file. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        return filesystem.cat_file(path)


def fetch(uris: list[str]) -> list[bytes | Exception]:
    """Contents of files of one file system, fetched concurrently; a failure stands in its file's place.

    Raises: UserError if storage cannot be reached at all, which says nothing about any one file.
    """
    if not uris:
        return []
    filesystem, _ = open_filesystem(uris[0])

    # One by one, since `filesystem.cat` of many takes names with * ? [ for patterns.
    def content(uri: str) -> bytes | Exception:
        try:
            return filesystem.cat_file(filesystem._strip_protocol(uri))
        except UNREACHABLE:
            raise
        except Exception as error:
            return error

    with ThreadPoolExecutor(FETCHES) as pool, explained(uris[0]):
        return list(pool.map(content, uris))


def failure_kind(error: Exception) -> str:
    """One word for a failed fetch, from a short list: NotFound, AccessDenied, Timeout, StorageError."""
    if isinstance(error, FileNotFoundError):
        return "NotFound"
    if isinstance(error, PermissionError):
        return "AccessDenied"
    timeouts = (TimeoutError, botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)
    return "Timeout" if isinstance(error, timeouts) else "StorageError"


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file so that a reader sees all of it or nothing. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if not isinstance(filesystem, LocalFileSystem):
            _put(filesystem, path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with _WholeFile(path) as file:
            file.write(content)


def _put(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write one object; an object store shows it when it is complete."""
    if isinstance(filesystem, AsyncFileSystem):
        # With a bound of our own: the read timeout does not hold while the server owes its "100 Continue".
        timeout = WRITE_TIMEOUT + len(content) / SLOWEST_UPLOAD
        sync(filesystem.loop, filesystem._pipe_file, path, content, timeout=timeout)
    else:
        filesystem.pipe_file(path, content)


def exists(uri: str) -> bool:
    """Whether a file or folder is there. Raises UserError where storage does not answer."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        return filesystem.exists(path)


def find(uri: str) -> dict[str, dict[str, Any]]:
    """All files below a folder (or the one file), by URI in name order, with fsspec's details.

    Empty if the folder is missing. Raises UserError, also where the bucket itself is missing.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        found = filesystem.find(path, detail=True)
    return {filesystem.unstrip_protocol(name): found[name] for name in sorted(found)}


def remove(uri: str) -> None:
    """Delete one file; one that is gone already is fine. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri), suppress(FileNotFoundError):
        filesystem.rm_file(path)  # `rm` takes names with * ? [ for patterns


def remove_folder(uri: str) -> None:
    """Delete a folder and all below it; one that is gone already is fine. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    for name in find(uri):
        remove(name)
    if isinstance(filesystem, LocalFileSystem):
        shutil.rmtree(path, ignore_errors=True)  # the empty folders that are left


def copy_files(source: str, target: str, names: Iterable[str]) -> None:
    """Copy files by name from one folder to another. Raises UserError."""
    for name in names:
        write_bytes(join(target, name), read_bytes(join(source, name)))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A folder on this machine with the files right in `uri`; for a local folder, that folder itself."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sceneparse-") as folder:
        with explained(uri):
            for name in filesystem.ls(path, detail=False):
                if filesystem.isfile(name):
                    filesystem.get_file(name, os.path.join(folder, posixpath.basename(name)))
        yield Path(folder)


class _WholeFile(io.BufferedWriter):
    """A local file that appears under its name when it is closed."""

    def __init__(self, path: str) -> None:
        self._path, self._is_whole = path, True
        handle, self._temporary = tempfile.mkstemp(prefix=PARTIAL, dir=os.path.dirname(path))
        super().__init__(io.FileIO(handle, "w"))

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._is_whole = kind is None
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
            super().close()
            os.chmod(self._temporary, 0o644)
            if self._is_whole:
                os.replace(self._temporary, self._path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


class _WholeFiles(LocalFileSystem):
    """Local files that appear when they are complete, as objects in a store do."""

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **options)
        self.makedirs(self._parent(path), exist_ok=True)
        return _WholeFile(path)


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same door for libraries that take a pyarrow file system; a kill leaves no half-written file."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        filesystem = _WholeFiles()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a storage fault inside the block into a UserError about `uri`."""
    try:
        yield
    except FileNotFoundError as error:
        bucket = uri.split("/")[2] if "://" in uri else None
        if bucket and "specified bucket" in str(error):
            raise UserError(f"{uri}: the bucket {bucket!r} does not exist; create it or correct the name") from error
        raise UserError(f"{uri}: not found; check the path") from error
    except PermissionError as error:
        raise UserError(
            f"{uri}: access denied ({_reason(error)}); check the AWS credentials in the environment, "
            "and that they may use this place"
        ) from error
    except NO_CREDENTIALS as error:
        raise UserError(
            f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or give the machine a role"
        ) from error
    except (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        OSError,
        TimeoutError,
    ) as error:
        raise UserError(f"{uri}: storage failed: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
