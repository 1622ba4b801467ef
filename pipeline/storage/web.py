"""HTTP client options that forbid redirects to other hosts.

`pipeline.storage.places` checks the hosts of the URIs in lists; following a redirect would bypass this check.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp
    import yarl

SCHEMES = ("http://", "https://")


class Redirected(OSError):
    """A server redirected to another host."""


@functools.cache
def client_options() -> dict[str, Any]:
    """Return the arguments for aiohttp's sessions. Imports aiohttp lazily, because few processes need it."""
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
            "list the image by its URL on that host, and allow the host"
        )


def _is_upgrade(source: "yarl.URL", target: "yarl.URL") -> bool:
    """Return True for a redirect from http on port 80 to https on port 443."""
    return (source.scheme, source.port, target.scheme, target.port) == ("http", 80, "https", 443)
