"""Images on web servers: a server may redirect within itself, and to no other host.

Which hosts may be asked is decided on the names in lists (`pipeline.storage.places`); a redirect would decide anew.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp
    import yarl

SCHEMES = ("http://", "https://")


class Redirected(OSError):
    """A server redirects to another host."""


@functools.cache
def client_options() -> dict[str, Any]:
    """Return what aiohttp's sessions are made with; imports aiohttp, which few processes need."""
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_no_other_host)
    return {"trace_configs": [trace]}


async def _check_no_other_host(
    session: "aiohttp.ClientSession", context: object, redirect: "aiohttp.TraceRequestRedirectParams"
) -> None:
    import yarl

    location = redirect.response.headers.get("Location") or redirect.response.headers.get("URI") or ""
    target = redirect.url.join(yarl.URL(location))
    if target.host != redirect.url.host or (target.port != redirect.url.port and not _is_upgrade(redirect.url, target)):
        raise Redirected(
            f"{redirect.url.host} redirects to {target.origin()}, and redirects to other hosts are not followed; "
            "name the image by its address there, and allow that host"
        )


def _is_upgrade(source: "yarl.URL", target: "yarl.URL") -> bool:
    """Whether the target is the same server's encrypted side."""
    return (source.scheme, source.port, target.scheme, target.port) == ("http", 80, "https", 443)
