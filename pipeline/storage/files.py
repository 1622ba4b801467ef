"""The one door to storage: every path and URI is opened here, and every storage fault explained here.

Endpoint, region and credentials of S3 come from the standard AWS environment (AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID, instance roles ...) and from nowhere else.
"""

import errno
import io
import os
import posixpath
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import botocore.exceptions
import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError
from pipeline.storage import local_files, s3_client, s3_objects, web
from pipeline.storage.range_file import RangeFile, object_file
from pipeline.storage.s3_objects import Fetched as Fetched
from pipeline.storage.s3_objects import ListedFile as ListedFile
from pipeline.storage.s3_objects import Refused as Refused
from pipeline.url_credentials import credentials_refusal, masked

WRITE_TIMEOUT = 60  # seconds, and what the bytes take
SLOWEST_UPLOAD = 1_000_000  # bytes a second
STREAM_BUFFER = 1 << 22  # bytes of one request
FETCHES = s3_client.CONNECTIONS  # at once, from one process

NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
# No fault of any one file.
UNREACHABLE = (
    *NO_CREDENTIALS,
    botocore.exceptions.EndpointConnectionError,
    s3_objects.Unreachable,
)
STORAGE_ERRORS = {
    "NotFound": "no file of this name, or it was removed since it was listed",
    "AccessDenied": "the credentials may not read it",
    "Timeout": "it did not come in time, in several tries",
    "Truncated": "fewer bytes came than were announced, in several tries",
    "StorageError": "anything else that storage says, such as errors on its side that lasted",
}
# Answers of S3 where an object is there already, and where several are created at the very same time.
REFUSED_TO_CREATE = ("PreconditionFailed", "ConditionalRequestConflict")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
PARTIAL = local_files.PARTIAL
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
S3_SCHEMES = ("s3://", "s3a://")


