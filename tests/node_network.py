"""Ray nodes with addresses of their own on this machine, each in a network namespace, and a cable that can be pulled.

Needs Linux, the program `ip`, and the right to make namespaces.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.demo.server_process import ServerProcess, free_ports
from tests.ray_head import ACCESS, sessions_folder
from tests.requirements import Requirement

_numbers = itertools.count()
# Their addresses are no loopback ones, which ACCESS has Ray keep.
REACHABLE = {**ACCESS, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
# A node that is not heard of counts as lost after some five seconds, not after a minute.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def can_have_networks() -> bool:
    """Return True if this machine can create network namespaces."""
    if shutil.which("ip") is None:
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    if made.returncode == 0:
        _ip("netns", "delete", name)
    return made.returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


NETWORKS = Requirement("network namespaces", "apt-get install iproute2, and run the tests as root", can_have_networks)


class NetworkNode:
    """A Ray node behind a cable of its own."""

    def __init__(self, cable: str) -> None:
        self._cable = cable

    def cut_off(self) -> None:
        _ip("link", "set", self._cable, "down")

    def reconnect(self) -> None:
        _ip("link", "set", self._cable, "up")


class Network:
    """A bridge on this machine, at whose address the head is, and nodes that hang on it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._bridge = f"b{os.getpid() % 100_000}x{next(_numbers)}"
        # Of the range that is set apart for tests of networks.
        self._subnet = f"198.18.{os.getpid() % 250}"
        self._address = f"{self._subnet}.1"
        self._nodes = 0
        _ip("link", "add", self._bridge, "type", "bridge")
        stack.callback(_ip, "link", "delete", self._bridge)
        _ip("address", "add", f"{self._address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        self._shared = {
            **environment,
            **REACHABLE,
            **HEALTH_CHECKS,
            "RAY_TMPDIR": stack.enter_context(sessions_folder()),
        }
        (self._port,) = free_ports(1)
        self._start([], self._address, "--head", f"--port={self._port}", "--include-dashboard=false", "--num-cpus=2")
        self.environment = {**REACHABLE, "RAY_ADDRESS": f"{self._address}:{self._port}"}

    def add(self, cpus: int, gpus: int = 0, without: Path | None = None) -> NetworkNode:
        """Start a node, which sees an empty folder in place of `without`."""
        self._nodes += 1
        name, address = f"{self._bridge}n{self._nodes}", f"{self._subnet}.{self._nodes + 1}"
        cable = f"{self._bridge}c{self._nodes}"
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "delete", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._stack.callback(_ip, "link", "delete", cable)
        _ip("link", "set", cable, "master", self._bridge, "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        inside = ["ip", "netns", "exec", name]
        if without is not None:  # in the mount namespace that `ip netns exec` makes
            inside += ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(without)]
        head = f"--address={self._address}:{self._port}"
        self._start(inside, address, head, f"--num-cpus={cpus}", f"--num-gpus={gpus}")
        return NetworkNode(cable)

    def _start(self, inside: list[str], address: str, *options: str) -> None:
        agent, metrics = free_ports(2)
        process = ServerProcess(
            name="ray node",
            command=[
                *inside,
                *(str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"),
                *(f"--node-ip-address={address}", f"--object-store-memory={2**27}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", *options),
            ],
            url=f"http://{address}:{metrics}/metrics",
            log=self._folder / f"ray-{address}.log",
            environment=self._shared,
        )
        process.start()
        self._stack.callback(process.stop)
        process.wait_until_it_answers(120)


@contextlib.contextmanager
def node_network(folder: Path, environment: Mapping[str, str]) -> Iterator[Network]:
    """Run a head of two CPUs on a network of its own; it and its nodes have this environment. Ends with the block."""
    with contextlib.ExitStack() as stack:
        yield Network(folder, environment, stack)
