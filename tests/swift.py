"""A real OpenStack Swift with its S3 interface on the loopback interface, for tests.

Unlike moto it checks credentials and keeps its data on disk. Linux only. One replica on one pretended disk;
one process each for accounts, containers, objects and the proxy that speaks S3.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import botocore.config
import botocore.exceptions
import botocore.session

from pipeline.demo.local_s3 import s3_environment
from pipeline.demo.server_process import LOOPBACK, ServerProcess, free_ports

KEY = "test:tester"
SECRET = "testing"
STORAGE = ("account", "container", "object")

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = sceneparse
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
"""

DEFAULT_SECTION = """\
[DEFAULT]
bind_ip = {loopback}
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
log_level = WARNING
"""

# The generous times keep a busy test machine from becoming a server error, or a listing that lacks an object:
# after `container_update_timeout` Swift leaves the entry to a daemon that does not run here.
STORAGE_CONF = (
    DEFAULT_SECTION
    + """\
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
container_update_timeout = 60
[pipeline:main]
pipeline = healthcheck {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 10
node_timeout = 60
[filter:healthcheck]
use = egg:swift#healthcheck
"""
)

PROXY_CONF = (
    DEFAULT_SECTION
    + """\
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo \
versioned_writes proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
conn_timeout = 10
node_timeout = 60
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
"""
)

# One process instead of the nine runs of swift-ring-builder that do the same. Not in this process: pytest may
# have this file's folder on its path, where `import swift` finds this file.
BUILD_RINGS = """\
import sys
from swift.common.ring import RingBuilder

folder, *servers = sys.argv[1:]
for server in servers:
    kind, ip, port = server.split(",")
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    address = {"ip": ip, "port": int(port), "replication_ip": ip, "replication_port": int(port)}
    builder.add_dev({"region": 1, "zone": 1, "device": "sdb1", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


class SwiftServer:
    """The four processes of one Swift, their data under one folder, and their ports kept over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        *storage_ports, proxy_port = free_ports(len(STORAGE) + 1)
        self.ports = dict(zip((*STORAGE, "proxy"), (*storage_ports, proxy_port), strict=True))
        self.endpoint = f"http://{LOOPBACK}:{proxy_port}"
        self.environment = s3_environment(self.endpoint, KEY, SECRET)
        self._processes = [self._process(kind) for kind in self.ports]

    def prepare(self) -> None:
        """Write the configuration and the rings, and make the pretended disk."""
        (self.folder / "devices" / "sdb1").mkdir(parents=True, exist_ok=True)
        _require_extended_attributes(self.folder / "devices" / "sdb1")
        (self.folder / "swift.conf").write_text(SWIFT_CONF)
        for kind in self.ports:
            self._conf_path(kind).write_text(self._conf(kind))
        servers = [f"{kind},{LOOPBACK},{self.ports[kind]}" for kind in STORAGE]
        command = [sys.executable, "-I", "-c", BUILD_RINGS, str(self.folder), *servers]
        built = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if built.returncode:
            raise RuntimeError(f"Swift's rings could not be built:\n{built.stderr.strip()}")

    def start(self) -> None:
        """Start on whatever data the folder holds, and return when S3 requests are answered."""
        for process in self._processes:
            process.start()
        for process in self._processes:
            process.wait_until_it_answers()
        self._wait_for_s3()

    def stop(self) -> None:
        """End all processes. The data stay."""
        for process in reversed(self._processes):
            process.stop()

    def kill(self) -> None:
        """End all processes with SIGKILL, the proxy first. The data stay."""
        for process in reversed(self._processes):
            process.kill()

    def _process(self, kind: str) -> ServerProcess:
        return ServerProcess(
            name=f"swift-{kind}-server",
            command=[
                str(Path(sys.executable).parent / f"swift-{kind}-server"),
                str(self._conf_path(kind)),
                "-v",
            ],
            url=f"http://{LOOPBACK}:{self.ports[kind]}/healthcheck",
            log=self.folder / f"{kind}.log",
        )

    def _conf_path(self, kind: str) -> Path:
        return self.folder / f"{kind}-server.conf"

    def _conf(self, kind: str) -> str:
        template = PROXY_CONF if kind == "proxy" else STORAGE_CONF
        return template.format(
            loopback=LOOPBACK,
            port=self.ports[kind],
            folder=self.folder,
            user=_user(),
            kind=kind,
            secret=SECRET,
        )

    def _wait_for_s3(self, seconds: float = 30.0) -> None:
        """List the buckets once: it takes all four servers' part, and makes Swift create the account."""
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=botocore.config.Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        deadline = time.monotonic() + seconds
        while True:
            try:
                client.list_buckets()
                return
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Swift does not answer S3 at {self.endpoint}: {error}") from error
                time.sleep(0.1)


@contextlib.contextmanager
def swift_server(folder: Path) -> Iterator[SwiftServer]:
    """Run Swift with configuration, data and logs in `folder`; end it with the block or with this process.

    Raises:
        RuntimeError: the folder's file system has no extended attributes, the current user has no name, or a
            server did not start (with its last output).
    """
    server = SwiftServer(folder)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()


def _user() -> str:
    """The current user's name: Swift insists on changing to a named user, even to the one it runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise RuntimeError(f"Swift needs a user with a name, and user id {os.geteuid()} has none here") from None


def _require_extended_attributes(folder: Path) -> None:
    """Swift keeps each object's metadata in its file's extended attributes."""
    probe = folder / ".probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.metadata", b"x" * 1024)
    except OSError as error:
        raise RuntimeError(
            f"Swift needs a file system with extended attributes, and {folder} is not on one "
            f"({error.strerror}). Choose another, for example with pytest --basetemp"
        ) from error
    finally:
        probe.unlink()


if __name__ == "__main__":
    # For work by hand: python -m tests.swift FOLDER runs until it is interrupted.
    with swift_server(Path(sys.argv[1])) as running:
        for name, value in running.environment.items():
            print(f"export {name}={value}")
        print("# serving; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
