"""Reading from S3 with retries: objects with obstore, listings with botocore.

obstore (Rust) takes an eighth of s3fs's CPU time for a small object. But it cannot distinguish folder markers from
files, and does not support all object keys, so botocore handles listings and unusual keys.

Errors are Python's own: FileNotFoundError, PermissionError, TimeoutError, ConnectionError, Truncated, other OSError.
"""

import math
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import botocore.exceptions
import obstore
import urllib3.exceptions

from pipeline.storage import s3_client

PAGE = 1000  # files per page of a listing
# Keys that obstore supports. Others, such as `a//b` and keys with a line break, are read with botocore.
PLAIN_KEY = re.compile(r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*")
PLAIN_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


class ListedFile(NamedTuple):
    """File in a listing."""

    uri: str
    size: int | None  # bytes; None if the storage does not report it
    etag: str | None  # without quotes; None if the storage has no ETags, like a disk


class Fetched(NamedTuple):
    """Content of a file and its ETag."""

    content: bytes
    etag: str | None  # of exactly this content


class Span(NamedTuple):
    """Byte range that is not empty."""

    start: int
    end: int  # exclusive


class Truncated(OSError):
    """Fewer bytes arrived than the server announced."""


class Changed(OSError):
    """The object was overwritten while it was read."""


class Refused(Exception):
    """The caller did not want a file of this size. This is not a storage error."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class Unreachable(OSError):
    """The endpoint does not answer. The objects themselves may be fine."""


class NoBucket(FileNotFoundError):
    """The bucket does not exist. Other buckets may."""


def split(uri: str) -> tuple[str, str]:
    """Split an S3 URI into bucket and key: `s3://bucket/a/b` -> `bucket`, `a/b`."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def get(
    uri: str, connection: s3_client.Connection, span: Span | None = None, is_wanted: Callable[[int], bool] | None = None
) -> Fetched:
    """Return the content of one object, or a span of it.

    Args:
        is_wanted: called once with the number of bytes before they are read.

    Raises: OSError or botocore's own errors; Refused if `is_wanted` returns False. Unreachable and missing credentials
        affect all other objects too.
    """
    bucket, key = split(uri)
    with _answered(connection):
        if not (s3_client.obstore_works() and PLAIN_KEY.fullmatch(key) and PLAIN_BUCKET.fullmatch(bucket)):
            return _get_by_botocore(connection, bucket, key, span, is_wanted)
        return _get_by_obstore(connection, bucket, key, span, is_wanted)


def head(uri: str, connection: s3_client.Connection) -> ListedFile:
    """Return the size and ETag of an object. Raises like `get`."""
    bucket, key = split(uri)
    with _answered(connection):
        try:
            found = connection.client.head_object(Bucket=bucket, Key=key)
        except botocore.exceptions.ClientError as error:
            raise _of_code(error.response["Error"]) from error
        except botocore.exceptions.BotoCoreError as error:
            raise _of_botocore(error) from error
        return ListedFile(uri, found["ContentLength"], _etag(found))


@contextmanager
def _answered(connection: s3_client.Connection) -> Iterator[None]:
    """Raise Unreachable if a request in the block failed and the endpoint does not answer."""
    begin = time.monotonic()
    try:
        yield
    except (TimeoutError, ConnectionError) as error:
        if not connection.answers_since(begin):
            raise Unreachable(f"{connection.endpoint} does not answer: {error}") from error
        raise


def pages(uri: str) -> Iterator[list[ListedFile]]:
    """Yield pages of all objects below a prefix, or of the one object, in key order. Raises like `get`."""
    bucket, name = split(uri)
    name = name.rstrip("/")
    client = s3_client.current().client
    is_empty = True
    try:
        paginator = client.get_paginator("list_objects_v2")
        for page in paginator.paginate(Bucket=bucket, Prefix=name and name + "/", PaginationConfig={"PageSize": PAGE}):
            contents = page.get("Contents", [])
            is_empty = is_empty and not contents
            # Some tools mark folders by an empty object whose key ends with a slash.
            files = [entry for entry in contents if entry["Size"] or not entry["Key"].endswith("/")]
            if files:
                yield [ListedFile(f"s3://{bucket}/{file['Key']}", file["Size"], _etag(file)) for file in files]
        if is_empty and name:
            try:
                found = client.head_object(Bucket=bucket, Key=name)
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                    raise
            else:
                yield [ListedFile(f"s3://{bucket}/{name}", found["ContentLength"], _etag(found))]
    except botocore.exceptions.ClientError as error:
        raise _of_code(error.response["Error"]) from error


def _get_by_obstore(
    connection: s3_client.Connection, bucket: str, key: str, span: Span | None, is_wanted: Callable[[int], bool] | None
) -> Fetched:
    seconds, is_second = s3_client.DEADLINE, False
    options: obstore.GetOptions = {"range": span} if span else {}
    while True:
        try:
            answer = obstore.get(connection.store(bucket, seconds), key, options=options)
            connection.note_answer()
            size = span.end - span.start if span else answer.meta["size"]
            if is_wanted and not is_wanted(size):
                raise Refused(size)
            is_wanted = None
            if size > seconds * s3_client.SLOWEST_DOWNLOAD:
                # Repeat with a timeout that allows for this size, rounded up to a power of two to keep stores few.
                seconds = s3_client.DEADLINE * 2 ** math.ceil(
                    math.log2(size / s3_client.SLOWEST_DOWNLOAD / s3_client.DEADLINE)
                )
                continue
            content = answer.bytes().to_bytes()
            if len(content) != size:
                raise Truncated(f"{len(content)} of {size} bytes arrived")
            return Fetched(content, (answer.meta["e_tag"] or "").strip('"') or None)
        except (obstore.exceptions.BaseError, OSError) as error:
            failure = error if isinstance(error, Truncated) else _of_obstore(error, connection.endpoint)
            if not isinstance(failure, TimeoutError | ConnectionError):
                connection.note_answer()
            # Start over once. This also covers an object that was overwritten before obstore's own retry fetched the
            # rest of it.
            if isinstance(failure, Truncated) and not is_second:
                is_second = True
                continue
            raise failure from None  # obstore's own message is a page long


