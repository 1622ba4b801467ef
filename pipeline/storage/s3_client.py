"""S3 connections: endpoint, credentials, timeouts and retries.

botocore resolves endpoint and credentials from the standard AWS environment, `~/.aws` and roles, so they are the same
for obstore, which reads objects, and s3fs, which writes them. docs/storage.md documents retries and time limits.
"""

import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import botocore.config
import botocore.exceptions
import botocore.session
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, S3Credential

# In seconds. By default, both libraries wait for minutes if a server hangs.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0  # without a byte
RETRIES = 4  # after the first try: on 5xx, SlowDown, resets, timeouts and bodies that end early
# Exponential backoff with jitter: a pause is drawn between FIRST_PAUSE and min(FIRST_PAUSE * PAUSE_GROWTH**retry,
# LONGEST_PAUSE).
FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 0.2, 4.0, 10.0
# Time limit of one request, or the time for its bytes at SLOWEST_DOWNLOAD if that is longer. No retry starts after
# twice that time.
DEADLINE = 30.0
SLOWEST_DOWNLOAD = 250_000  # bytes per second
CONNECTIONS = 16  # that botocore keeps open
# Until botocore is asked for credentials again. botocore renews them ten minutes before they expire.
CREDENTIALS_LAST = timedelta(minutes=5)

AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


def client_config() -> dict[str, Any]:
    """Return the settings for a botocore client, including that of s3fs."""
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"max_attempts": RETRIES, "mode": "standard"},
    }
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        # S3-compatible servers rarely have a host name for each bucket.
        config["s3"] = {"addressing_style": "path"}
    return config


class _Credentials:
    """Credential provider for obstore that returns botocore's credentials. botocore renews those of roles."""

    def __init__(self, session: botocore.session.Session) -> None:
        found = session.get_credentials()
        if found is None:
            raise botocore.exceptions.NoCredentialsError()
        self._credentials = found

    def __call__(self) -> "S3Credential":
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_LAST,
        }


class Connection:
    """Connection to S3 under one AWS environment: botocore's client, and obstore's stores by bucket."""

    def __init__(self) -> None:
        session = botocore.session.get_session()
        config = botocore.config.Config(**client_config(), max_pool_connections=CONNECTIONS)
        self.client = session.create_client("s3", config=config)
        self.endpoint = self.client.meta.endpoint_url
        self._certificates = session.get_config_variable("ca_bundle")
        self._session = session
        self._stores: dict[tuple[str, float], S3Store] = {}
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._answered = self._probed = 0.0

    def store(self, bucket: str, seconds: float) -> S3Store:
        """Return the store of a bucket with this request timeout in seconds."""
        global _runtime_runs
        with self._lock:
            _runtime_runs = True
            if (bucket, seconds) not in self._stores:
                self._stores[bucket, seconds] = self._new_store(bucket, seconds)
            return self._stores[bucket, seconds]

    def _new_store(self, bucket: str, seconds: float) -> S3Store:
        options: ClientConfig = {
            "allow_http": self.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
            "read_timeout": timedelta(seconds=READ_TIMEOUT),
            "timeout": timedelta(seconds=seconds),
        }
        if self._certificates:
            with open(self._certificates, "rb") as file:
                options["root_certificate"] = file.read()
        address, has_bucket = address_of(self.endpoint, bucket)
        backoff: BackoffConfig = {
            "init_backoff": timedelta(seconds=FIRST_PAUSE),
            "max_backoff": timedelta(seconds=LONGEST_PAUSE),
            "base": PAUSE_GROWTH,
        }
        return S3Store(
            bucket,
            # Set all of these, because obstore takes missing options from the environment.
            endpoint=address,
            aws_endpoint_url_s3=address,
            virtual_hosted_style_request=has_bucket,
            region=self._region(bucket),
            skip_signature=False,
            client_options=options,
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=2 * seconds),
                "backoff": backoff,
            },
            credential_provider=_Credentials(self._session),
        )

    def _region(self, bucket: str) -> str:
        """Return the region of a bucket, which obstore does not look up. Amazon reports it even if access is denied."""
        region = self.client.meta.region_name
        if _is_amazon(self.endpoint):
            try:
                answer = self.client.head_bucket(Bucket=bucket)
            except botocore.exceptions.ClientError as error:
                answer = error.response
            region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", region)
        return "us-east-1" if region in (None, "aws-global") else region

    def note_answer(self) -> None:
        self._answered = time.monotonic()

    def answers_since(self, begin: float) -> bool:
        """Return True if the endpoint has answered any request since `begin` (monotonic seconds), or answers now.

        One probe serves all waiting threads.
        """
        with self._probing:
            if self._answered >= begin:
                return True
            if self._probed < begin or self._probed < time.monotonic() - READ_TIMEOUT:
                if any(_answers(self.endpoint) for _ in range(2)):
                    self.note_answer()
                    return True
                self._probed = time.monotonic()
            return False


def address_of(endpoint: str, bucket: str) -> tuple[str, bool]:
    """Return the address for requests to a bucket, and True if it is virtual-hosted, as Amazon requires."""
    if not _is_amazon(endpoint) or "." in bucket:  # the certificate for *.s3.amazonaws.com covers only one level
        return endpoint, False
    scheme, host, *rest = urlsplit(endpoint)
    return urlunsplit((scheme, f"{bucket}.{host}", *rest)), True


def _is_amazon(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(AMAZON)


def _answers(endpoint: str) -> bool:
    """Return True if the endpoint answers, even with an error."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=READ_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


_connections: dict[tuple[Any, ...], Connection] = {}
_making = threading.Lock()
_runtime_runs = _runtime_is_lost = False


def current() -> Connection:
    """Return the connection for the current AWS environment."""
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:
        if environment not in _connections:
            _connections.clear()
            _connections[environment] = Connection()
        return _connections[environment]


def obstore_works() -> bool:
    """Return False in a process that was forked from one that had used obstore."""
    return not _runtime_is_lost


def forget() -> None:
    """Drop all connections, so that the next request connects again."""
    global _making
    _making = threading.Lock()
    _connections.clear()


def _after_fork() -> None:
    # obstore's threads do not survive a fork, so its reads would block forever.
    global _runtime_is_lost
    _runtime_is_lost = _runtime_is_lost or _runtime_runs
    forget()


os.register_at_fork(after_in_child=_after_fork)
