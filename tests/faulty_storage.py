"""An S3 endpoint that fails one request in ten, in front of one that works."""

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from pipeline.processes import LOOPBACK, free_ports

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "expect"}

REFUSE = "refuse"  # answer with 503
CUT = "cut"  # close the connection without an answer
HANG = "hang"  # keep the connection and never answer
STALL = "stall"  # answer with half of the body, and never send the rest
TRUNCATE = "truncate"  # answer with half of the body, and close the connection
DRIP = "drip"  # send one byte of the body a second
SLOW = "slow"  # send the body in eight pieces, one a second
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
    passed: int = 0
    broken: Counter[str] = field(default_factory=Counter)  # by kind
    gets: Counter[str] = field(default_factory=Counter)  # requests for an object's content, by path

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
    (port,) = free_ports(1)
    proxy = FaultyStorage(f"http://{LOOPBACK}:{port}", choose or in_turn(kinds, every))
    numbers = itertools.count(1)
    loop = asyncio.new_event_loop()
    started, finished = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                path = unquote(request.raw_path.partition("?")[0])
                if request.method == "GET" and path.count("/") > 1 and "?list-type" not in request.raw_path:
                    proxy.gets[path] += 1
                fault = proxy.choose(request.method, path, next(numbers))
                await asyncio.sleep(proxy.delay)
                if fault is not None and fault not in WITHIN_BODY:
                    return await _break(proxy, request, fault)
                # The signature covers the host, so the request goes on as it came.
                headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
                url = URL(f"{endpoint}{request.raw_path}", encoded=True)
                async with session.request(
                    request.method, url, headers=headers, data=body, allow_redirects=False
                ) as answer:
                    content = await answer.read()
                    kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP)
                    if fault is not None:
                        return await _break_body(proxy, request, fault, answer.status, kept, content)
                    proxy.passed += 1
                    response = web.Response(status=answer.status, headers=kept, body=content)
                    if request.method == "HEAD" and "Content-Length" in answer.headers:
                        response.headers["Content-Length"] = answer.headers["Content-Length"]
                    return response

            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", handle)
            # Requests that hang end with their client.
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, port).start()
            started.set()
            await finished.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(finished.set)
        thread.join(30)


async def _break(proxy: FaultyStorage, request: web.Request, fault: str) -> web.StreamResponse:
    proxy.broken[fault] += 1
    if fault == REFUSE:
        return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
    if fault == HANG:
        await asyncio.sleep(3600)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _break_body(
    proxy: FaultyStorage, request: web.Request, fault: str, status: int, headers: CIMultiDict[str], content: bytes
) -> web.StreamResponse:
    if request.method == "HEAD" or len(content) < 2:
        return await _break(proxy, request, CUT)
    proxy.broken[fault] += 1
    headers["Content-Length"] = str(len(content))
    response = web.StreamResponse(status=status, headers=headers)
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
