"""Reading, writing and listing of paths and URIs, and translation of storage errors to UserErrors.

Endpoint, region and credentials of S3 come only from the standard AWS environment (AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID, instance roles and so on).
"""

import errno
import io
import os
import posixpath
import shutil
import sys
import tempfile
import threading
import traceback
import unicodedata
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

from pipeline.config.uris import SCHEME as SCHEME
from pipeline.errors import UserError
from pipeline.storage import local_files, s3_client, s3_objects, web
from pipeline.storage.range_file import RangeFile, object_file
from pipeline.storage.s3_objects import Fetched as Fetched
from pipeline.storage.s3_objects import ListedFile as ListedFile
from pipeline.storage.s3_objects import Refused as Refused
from pipeline.url_credentials import credentials_refusal, masked

WRITE_TIMEOUT = 60  # seconds, plus the time for the bytes at SLOWEST_UPLOAD
SLOWEST_UPLOAD = 1_000_000  # bytes per second
STREAM_BUFFER = 1 << 22  # bytes per request
FETCHES = s3_client.CONNECTIONS  # concurrent fetches per process

NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
# Errors that concern the storage as a whole, not one file.
UNREACHABLE = (
    *NO_CREDENTIALS,
    botocore.exceptions.EndpointConnectionError,
    s3_objects.Unreachable,
)
STORAGE_ERRORS = {
    "NotFound": "the file does not exist, or was removed after it was listed",
    "AccessDenied": "the credentials do not allow reading the file",
    "Timeout": "the download timed out, even after retries",
    "Truncated": "the download ended before all bytes arrived, even after retries",
    "StorageError": "any other storage error, such as server errors that persisted after retries",
}
# S3 error codes if the object exists already, and if several clients create it at the same time.
REFUSED_TO_CREATE = ("PreconditionFailed", "ConditionalRequestConflict")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
PARTIAL = local_files.PARTIAL
# Packages of schemes that are not installed by default.
PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    "hf": "huggingface_hub",
}
S3_SCHEMES = ("s3://", "s3a://")


