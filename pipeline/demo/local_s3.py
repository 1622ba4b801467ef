"""S3 server on this machine, for demonstrations and tests without a cloud account.

It is moto's server: it starts in about a second, and loses all its objects when it stops. It accepts any
credentials, so it cannot test access rights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.server_process import LOOPBACK, ServerProcess, free_ports
from pipeline.errors import UserError


@dataclass(frozen=True)
class LocalS3:
    """Running S3 server: its address, and the environment variables with which S3 clients find it."""

    endpoint: str
    environment: dict[str, str]


@contextlib.contextmanager
def local_s3(folder: Path | None = None) -> Iterator[LocalS3]:
    """Run an empty S3 server in a separate process, on a free port of the loopback interface.

    It stops, and loses its objects, at the end of the `with` block, or when this process ends.

    Args:
        folder: for the server's log and temporary files (default: a temporary folder, removed at the end).

    Raises:
        UserError: moto is not installed.
        RuntimeError: the server did not start. The message contains its last output.
    """
    if importlib.util.find_spec("moto") is None:
        raise UserError('The local S3 server needs moto, which is not installed: pip install "moto[server]"')
    with contextlib.ExitStack() as at_exit:
        if folder is None:
            folder = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="local-s3-")))
        folder.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        endpoint = f"http://{LOOPBACK}:{port}"
        server = ServerProcess(
            name="moto's S3 server",
            command=[sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
            # Listing the buckets makes moto load its S3 part now instead of during the first request.
            url=f"{endpoint}/",
            log=folder / "moto.log",
            environment={"MOTO_PORT": str(port), "TMPDIR": str(folder)},
        )
        at_exit.callback(server.stop)
        server.start()
        server.wait_until_it_answers()
        yield LocalS3(endpoint, s3_environment(endpoint, key="local", secret="local"))


def s3_environment(endpoint: str, key: str, secret: str) -> dict[str, str]:
    """Return the environment variables that direct s3fs, boto3 and the AWS tools to the S3 server at `endpoint`.

    The host must be an IP address, because only then do these clients put the bucket into the path of a URL
    instead of its host name. pyarrow's own S3FileSystem reads the keys from these variables, but needs the address
    as `endpoint_override`.
    """
    no_proxy = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK]))
    return {
        "AWS_ENDPOINT_URL": endpoint,
        # The service-specific variable takes precedence, so an existing value must be overwritten.
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        # Cleared, because a token of the user's own AWS session does not belong to these keys.
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
