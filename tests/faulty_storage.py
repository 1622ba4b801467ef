"""An S3 endpoint in front of one that works: it fails one request in ten, lets writes come late, or lists late."""

import asyncio
import contextlib
import html
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from aiohttp import web

from tests.storage_proxy import Answer, Forward, storage_proxy

REFUSE = "refuse"  # answer with 503
CUT = "cut"  # close the connection without an answer
HANG = "hang"  # keep the connection and never answer
STALL = "stall"  # answer with half of the body, and never send the rest
TRUNCATE = "truncate"  # answer with half of the body, and close the connection
DRIP = "drip"  # send one byte of the body a second
SLOW = "slow"  # send the body in eight pieces, one a second
HOLD = "hold"  # answer when `released` is set; what it writes is written then, whether its client still waits or not
WITHIN_BODY = (STALL, TRUNCATE, DRIP, SLOW)

Choose = Callable[[str, str, int], str | None]


@dataclass
class FaultyStorage:
    """A running proxy; counts what it let through and what it broke.

    `choose(method, path, number)` says what to do to the so manyth request: one of the kinds above, or None. The
    path is decoded, `/BUCKET/KEY`. A fault within a body becomes CUT where the answer has none.
    """

    endpoint: str
    choose: Choose
    delay: float = 0.0  # seconds before each answer
    lag: float = 0.0  # seconds until an object that was written is in listings
    released: threading.Event = field(default_factory=threading.Event)
    landed: int = 0  # requests that were held and have gone on
    passed: int = 0
    broken: Counter[str] = field(default_factory=Counter)  # by kind
    gets: Counter[str] = field(default_factory=Counter)  # requests for an object's content, by path
    written: dict[str, float] = field(default_factory=dict)  # when, by path

    @property
    def refused(self) -> int:
        return self.broken[REFUSE]

    @property
    def cut(self) -> int:
        return self.broken[CUT]


def in_turn(kinds: tuple[str, ...], every: int = 10) -> Choose:
    """Break every so manyth request, by each kind in turn."""
    faults = itertools.cycle(kinds)
    return lambda method, path, number: next(faults) if number % every == 0 else None


@contextlib.contextmanager
def faulty_storage(
    endpoint: str, every: int = 10, kinds: tuple[str, ...] = (REFUSE, CUT), choose: Choose | None = None
) -> Iterator[FaultyStorage]:
    """Run a proxy on loopback that breaks every so manyth request by each kind in turn, or what `choose` says."""
    numbers = itertools.count(1)

    async def handle(request: web.Request, body: bytes, forward: Forward) -> web.StreamResponse:
        path = unquote(request.raw_path.partition("?")[0])
        if request.method == "GET" and path.count("/") > 1 and "?list-type" not in request.raw_path:
            proxy.gets[path] += 1
        fault = proxy.choose(request.method, path, next(numbers))
        await asyncio.sleep(proxy.delay)
        if fault == HOLD:
            proxy.broken[HOLD] += 1
            return await asyncio.shield(_late(proxy, request, forward))
        if fault is not None and fault not in WITHIN_BODY:
            return await _break(proxy, request, fault)
        answer = await forward()
        if fault is not None:
            return await _break_body(proxy, request, fault, answer)
        proxy.passed += 1
        if request.method == "PUT":
            proxy.written[path] = time.monotonic()
        elif "?list-type" in request.raw_path:
            answer = _without_new_objects(proxy, path, answer)
        return answer.response_to(request)

    with storage_proxy(endpoint, handle) as address:
        proxy = FaultyStorage(address, choose or in_turn(kinds, every))
        yield proxy


async def _late(proxy: FaultyStorage, request: web.Request, forward: Forward) -> web.StreamResponse:
    while not proxy.released.is_set():
        await asyncio.sleep(0.02)
    answer = await forward()
    proxy.landed += 1
    return answer.response_to(request)


def _without_new_objects(proxy: FaultyStorage, path: str, answer: Answer) -> Answer:
    """A listing of a bucket without what was written within the lag."""
    since = time.monotonic() - proxy.lag

    def kept(entry: re.Match[bytes]) -> bytes:
        (key,) = re.findall(r"<Key>(.*?)</Key>", entry[0].decode(), re.DOTALL)
        at = proxy.written.get(f"{path.rstrip('/')}/{unquote(html.unescape(key))}", since)
        return entry[0] if at <= since else b""

    return replace(answer, content=re.sub(rb"<Contents>.*?</Contents>", kept, answer.content, flags=re.DOTALL))


async def _break(proxy: FaultyStorage, request: web.Request, fault: str) -> web.StreamResponse:
    proxy.broken[fault] += 1
    if fault == REFUSE:
        return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
    if fault == HANG:
        await asyncio.sleep(3600)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _break_body(proxy: FaultyStorage, request: web.Request, fault: str, answer: Answer) -> web.StreamResponse:
    content = answer.content
    if request.method == "HEAD" or len(content) < 2:
        return await _break(proxy, request, CUT)
    proxy.broken[fault] += 1
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.headers["Content-Length"] = str(len(content))
    await response.prepare(request)
    if fault in (DRIP, SLOW):
        size = 1 if fault == DRIP else -(-len(content) // 8)
        for start in range(0, len(content), size):
            await response.write(content[start : start + size])
            await asyncio.sleep(1)
        return response
    await response.write(content[: len(content) // 2])
    await asyncio.sleep(3600 if fault == STALL else 0.1)  # else the half would not be sent before the end
    assert request.transport is not None
    request.transport.abort()
    return response