def _get_by_botocore(
    connection: s3_client.Connection, bucket: str, key: str, span: Span | None, is_wanted: Callable[[int], bool] | None
) -> Fetched:
    """Read an object whose key obstore does not support, or after a fork."""
    options = {"Range": f"bytes={span.start}-{span.end - 1}"} if span else {}
    begin = time.monotonic()
    for attempt in range(s3_client.RETRIES + 1):
        if attempt:
            longest = min(s3_client.FIRST_PAUSE * s3_client.PAUSE_GROWTH**attempt, s3_client.LONGEST_PAUSE)
            time.sleep(random.uniform(min(s3_client.FIRST_PAUSE, longest), longest))
        try:
            # botocore retries until the response begins; the loop retries reading the body.
            answer = connection.client.get_object(Bucket=bucket, Key=key, **options)
        except botocore.exceptions.ClientError as error:
            connection.note_answer()
            raise _of_code(error.response["Error"]) from error
        except botocore.exceptions.BotoCoreError as error:
            raise _of_botocore(error) from error
        connection.note_answer()
        if is_wanted and not is_wanted(answer["ContentLength"]):
            answer["Body"].close()
            raise Refused(answer["ContentLength"])
        is_wanted = None
        deadline = s3_client.DEADLINE + answer["ContentLength"] / s3_client.SLOWEST_DOWNLOAD
        try:
            return Fetched(_body(answer, time.monotonic() + deadline), _etag(answer))
        except (TimeoutError, Truncated) as error:
            failure = error
        if time.monotonic() > begin + 2 * deadline:
            break
    raise failure


def _body(answer: dict[str, Any], end: float) -> bytes:
    """Read the body of a response until the time `end` (monotonic). Raises TimeoutError or Truncated."""
    # Read the raw stream, because botocore's stream blocks until a whole piece has arrived, however slowly.
    stream, pieces = answer["Body"]._raw_stream, []
    try:
        while piece := stream.read1(1 << 20):
            pieces.append(piece)
            if time.monotonic() > end:
                raise TimeoutError(f"{sum(map(len, pieces))} of {answer['ContentLength']} bytes arrived in time")
    except urllib3.exceptions.TimeoutError as error:
        raise TimeoutError(f"timed out: {error}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Truncated(str(error)) from error
    finally:
        answer["Body"].close()
    content = b"".join(pieces)
    if len(content) != answer["ContentLength"]:
        raise Truncated(f"{len(content)} of {answer['ContentLength']} bytes arrived")
    return content


def _etag(details: dict[str, Any]) -> str | None:
    return details.get("ETag", "").strip('"') or None


def _of_obstore(error: Exception, endpoint: str) -> Exception:
    """Convert an error of obstore to Python's. Most kinds of errors differ only in their text."""
    message, _, details = str(error).partition("\n\nDebug source:")
    status = re.search(r"status code: (\d+)", message)
    if status:
        code = re.search(r"<Code>(.*?)</Code>", message, re.DOTALL)
        text = re.search(r"<Message>(.*?)</Message>", message, re.DOTALL)
        return _of_code({"Code": code[1] if code else status[1], "Message": text[1] if text else status[0]}, status[1])
    kind = re.search(r"kind: (Connect|Timeout|Interrupted|Request)\b", details)
    cause = re.search(r'(?:message|error): "(.*?)"', details)
    match kind and kind[1]:
        case "Timeout":
            return TimeoutError(f"the download from {endpoint} timed out, even after retries")
        case "Interrupted":
            return Truncated("the download ended before all bytes arrived, even after retries")
        case "Connect":
            return ConnectionError(f"could not connect to {endpoint}: {cause[1] if cause else 'no reason given'}")
        case "Request":
            return ConnectionError(f"{endpoint} closed the connection, even after retries")
    return OSError(message.strip())


def _of_botocore(error: Exception) -> Exception:
    if isinstance(error, botocore.exceptions.ConnectTimeoutError | botocore.exceptions.ReadTimeoutError):
        return TimeoutError(f"timed out: {error}")
    connection = botocore.exceptions.EndpointConnectionError | botocore.exceptions.ConnectionClosedError
    return ConnectionError(str(error)) if isinstance(error, connection) else error


def _of_code(answer: dict[str, Any], status: str | None = None) -> OSError:
    """Convert an S3 error code to Python's error, or the HTTP status if the server uses a code of its own."""
    code, text = answer.get("Code", ""), answer.get("Message", "")
    if code == "NoSuchBucket":
        return NoBucket("The specified bucket does not exist")
    from s3fs.errors import ERROR_CODE_TO_EXCEPTION  # importing it takes 0.2 s, and most processes never need it

    kind = ERROR_CODE_TO_EXCEPTION.get(code) or ERROR_CODE_TO_EXCEPTION.get(status, OSError)
    return kind(f"{code}: {text}" if text else code)
