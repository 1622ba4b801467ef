"""Reading from S3, fast and patient: objects by obstore, listings by botocore.

obstore (Rust) takes an eighth of s3fs's processor time for a small object, but it cannot tell a folder's marker from a
file, nor name every object, so listings and odd names go by botocore.

Faults are Python's own: FileNotFoundError, PermissionError, TimeoutError, ConnectionError, Truncated, other OSError.
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

PAGE = 1000  # files, of a listing
# What obstore can name. Others, such as `a//b` and names with a line break, go by botocore.
PLAIN_KEY = re.compile(r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*")
PLAIN_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


class ListedFile(NamedTuple):
    """A file as a listing shows it."""

    uri: str
    size: int  # bytes
    etag: str | None  # without quotes; None where there are none, as on a disk


class Fetched(NamedTuple):
    """A file as it was read."""

    content: bytes
    etag: str | None  # of this very content


class Span(NamedTuple):
    """A part of an object's bytes, which is not empty."""

    start: int
    end: int  # the first byte after it


class Truncated(OSError):
    """Fewer bytes came than the server announced."""


class Changed(OSError):
    """Another version has taken the object's place while it was read."""


class Refused(Exception):
    """Its size told, the file was not wanted; no fault of storage's."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class Unreachable(OSError):
    """Nothing answers at the endpoint: no fault of any one object."""


class NoBucket(FileNotFoundError):
    """The bucket does not exist; that of another object may."""


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` -> `bucket`, `a/b`."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def get(
    uri: str, connection: s3_client.Connection, span: Span | None = None, is_wanted: Callable[[int], bool] | None = None
) -> Fetched:
    """Content of one object, or of a span of its bytes. Raises OSError or botocore's own errors, Refused.

    Unreachable and missing credentials concern all other objects, too.

    Args:
        is_wanted: asked once, with the number of bytes, before they are read.
    """
    bucket, key = split(uri)
    with _answered(connection):
        if not (s3_client.obstore_works() and PLAIN_KEY.fullmatch(key) and PLAIN_BUCKET.fullmatch(bucket)):
            return _get_by_botocore(connection, bucket, key, span, is_wanted)
        return _get_by_obstore(connection, bucket, key, span, is_wanted)


def head(uri: str, connection: s3_client.Connection) -> ListedFile:
    """An object's size and ETag; raises as `get` does."""
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
    """Raise Unreachable for a request of the block that failed where nothing answers."""
    begin = time.monotonic()
    try:
        yield
    except (TimeoutError, ConnectionError) as error:
        if not connection.answers_since(begin):
            raise Unreachable(f"{connection.endpoint} does not answer: {error}") from error
        raise


def pages(uri: str) -> Iterator[list[ListedFile]]:
    """All objects below a prefix, or the one object, in key order; raises as `get` does."""
    bucket, name = split(uri)
    name = name.rstrip("/")
    client = s3_client.current().client
    is_empty = True
    try:
        paginator = client.get_paginator("list_objects_v2")
        for page in paginator.paginate(Bucket=bucket, Prefix=name and name + "/", PaginationConfig={"PageSize": PAGE}):
            contents = page.get("Contents", [])
            is_empty = is_empty and not contents
            # An empty object whose name ends in a slash is how some tools mark a folder.
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
                # Again, with time for so many bytes; powers of two, so that the stores are few.
                seconds = s3_client.DEADLINE * 2 ** math.ceil(
                    math.log2(size / s3_client.SLOWEST_DOWNLOAD / s3_client.DEADLINE)
                )
                continue
            content = answer.bytes().to_bytes()
            if len(content) != size:
                raise Truncated(f"{len(content)} of {size} bytes came")
            return Fetched(content, (answer.meta["e_tag"] or "").strip('"') or None)
        except (obstore.exceptions.BaseError, OSError) as error:
            failure = error if isinstance(error, Truncated) else _of_obstore(error, connection.endpoint)
            if not isinstance(failure, TimeoutError | ConnectionError):
                connection.note_answer()
            # Also where the rest, which obstore asks for by itself, is of another version by now. From the start.
            if isinstance(failure, Truncated) and not is_second:
                is_second = True
                continue
            raise failure from None  # obstore's own text is a page long


def _get_by_botocore(
    connection: s3_client.Connection, bucket: str, key: str, span: Span | None, is_wanted: Callable[[int], bool] | None
) -> Fetched:
    """The same for what obstore cannot name, and after a fork."""
    options = {"Range": f"bytes={span.start}-{span.end - 1}"} if span else {}
    begin = time.monotonic()
    for attempt in range(s3_client.RETRIES + 1):
        if attempt:
            longest = min(s3_client.FIRST_PAUSE * s3_client.PAUSE_GROWTH**attempt, s3_client.LONGEST_PAUSE)
            time.sleep(random.uniform(min(s3_client.FIRST_PAUSE, longest), longest))
        try:
            # botocore tries again by itself up to here.
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
    """Bytes of an answer. Raises TimeoutError or Truncated."""
    # Below botocore's stream, which would wait until all the bytes of a piece are there, however slowly they come.
    stream, pieces = answer["Body"]._raw_stream, []
    try:
        while piece := stream.read1(1 << 20):
            pieces.append(piece)
            if time.monotonic() > end:
                raise TimeoutError(f"{sum(map(len, pieces))} of {answer['ContentLength']} bytes came in time")
    except urllib3.exceptions.TimeoutError as error:
        raise TimeoutError(f"timed out: {error}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Truncated(str(error)) from error
    finally:
        answer["Body"].close()
    content = b"".join(pieces)
    if len(content) != answer["ContentLength"]:
        raise Truncated(f"{len(content)} of {answer['ContentLength']} bytes came")
    return content


def _etag(details: dict[str, Any]) -> str | None:
    return details.get("ETag", "").strip('"') or None


def _of_obstore(error: Exception, endpoint: str) -> Exception:
    """Python's error for one of obstore, which tells apart most of them in its text alone."""
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
            return TimeoutError(f"{endpoint} did not send it in time, in several tries")
        case "Interrupted":
            return Truncated("fewer bytes came than were announced, in several tries")
        case "Connect":
            return ConnectionError(f"could not connect to {endpoint}: {cause[1] if cause else 'no reason given'}")
        case "Request":
            return ConnectionError(f"{endpoint} cut the connection, in several tries")
    return OSError(message.strip())


def _of_botocore(error: Exception) -> Exception:
    if isinstance(error, botocore.exceptions.ConnectTimeoutError | botocore.exceptions.ReadTimeoutError):
        return TimeoutError(f"timed out: {error}")
    connection = botocore.exceptions.EndpointConnectionError | botocore.exceptions.ConnectionClosedError
    return ConnectionError(str(error)) if isinstance(error, connection) else error


def _of_code(answer: dict[str, Any], status: str | None = None) -> OSError:
    """Python's error for S3's code, or for the HTTP status where the server gives a code of its own."""
    code, text = answer.get("Code", ""), answer.get("Message", "")
    if code == "NoSuchBucket":
        return NoBucket("The specified bucket does not exist")
    from s3fs.errors import ERROR_CODE_TO_EXCEPTION  # a fifth of a second, in processes that mostly need it never

    kind = ERROR_CODE_TO_EXCEPTION.get(code) or ERROR_CODE_TO_EXCEPTION.get(status, OSError)
    return kind(f"{code}: {text}" if text else code)