def open_filesystem(uri: str, snapshot: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system of a path or URI, and the path inside it without a trailing slash.

    Args:
        snapshot: whether it lists each folder of a bucket once and for all, for many readings of the same files.

    Raises UserError for a scheme that no installed package serves, and for credentials in the URI.
    """
    _check_no_credentials(uri)
    options: dict[str, Any] = {"skip_instance_cache": True} if snapshot else {}
    if uri.startswith(S3_SCHEMES):
        options |= {"config_kwargs": s3_client.client_config(), "use_listings_cache": snapshot}
    if uri.startswith(web.SCHEMES):
        options |= {"client_kwargs": web.client_options()}
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
    if _is_s3(filesystem):
        filesystem.retries = 1  # botocore's are enough; s3fs would multiply them
    return filesystem, path.rstrip("/") or "/"


def _check_no_credentials(uri: str) -> None:
    if refusal := credentials_refusal(uri):
        raise UserError(f"{masked(uri)}: {refusal}")


def _is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "s3" in filesystem.protocol  # s3fs is imported where it is used alone: that takes a fifth of a second


def join(uri: str, *parts: str) -> str:
    """`join("s3://bucket/a/", "b")` -> `s3://bucket/a/b`; works for plain paths too."""
    return posixpath.join(uri.rstrip("/") or "/", *parts)


def absolute(uri: str) -> str:
    """URI with its scheme: `photos` -> `file:///here/photos`; two spellings of a place become one."""
    filesystem, path = open_filesystem(uri)
    return filesystem.unstrip_protocol(path)


def read_bytes(uri: str) -> bytes:
    """Content of one file. Raises UserError."""
    with explained(uri):
        return _reader(uri)(uri).content


def fetch_objects(uris: list[str], is_wanted: Callable[[int], bool] | None = None) -> list[Fetched | Exception]:
    """Contents of files with their ETags, fetched concurrently; a failure stands in its file's place.

    Args:
        is_wanted: asked with a file's bytes before they are read, from several threads; those that are not wanted
            are Refused.

    Raises: UserError if storage cannot be reached at all, which says nothing about any one file.
    """
    # Looked up once: every look at the environment costs a tenth of a small object's time.
    readers: dict[str, Callable[[str], Fetched]] = {}

    given_up = threading.Event()

    def fetched(uri: str) -> Fetched | Exception:
        if given_up.is_set():  # else a thread would take up the next file, and wait for it as long
            raise CancelledError
        try:
            return readers[_scheme(uri)](uri)
        except UNREACHABLE:
            given_up.set()
            raise
        except Exception as error:
            return error.with_traceback(None)  # which would keep an open answer

    with ExitStack() as at_exit:
        for uri in uris:
            if _scheme(uri) not in readers:
                with explained(uri):
                    readers[_scheme(uri)] = _reader(uri, is_wanted)
        pool = ThreadPoolExecutor(min(FETCHES, max(len(uris), 1)))
        at_exit.callback(pool.shutdown, cancel_futures=True)
        results = []
        for uri, future in [(uri, pool.submit(fetched, uri)) for uri in uris]:
            with explained(uri):
                results.append(future.result())
        return results


def fetch(uris: list[str]) -> list[bytes | Exception]:
    """`fetch_objects` without the ETags."""
    return [found.content if isinstance(found, Fetched) else found for found in fetch_objects(uris)]


def _scheme(uri: str) -> str:
    found = SCHEME.match(uri)
    return found[1] if found else "file"


def _reader(uri: str, is_wanted: Callable[[int], bool] | None = None) -> Callable[[str], Fetched]:
    """What reads the files of a URI's scheme. Raises UserError for a scheme that no installed package serves."""
    if uri.startswith(S3_SCHEMES):
        _check_no_credentials(uri)  # as open_filesystem does for the others
        connection = s3_client.current()
        return lambda name: s3_objects.get(name, connection, is_wanted=is_wanted)
    filesystem, _ = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        return lambda name: local_files.read(name, is_wanted)

    def read(name: str) -> Fetched:
        path = filesystem._strip_protocol(name)
        if is_wanted:
            size = None
            with suppress(FileNotFoundError):  # a web server may not tell, which fsspec calls so: then it is read
                size = filesystem.size(path)
            if size is not None and not is_wanted(size):
                raise Refused(size)
        # One by one, since `filesystem.cat` of many takes names with * ? [ for patterns.
        return Fetched(filesystem.cat_file(path), None)

    return read


def open_file(uri: str) -> RangeFile:
    """A file to be read span by span. Raises UserError; its reading raises the library's own errors."""
    with explained(uri):
        if uri.startswith(S3_SCHEMES):
            _check_no_credentials(uri)
            return object_file(uri, s3_client.current())
        filesystem, path = open_filesystem(uri)
        if isinstance(filesystem, LocalFileSystem):
            return local_files.open_file(uri)
        # By keywords: s3fs and gcsfs have another argument second.
        return RangeFile(
            filesystem.size(path), None, lambda span: filesystem.cat_file(path, start=span.start, end=span.end)
        )


def open_stream(uri: str) -> pa.NativeFile:
    """A file to be read from its start to its end, decompressed if its name says so; raises as `open_file` does."""
    file = io.BufferedReader(open_file(uri), STREAM_BUFFER)
    return pa.input_stream(file, compression=COMPRESSIONS.get(posixpath.splitext(uri)[1].lower()))


def failure_kind(error: Exception) -> str:
    """One word for a failed fetch, of STORAGE_ERRORS."""
    if isinstance(error, FileNotFoundError):
        return "NotFound"
    if isinstance(error, PermissionError):
        return "AccessDenied"
    if isinstance(error, s3_objects.Truncated):
        return "Truncated"
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
        with local_files.WholeFile(path) as file:
            file.write(content)


def create_bytes(uri: str, content: bytes) -> bool:
    """Write one small file that is not there yet, whole or not at all; False where it is. Raises UserError.

    Of several writers one succeeds, on disks and on stores that know the condition (Amazon S3, MinIO; others as far as
    their package for fsspec passes it on). OpenStack Swift lets two succeed at the very same moment; older stores
    ignore the condition, so that a second call always succeeds.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if isinstance(filesystem, LocalFileSystem):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return local_files.create(path, content)
        try:
            _put(filesystem, path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs knows Amazon's answer alone.
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code not in REFUSED_TO_CREATE:
                raise
            return False
    return True


def write_file(uri: str, source: Path) -> None:
    """Write a file of this machine, of any size, as `write_bytes` writes bytes. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.put_file(str(source), path)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with local_files.WholeFile(path) as target, open(source, "rb") as content:
            shutil.copyfileobj(content, target)


def write_seconds(num_bytes: int) -> float:
    """How long the writing of a file may take, all tries together, seconds."""
    return WRITE_TIMEOUT + num_bytes / SLOWEST_UPLOAD


def _put(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes, **options: str) -> None:
    """Write one object, with options of fsspec's `pipe_file`; an object store shows it when it is complete."""
    if isinstance(filesystem, AsyncFileSystem):
        # With a bound of our own: the read timeout does not hold while the server owes its "100 Continue".
        timeout = write_seconds(len(content))
        # Without it a browser would save a report instead of showing it.
        is_page = _is_s3(filesystem) and path.endswith(".html")
        options |= {"ContentType": "text/html"} if is_page else {}
        sync(filesystem.loop, filesystem._pipe_file, path, content, timeout=timeout, **options)
    else:
        filesystem.pipe_file(path, content, **options)


def is_local(uri: str) -> bool:
    """Whether it is a file of this machine."""
    return isinstance(open_filesystem(uri)[0], LocalFileSystem)


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


def listed(uri: str) -> Iterator[list[ListedFile]]:
    """Every file below a prefix (or the one file), in name order, in pages of at most objects.PAGE, as they come.

    Markers of folders and partial files are left out. Nothing if the folder is missing; a folder on a disk is held
    in memory with those above it. Raises: UserError, also where the bucket itself is missing.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if _is_s3(filesystem):
            if path == "/":
                raise UserError(f"{uri}: names no bucket; give s3://BUCKET or s3://BUCKET/PREFIX")
            yield from s3_objects.pages(f"s3://{path}")
            return
        files = local_files.files_below(path) if isinstance(filesystem, LocalFileSystem) else _found_files(uri)
        while page := list(islice(files, s3_objects.PAGE)):
            yield page


def _found_files(uri: str) -> Iterator[ListedFile]:
    for name, info in find(uri).items():
        if not name.endswith("/"):
            yield ListedFile(name, info["size"], None)


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


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same door for libraries that take a pyarrow file system; a kill leaves no half-written file."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        filesystem = local_files.WholeFiles()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a storage fault inside the block into a UserError about `uri`."""
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error.__cause__, web.Redirected):  # which fsspec calls so when it asks for the size
            raise UserError(f"{uri}: storage failed: {error.__cause__}") from error
        bucket = uri.split("/")[2] if "://" in uri else None
        if bucket and "specified bucket" in str(error):
            raise UserError(f"{uri}: the bucket {bucket!r} does not exist; create it or correct the name") from error
        raise UserError(f"{uri}: not found; check the path") from error
    except PermissionError as error:
        raise UserError(
            f"{uri}: access denied ({reason(error)}); check the AWS credentials in the environment, "
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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{uri}: no space is left to write it ({reason(error)}); make room there and run the same command "
                "again, which goes on from what is done"
            ) from error
        raise UserError(f"{uri}: storage failed: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why, in words: some errors have none but their name. Addresses in it show no credentials."""
    return masked(str(error).strip()) or type(error).__name__