def open_filesystem(uri: str, snapshot: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URI, and the path inside it without a trailing slash.

    Args:
        snapshot: cache the listing of each folder of a bucket, for repeated reads of the same files.

    Raises: UserError if no installed package supports the scheme, or if the URI contains credentials.
    """
    _check_no_credentials(uri)
    options: dict[str, Any] = {"skip_instance_cache": True} if snapshot else {}
    if uri.startswith(S3_SCHEMES):
        options |= {"config_kwargs": s3_client.client_config(), "use_listings_cache": snapshot}
    if uri.startswith(web.SCHEMES):
        options |= {"client_kwargs": web.client_options()}
    scheme = _scheme(uri)
    try:
        # Not fsspec.core.url_to_fs, which interprets "::" in a name as a chain of file systems.
        kind = fsspec.get_filesystem_class(scheme)
        if "host" in kind._get_kwargs_from_urls(uri):
            raise UserError(f"{uri}: servers of {scheme}:// are not supported; copy the files to a disk or a bucket")
        filesystem = kind(**options)
    except ImportError as error:
        install = f"pip install {PACKAGES[scheme]}" if scheme in PACKAGES else str(error)
        raise UserError(
            f"{uri}: cannot be opened: {scheme}:// needs another package, here and on each node: {install}"
        ) from None
    except ValueError as error:
        raise UserError(f"{uri}: cannot be opened: {error}") from None
    path = kind._strip_protocol(uri)
    if isinstance(filesystem, LocalFileSystem):
        path = os.path.normpath(path)
    if _is_s3(filesystem):
        filesystem.retries = 1  # botocore retries already; s3fs would multiply its retries
    return filesystem, path.rstrip("/") or "/"


def _check_no_credentials(uri: str) -> None:
    if refusal := credentials_refusal(uri):
        raise UserError(f"{masked(uri)}: {refusal}")


def _is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "s3" in filesystem.protocol  # not isinstance: importing s3fs takes 0.2 s, so it is imported lazily


def join(uri: str, *parts: str) -> str:
    """Join path components to a URI or path: `join("s3://bucket/a/", "b")` -> `s3://bucket/a/b`."""
    return posixpath.join(uri.rstrip("/") or "/", *parts)


def absolute(uri: str) -> str:
    """Return the absolute, normalized URI: `photos` -> `file:///here/photos`."""
    filesystem, path = open_filesystem(uri)
    return filesystem.unstrip_protocol(path)


def require(uri: str, setting: str) -> None:
    """Raise UserError if there is no file or folder at the URI that a setting names."""
    if not is_there(uri):
        raise UserError(f"{setting} {uri}: no such file or folder; check the path")


def is_there(uri: str) -> bool:
    """Return True if a file, a folder or, in a bucket, any name below a prefix exists.

    Unlike `exists`, it only lists a bucket: policies seldom allow to read a prefix as if it were an object.
    """
    return next(listed(uri), None) is not None if uri.startswith(S3_SCHEMES) else exists(uri)


def read_bytes(uri: str) -> bytes:
    """Return the content of one file. Raises UserError."""
    with explained(uri):
        return _reader(uri)(uri).content


def fetch_objects(uris: list[str], is_wanted: Callable[[int], bool] | None = None) -> list[Fetched | Exception]:
    """Fetch files concurrently. Return their contents and ETags, with an exception in place of each failed file.

    Args:
        is_wanted: called with the size of each file in bytes before its content is read, from several threads. If it
            returns False, the result of this file is Refused.

    Raises: UserError if storage cannot be reached at all, because then the files themselves may be fine.
    """
    # One reader per scheme, because inspecting the environment takes a tenth of the time of a small object.
    readers: dict[str, Callable[[str], Fetched]] = {}

    given_up = threading.Event()

    def fetched(uri: str) -> Fetched | Exception:
        if given_up.is_set():  # otherwise the thread would try the next file and wait for another timeout
            raise CancelledError
        try:
            return readers[_scheme(uri)](uri)
        except UNREACHABLE:
            given_up.set()
            raise
        except FileNotFoundError as error:
            other = _other_form(uri)
            return FileNotFoundError(other) if other else error.with_traceback(None)
        except Exception as error:
            return error.with_traceback(None)  # the traceback would keep the response open

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
    """Fetch files concurrently, as `fetch_objects` does, but return only their contents or exceptions."""
    return [found.content if isinstance(found, Fetched) else found for found in fetch_objects(uris)]


def _scheme(uri: str) -> str:
    found = SCHEME.match(uri)
    return found[1] if found else "file"


def _reader(uri: str, is_wanted: Callable[[int], bool] | None = None) -> Callable[[str], Fetched]:
    """Return a function that reads files of a URI's scheme. Raises UserError if no installed package supports it."""
    if uri.startswith(S3_SCHEMES):
        _check_no_credentials(uri)  # open_filesystem does this for the other schemes
        connection = s3_client.current()
        return lambda name: s3_objects.get(name, connection, is_wanted=is_wanted)
    filesystem, _ = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        return lambda name: local_files.read(name, is_wanted)

    def read(name: str) -> Fetched:
        path = filesystem._strip_protocol(name)
        if is_wanted:
            size = None
            # If a web server does not report the size, fsspec raises FileNotFoundError; then read the file anyway.
            with suppress(FileNotFoundError):
                size = filesystem.size(path)
            if size is not None and not is_wanted(size):
                raise Refused(size)
        # Not `filesystem.cat`, which treats names with * ? [ as patterns.
        return Fetched(filesystem.cat_file(path), None)

    return read


def open_file(uri: str) -> RangeFile:
    """Open a file for reading byte ranges. Raises UserError; reading raises the library's own errors."""
    with explained(uri):
        if uri.startswith(S3_SCHEMES):
            _check_no_credentials(uri)
            return object_file(uri, s3_client.current())
        filesystem, path = open_filesystem(uri)
        if isinstance(filesystem, LocalFileSystem):
            return local_files.open_file(uri)
        # Pass keywords, because the second positional argument differs in s3fs and gcsfs.
        return RangeFile(
            filesystem.size(path), None, lambda span: filesystem.cat_file(path, start=span.start, end=span.end)
        )


def open_stream(uri: str) -> pa.NativeFile:
    """Open a file for sequential reading, decompressed according to its extension. Raises like `open_file`."""
    file = io.BufferedReader(open_file(uri), STREAM_BUFFER)
    return pa.input_stream(file, compression=COMPRESSIONS.get(posixpath.splitext(uri)[1].lower()))


def failure_kind(error: Exception) -> str:
    """Return the key of STORAGE_ERRORS for the exception of a failed fetch."""
    if isinstance(error, FileNotFoundError) or _http_status(error) == 404:
        return "NotFound"
    if isinstance(error, PermissionError) or _http_status(error) in (401, 403):
        return "AccessDenied"
    if isinstance(error, s3_objects.Truncated):
        return "Truncated"
    timeouts = (TimeoutError, botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)
    return "Timeout" if isinstance(error, timeouts) else "StorageError"


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file atomically, so that readers see all of it or nothing. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if not isinstance(filesystem, LocalFileSystem):
            _put(filesystem, path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with local_files.WholeFile(path) as file:
            file.write(content)


def create_bytes(uri: str, content: bytes) -> bool:
    """Create one small file atomically. Return False if it exists already. Raises UserError.

    Of several concurrent writers, exactly one succeeds on disks and on stores with conditional writes (Amazon S3,
    MinIO, and others if their fsspec package passes the condition on). OpenStack Swift lets two writers succeed if
    they write at the same moment. Older stores ignore the condition, so a second call always succeeds there.
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
            # s3fs translates only Amazon's error code.
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code not in REFUSED_TO_CREATE:
                raise
            return False
    return True


def write_file(uri: str, source: Path) -> None:
    """Upload a local file of any size atomically, like `write_bytes`. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.put_file(str(source), path)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with local_files.WholeFile(path) as target, open(source, "rb") as content:
            shutil.copyfileobj(content, target)


def write_seconds(num_bytes: int) -> float:
    """Return the maximum time for writing a file, including all retries, in seconds."""
    return WRITE_TIMEOUT + num_bytes / SLOWEST_UPLOAD


def _put(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes, **options: str) -> None:
    """Write one object, with options of fsspec's `pipe_file`. Object stores show it once it is complete."""
    if isinstance(filesystem, AsyncFileSystem):
        # The read timeout does not apply while the client waits for the server's "100 Continue".
        timeout = write_seconds(len(content))
        # Without a content type, browsers download a report instead of showing it.
        is_page = _is_s3(filesystem) and path.endswith(".html")
        options |= {"ContentType": "text/html"} if is_page else {}
        sync(filesystem.loop, filesystem._pipe_file, path, content, timeout=timeout, **options)
    else:
        filesystem.pipe_file(path, content, **options)


def is_local(uri: str) -> bool:
    """Return True for a local path or URI."""
    return isinstance(open_filesystem(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Return True if a file or folder exists. Raises UserError if storage does not respond."""
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        return filesystem.exists(path)


def find(uri: str) -> dict[str, dict[str, Any]]:
    """Return all files below a folder (or the one file), as URI -> fsspec's details, in name order.

    The result is empty if the folder is missing. Raises UserError, also if the bucket itself does not exist.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        found = filesystem.find(path, detail=True)
    return {filesystem.unstrip_protocol(name): found[name] for name in sorted(found)}


def listed(uri: str) -> Iterator[list[ListedFile]]:
    """Yield every file below a prefix (or the one file) in name order, lazily, in pages of at most s3_objects.PAGE.

    Skips folder markers and partial files. Yields nothing if the folder is missing. For local folders, memory holds
    the names of one folder and its parents at a time.

    Raises: UserError, also if the bucket itself does not exist.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        if _is_s3(filesystem):
            if path == "/":
                raise UserError(f"{uri}: the bucket is missing; use s3://BUCKET or s3://BUCKET/PREFIX")
            yield from s3_objects.pages(f"s3://{path}")
            return
        files = local_files.files_below(path) if isinstance(filesystem, LocalFileSystem) else _found_files(uri)
        while page := list(islice(files, s3_objects.PAGE)):
            yield page


def _found_files(uri: str) -> Iterator[ListedFile]:
    for name, info in find(uri).items():
        if not name.endswith("/"):
            yield ListedFile(name, info.get("size"), None)


def remove(uri: str) -> None:
    """Delete one file; do nothing if it does not exist. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    with explained(uri), suppress(FileNotFoundError):
        filesystem.rm_file(path)  # `rm` treats names with * ? [ as patterns


def remove_folder(uri: str) -> None:
    """Delete a folder and everything below it; do nothing if it does not exist. Raises UserError."""
    filesystem, path = open_filesystem(uri)
    for name in find(uri):
        remove(name)
    if isinstance(filesystem, LocalFileSystem):
        shutil.rmtree(path, ignore_errors=True)  # remaining empty folders


def copy_files(source: str, target: str, names: Iterable[str]) -> None:
    """Copy files by name from one folder to another. Raises UserError."""
    for name in names:
        write_bytes(join(target, name), read_bytes(join(source, name)))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Yield a local folder with the files directly in `uri`: a temporary copy, or `uri` itself if it is local."""
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
    """Return a pyarrow file system and the path inside it.

    Local files are written atomically, so a killed process leaves no half-written file.
    """
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        filesystem = local_files.WholeFiles()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a storage error inside the block into a UserError about `uri`."""
    try:
        yield
    except Exception as error:
        if (problem := _problem(uri, error)) is None:
            raise
        raise UserError(f"{uri}: {problem}") from error


def _problem(uri: str, error: Exception) -> str | None:
    """Return the description of a storage error, with the next step; None for an error of another kind."""
    cause = error.__cause__
    if uri.startswith(web.SCHEMES) and isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        error = cause  # fsspec raises FileNotFoundError for any failed size request
    if isinstance(error, FileNotFoundError) or _http_status(error) == 404:
        bucket = uri.split("/")[2] if "://" in uri else None
        if bucket and "specified bucket" in str(error):
            return f"the bucket {bucket!r} does not exist; create it or correct the name"
        if other := _other_form(uri):
            return f"not found, but {other}"
        # Hugging Face answers alike for what is missing and what is private.
        return f"not found; check the path{', and set HF_TOKEN if it is private' if uri.startswith('hf://') else ''}"
    if failure_kind(error) == "AccessDenied":
        return f"access denied ({reason(error)}); check {_credentials(uri)}"
    if isinstance(error, NO_CREDENTIALS):
        return (
            "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or attach a role to "
            "the machine"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk or its quota is full ({reason(error)}); free some space and run the same command again to resume"
        )
    botocore_errors = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    if isinstance(error, (*botocore_errors, OSError)) or _is_of_client(uri, error):
        return f"storage failed: {reason(error)}"
    return None


def _other_form(uri: str) -> str | None:
    """Return a description of a file whose name differs from a missing one's only in its Unicode form, if there is one.

    Lists that are written on macOS or by other programs may spell accents differently from the storage.
    """
    forms = {form: unicodedata.normalize(form, uri) for form in ("NFC", "NFD")}
    missing = next((form for form in forms if forms[form] == uri), "mixed")
    for form, other in forms.items():
        with suppress(UserError):
            if other != uri and exists(other):
                return (
                    f"a file exists whose name differs only in Unicode: it is in form {form}, and this one is "
                    f"{missing}; write the name as the storage lists it"
                )
    return None


def _credentials(uri: str) -> str:
    """Return what may deny the access to a URI."""
    if uri.startswith(S3_SCHEMES):
        return "the AWS credentials in the environment and their permissions for this location"
    if _scheme(uri) == "file":
        return "the permissions of the file and its folders"
    if uri.startswith(web.SCHEMES):
        return "that the server allows reading without credentials"
    return f"the credentials for {_scheme(uri)}:// in the environment and their permissions for this location"


def _is_of_client(uri: str, error: Exception) -> bool:
    """Return True for an error that the client library of a store other than S3 raised."""
    if _scheme(uri) == "file" or uri.startswith(S3_SCHEMES):
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals["__name__"].partition(".")[0]
    return package not in sys.stdlib_module_names and package not in ("pipeline", "pyarrow")


def _http_status(error: Exception) -> int | None:
    """Return the status code in an error of aiohttp, httpx, gcsfs or azure-core; None if it has none."""
    holders = (error, getattr(error, "response", None))
    codes = (getattr(holder, name, None) for holder in holders for name in ("status", "status_code", "code"))
    return next((code for code in codes if isinstance(code, int)), None)


def reason(error: BaseException) -> str:
    """Return the text of an error, or its type's name if it has no text. Masks credentials in URLs."""
    return masked(str(error).strip()) or type(error).__name__
