"""The way to S3: who is asked, with which credentials, and how patiently.

botocore decides the first two, so that they are the same for obstore, which reads objects, as for s3fs, which writes
them: the standard AWS environment, `~/.aws` and roles. docs/storage.md says what is tried again, and how long
everything lasts at most.
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

# Both libraries wait for minutes on a server that hangs unless they are told otherwise; seconds.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0  # without a byte
RETRIES = 4  # after the first try: on 5xx, SlowDown, resets, timeouts and bodies that end early
FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 0.2, 4.0, 10.0  # before a retry; each is drawn between the first and these
# One request may take this long, or as long as its bytes last at the slowest rate; no retry begins after twice that.
DEADLINE = 30.0
SLOWEST_DOWNLOAD = 250_000  # bytes a second
CONNECTIONS = 16  # botocore keeps so many open
CREDENTIALS_LAST = timedelta(minutes=5)  # until botocore is asked again, which renews them ten minutes ahead

AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


def client_config() -> dict[str, Any]:
    """Settings of a botocore client, s3fs's as well."""
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"max_attempts": RETRIES, "mode": "standard"},
    }
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        # Servers other than Amazon's seldom have a host name for each bucket.
        config["s3"] = {"addressing_style": "path"}
    return config


class _Credentials:
    """What obstore calls for credentials: botocore's, which renews those of roles."""

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
    """The way to S3 under one environment: botocore's client, and obstore's stores by bucket."""

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
        """Store of a bucket whose requests may take so many seconds."""
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
            # All of these, since obstore takes from the environment what it is not told.
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
        """The bucket's region, which Amazon tells even where it refuses; obstore does not find it by itself."""
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
        """Whether the endpoint has answered anyone since, or answers now; asks once for all threads that wait."""
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
    """Address for requests about a bucket, and whether its host name has the bucket, as Amazon wants it."""
    if not _is_amazon(endpoint) or "." in bucket:  # a certificate for *.s3.amazonaws.com holds for one level
        return endpoint, False
    scheme, host, *rest = urlsplit(endpoint)
    return urlunsplit((scheme, f"{bucket}.{host}", *rest)), True


def _is_amazon(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(AMAZON)


def _answers(endpoint: str) -> bool:
    """Whether anything answers there, be it a refusal."""
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
    """The connection for the AWS environment as it is now."""
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:
        if environment not in _connections:
            _connections.clear()
            _connections[environment] = Connection()
        return _connections[environment]


def obstore_works() -> bool:
    """False in a process that was forked from one that had used obstore."""
    return not _runtime_is_lost


def forget() -> None:
    """Connect anew at the next request."""
    global _making
    _making = threading.Lock()
    _connections.clear()


def _after_fork() -> None:
    # obstore's threads do not survive it: its reads would wait for ever.
    global _runtime_is_lost
    _runtime_is_lost = _runtime_is_lost or _runtime_runs
    forget()


os.register_at_fork(after_in_child=_after_fork)
