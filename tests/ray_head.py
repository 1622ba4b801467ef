"""A Ray head on loopback for tests, with token authentication on, as a cluster of one's own would have it."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.server_process import LOOPBACK, ServerProcess, free_ports
from tests.warm_start import warm_start

# What the head and every driver need. Ray reads these as it is imported, so the test process sets them before.
ACCESS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    # Otherwise Ray replaces the loopback address by the machine's own.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Tests report nothing to Ray's makers, and start no actors that would collect it.
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class RayHead:
    """A running head: where drivers, `ray job` and Prometheus find it, and where its logs lie."""

    environment: dict[str, str]  # for a driver that connects directly
    dashboard: str
    metrics: str
    sessions: Path  # with its logs


# Ray gives a node half a minute to start, which cannot be configured and is too short where others start meanwhile.
STARTED_TOO_SLOWLY = "The current node timed out during startup"
STARTS = 3


def sessions_folder() -> tempfile.TemporaryDirectory[str]:
    """For RAY_TMPDIR of a head: its sessions, and the note of which cluster is this machine's, by which jobs go.

    Sockets lie in it, whose paths may have 107 characters: pytest's folders are too deep.
    """
    return tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def ray_head(
    folder: Path,
    environment: Mapping[str, str],
    num_cpus: int = 8,
    dashboard: bool = True,
    log_monitor: bool = False,
) -> Iterator[RayHead]:
    """Run a head of `num_cpus` logical CPUs whose workers inherit `environment`. Ends with the block.

    Args:
        dashboard: takes submitted jobs; without it the head starts sooner.
        log_monitor: brings what workers print to drivers that ask for it (`--verbose`).
    """
    gcs, dashboard_port, client, agent, metrics = free_ports(5)
    metrics_url = f"http://{LOOPBACK}:{metrics}/metrics"
    with sessions_folder() as sessions:
        process = ServerProcess(
            name="ray head",
            command=[
                str(Path(sys.executable).parent / "ray"),
                *("start", "--head", "--block", "--disable-usage-stats", f"--node-ip-address={LOOPBACK}"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
                *(f"--num-cpus={num_cpus}", f"--object-store-memory={2**30}"),
                *(f"--include-dashboard={str(dashboard).lower()}", f"--include-log-monitor={str(log_monitor).lower()}"),
            ],
            url=f"http://{LOOPBACK}:{dashboard_port}/" if dashboard else metrics_url,
            log=folder / "ray.log",
            environment={
                **environment,
                **ACCESS,
                **warm_start(),
                "RAY_TMPDIR": sessions,
                # Ray would start a worker for each CPU with the first driver, which most tests never use.
                "RAY_prestart_worker_first_driver": "0",
                # The environment's programs, without anything from the process that runs the tests.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
        )
        try:
            _start(process)
            drivers = {**ACCESS, "RAY_ADDRESS": f"{LOOPBACK}:{gcs}"}
            yield RayHead(drivers, f"http://{LOOPBACK}:{dashboard_port}", metrics_url, Path(sessions))
        finally:
            process.stop()


def _start(process: ServerProcess) -> None:
    for attempt in range(1, STARTS + 1):
        process.start()
        try:
            return process.wait_until_it_answers(120)
        except RuntimeError as error:
            process.stop()
            if attempt == STARTS or STARTED_TOO_SLOWLY not in str(error):
                raise
