"""A proxy on loopback in front of an S3 endpoint, which does with each request what it is told to."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from pipeline.demo.server_process import LOOPBACK, free_ports

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "expect"}


@dataclass(frozen=True)
class Answer:
    """Response of the endpoint."""

    status: int
    headers: CIMultiDict[str]
    content: bytes
    length: str | None  # as it was announced; that of an answer to HEAD has no content

    def response_to(self, request: web.Request) -> web.Response:
        """The same to whoever asked."""
        response = web.Response(status=self.status, headers=self.headers, body=self.content)
        if request.method == "HEAD" and self.length is not None:
            response.headers["Content-Length"] = self.length
        return response


Forward = Callable[[], Awaitable[Answer]]
Handle = Callable[[web.Request, bytes, Forward], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def storage_proxy(endpoint: str, handle: Handle) -> Iterator[str]:
    """Run a proxy that calls `handle(request, its body, what asks the endpoint)`; yields its own address."""
    (port,) = free_ports(1)
    loop = asyncio.new_event_loop()
    started, finished = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handled(request: web.Request) -> web.StreamResponse:
                body = await request.read()

                async def forward() -> Answer:
                    # The signature covers the host, so the request goes on as it came.
                    headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
                    url = URL(f"{endpoint}{request.raw_path}", encoded=True)
                    async with session.request(
                        request.method, url, headers=headers, data=body, allow_redirects=False
                    ) as answer:
                        kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP)
                        length = answer.headers.get("Content-Length")
                        return Answer(answer.status, kept, await answer.read(), length)

                return await handle(request, body, forward)

            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", handled)
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
        yield f"http://{LOOPBACK}:{port}"
    finally:
        loop.call_soon_threadsafe(finished.set)
        thread.join(30)
