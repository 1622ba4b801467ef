"""An S3 endpoint that passes what an IAM policy allows and answers 403 to all else, in front of one that works."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from aiohttp import web

from tests.storage_proxy import Forward, storage_proxy

LISTING = {"list-type", "prefix", "delimiter", "max-keys", "encoding-type", "continuation-token", "fetch-owner"}
DENIED = "<Error><Code>AccessDenied</Code><Message>not by the policy</Message></Error>"


class Call(NamedTuple):
    """Permission that a request to S3 needs."""

    action: str
    resource: str


@dataclass
class GuardedS3:
    """A running guard. Change `policy` at will; the calls that it had to judge are kept until `take`."""

    endpoint: str
    policy: dict[str, Any]
    allowed: set[Call] = field(default_factory=set)
    refused: set[Call] = field(default_factory=set)

    def judge(self, calls: list[Call]) -> bool:
        """Return True if the policies allow the request."""
        allowed = {call for call in calls if statements(self.policy, call)}
        self.allowed |= allowed
        self.refused |= set(calls) - allowed
        return allowed == set(calls)

    def take(self) -> tuple[set[Call], set[Call]]:
        """Calls allowed and refused since the last time."""
        taken = self.allowed, self.refused
        self.allowed, self.refused = set(), set()
        return taken


def statements(policy: dict[str, Any], call: Call) -> list[dict[str, Any]]:
    """The statements that allow a call."""
    assert all(one["Effect"] == "Allow" and "Condition" not in one for one in policy["Statement"])
    return [
        one
        for one in policy["Statement"]
        if call.action in listed(one["Action"])
        and any(fnmatch.fnmatchcase(call.resource, pattern) for pattern in listed(one["Resource"]))
    ]


def listed(value: str | list[str]) -> list[str]:
    """IAM's lists, which may be one string."""
    return [value] if isinstance(value, str) else value


def calls_of(method: str, raw_path: str, body: bytes) -> list[Call]:
    """Return the permissions that a request needs, as Amazon documents them for each operation."""
    path, _, query_string = raw_path.partition("?")
    query = parse_qs(query_string, keep_blank_values=True)
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    if not key and method == "POST" and "delete" in query:
        return [Call("s3:DeleteObject", f"{arn}/{one}") for one in re.findall(r"<Key>(.*?)</Key>", body.decode())]
    if not key:
        lists = method in ("GET", "HEAD") and set(query) <= LISTING
        return [Call("s3:ListBucket" if lists else f"s3:? {method} {sorted(query)}", arn)]
    if method == "DELETE":
        action = "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    else:
        action = "s3:GetObject" if method in ("GET", "HEAD") else "s3:PutObject"
    return [Call(action, f"{arn}/{key}")]


@contextlib.contextmanager
def guarded_s3(endpoint: str, policy: dict[str, Any]) -> Iterator[GuardedS3]:
    """Run a guard on loopback before `endpoint`."""

    async def handle(request: web.Request, body: bytes, forward: Forward) -> web.StreamResponse:
        if not guard.judge(calls_of(request.method, request.raw_path, body)):
            return web.Response(status=403, text=DENIED)
        return (await forward()).response_to(request)

    with storage_proxy(endpoint, handle) as address:
        guard = GuardedS3(address, policy)
        yield guard
