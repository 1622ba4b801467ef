"""Access checks: anyone who can reach a Ray cluster without token authentication can run any code on it."""

import http.client
import ipaddress
import os
import subprocess
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.cluster import ray_internals
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.doctor.nodes import Answer, Roll

LIMIT = 30.0  # seconds
REQUEST_TIMEOUT = 5.0  # seconds
# Any page that requires the token.
PAGE = "/api/jobs/"
TURN_ON = (
    "create a token (ray get-auth-token --generate), copy it to all nodes, set RAY_AUTH_MODE=token there, restart Ray"
)


@dataclass(frozen=True)
class Dashboard:
    """Address of the dashboard, and HTTP statuses of requests without a token. A status is None without an answer."""

    host: str
    port: int
    at_head: int | None
    elsewhere: int | None  # from another node

    @property
    def local(self) -> bool:
        return self.elsewhere is None and _is_loopback(self.host)

    @property
    def open(self) -> bool:
        return 200 in (self.at_head, self.elsewhere)


def is_let_in(address: str, stranger: bool = False) -> bool | None:
    """Return True if the head at HOST:PORT accepts this process's token or, for a `stranger`, no token.

    None if it does not answer within LIMIT seconds.
    """
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", ray_internals.ASK_HEAD, address],
            env={**without, "RAY_AUTH_MODE": "disabled"} if stranger else None,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return None
    return {"let in": True, "refused": False}.get(done.stdout.strip())


def look_at_dashboard(roll: Roll) -> Dashboard | None:
    """Request a page without a token, on the head and from another node. Return None if no dashboard is running."""
    address = ray_internals.dashboard_address()
    if not address:
        return None
    parts = urlsplit(f"//{address}")
    assert parts.hostname is not None
    assert parts.port is not None
    heads = [node for node in roll.nodes if node.is_head]
    others = [node for node in roll.nodes if not node.is_head and heads and node.address != heads[0].address][:1]
    at_head = roll.ask(status_of, parts.hostname, parts.port, limit=LIMIT, nodes=heads)
    # Even if it reports a loopback address: what matters is what other nodes can reach.
    elsewhere = roll.ask(status_of, heads[0].address, parts.port, limit=LIMIT, nodes=others) if others else []
    statuses = [[reply.value for _, reply in replies if isinstance(reply, Answer)] for replies in (at_head, elsewhere)]
    return Dashboard(parts.hostname, parts.port, *(found[0] if found else None for found in statuses))


def status_of(host: str, port: int) -> int | None:
    """Return the HTTP status of a request without a token; None if nothing answers."""
    connection = http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT)
    try:
        connection.request("GET", PAGE)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def judge_authentication(
    let_in: bool | None, own_mode: bool, modes: dict[str, bool], private: bool
) -> list[CheckResult]:
    """Judge token authentication.

    Args:
        let_in: result of `is_let_in` for a stranger.
        own_mode: True if the driver uses it.
        modes: True for nodes that use it, by name.
        private: the driver started this Ray itself, on this machine, and it ends with the driver.
    """
    without = [name for name, on in modes.items() if not on]
    if private:
        return [CheckResult(OK, "this Ray runs on this machine only, and ends with this job")]
    if let_in or (let_in is None and not own_mode):
        return [CheckResult(FAIL, f"anyone who can reach the cluster can use it without a token; {TURN_ON}")]
    if without:
        return [
            CheckResult(WARN, f"RAY_AUTH_MODE is not token there, although the head requires a token; {TURN_ON}", n)
            for n in without
        ]
    if let_in is None:
        return [CheckResult(OK, "RAY_AUTH_MODE is token; a request without a token got no answer")]
    return [CheckResult(OK, "a token is required; requests without one are rejected")]


def judge_dashboard(seen: Dashboard | None) -> list[CheckResult]:
    """Judge who can access the dashboard, which also accepts job submissions."""
    if seen is None:
        return [CheckResult(OK, "not running")]
    address = f"{seen.host}:{seen.port}"
    if seen.open and not seen.local:
        return [
            CheckResult(
                FAIL,
                f"{address} serves anyone who can reach it, without a token; start the head with "
                "--dashboard-host=127.0.0.1, and turn authentication on",
            )
        ]
    if seen.open:
        return [CheckResult(WARN, f"{address} serves every user of the head's machine without a token; {TURN_ON}")]
    if seen.local:
        return [CheckResult(OK, f"only on the head's loopback address ({address}), and requires the token")]
    if _is_public(seen.host):
        return [
            CheckResult(
                WARN,
                f"{address} is a public address; although it requires a token, start the head with "
                "--dashboard-host=127.0.0.1 and forward the port (ray dashboard cluster.yaml)",
            )
        ]
    if seen.at_head is None and seen.elsewhere is None:
        return [CheckResult(WARN, f"{address} does not answer; see dashboard.log on the head")]
    return [CheckResult(OK, f"{address} is a private address, and requires the token")]


def _is_loopback(host: str) -> bool:
    return host == "localhost" or _property(host, "is_loopback")


def _is_public(host: str) -> bool:
    return _property(host, "is_global")


def _property(host: str, name: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), name))
    except ValueError:  # a host name
        return False
