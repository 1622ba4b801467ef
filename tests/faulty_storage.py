"""An S3 endpoint that fails one request in ten, in front of one that works."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from pipeline.processes import LOOPBACK, free_ports

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "expect"}


@dataclass
class FaultyStorage:
    """A running proxy; counts what it let through and what it broke."""

    endpoint: str
    passed: int = 0
    refused: int = 0  # answered with 503
    cut: int = 0  # connections closed without an answer


@contextlib.contextmanager
def faulty_storage(endpoint: str, every: int = 10) -> Iterator[FaultyStorage]:
    """Run a proxy on loopback that breaks every so manyth request: by a 503 and by closing the connection in turn."""
    (port,) = free_ports(1)
    proxy = FaultyStorage(f"http://{LOOPBACK}:{port}")
    numbers = itertools.count(1)
    loop = asyncio.new_event_loop()
    started, finished = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                number = next(numbers)
                if number % (2 * every) == every:
                    proxy.refused += 1
                    return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
                if number % (2 * every) == 0:
                    proxy.cut += 1
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
                # The signature covers the host, so the request goes on as it came.
                headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
                url = f"{endpoint}{request.raw_path}"
                async with session.request(
                    request.method, _as_it_is(url), headers=headers, data=body, allow_redirects=False
                ) as answer:
                    content = await answer.read()
                    kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
                    proxy.passed += 1
                    response = web.Response(status=answer.status, headers=kept, body=content)
                    if request.method == "HEAD" and "Content-Length" in answer.headers:
                        response.headers["Content-Length"] = answer.headers["Content-Length"]
                    return response

            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app)
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


def _as_it_is(url: str) -> "aiohttp.client.URL":
    from yarl import URL

    return URL(url, encoded=True)
