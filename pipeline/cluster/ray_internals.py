"""Private APIs of Ray, verified on 2.60; each has a canary test in tests/pipeline/cluster/test_ray_internals.py.

No other module uses private APIs, except aws_node_provider.py. Only `ray` itself is imported at the top: processes that
decode images import this module, and `ray.data` takes seconds.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray._private.state
import ray._private.worker
from ray._private.authentication.authentication_utils import is_token_auth_enabled

from pipeline.errors import user_error

if TYPE_CHECKING:
    import ray.data
    from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback

# Program that prints whether the head at the address in its first argument accepts its token. It runs in a separate
# process, because Ray reads the token only once per process.
ASK_HEAD = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"fun", timeout=10)
except AuthenticationError:
    print("refused")
else:
    print("let in")
"""


def __getattr__(name: str) -> Any:
    """Import ExecutionCallback, the base of Ray Data's callbacks, when it is first used."""
    if name == "ExecutionCallback":
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        return ExecutionCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def uses_token_authentication() -> bool:
    """Return True if this process uses token authentication."""
    return is_token_auth_enabled()


def dashboard_address() -> str | None:
    """Return HOST:PORT of the dashboard; empty or None if none is running."""
    node = ray._private.worker._global_node
    return node.webui_url if node is not None else None


def temporary_folder() -> str:
    """Return the folder on this node that contains Ray's session folders."""
    node = ray._private.worker._global_node
    assert node is not None, "not in a worker"
    return node.get_temp_dir_path()


def raylet_options() -> dict[str, str]:
    """Return the options of the raylet, this worker's parent process; empty if the system does not show them."""
    command = Path(f"/proc/{os.getppid()}/cmdline")
    arguments = command.read_bytes().decode(errors="replace").split("\0") if command.exists() else []
    pairs = [argument.removeprefix("--").partition("=") for argument in arguments if argument.startswith("--")]
    return {name: value for name, _, value in pairs}


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Return the resources that are not in use, by node id."""
    return ray._private.state.available_resources_per_node()


def max_resources_of_autoscaler() -> dict[str, int]:
    """Return the most that the autoscaler may provide; empty without an autoscaler."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


@contextmanager
def hide_core_messages() -> Iterator[None]:
    """Hide the messages that Ray's C++ core prints while it starts; show them if the start fails.

    They bypass Python's logging. Their level can be set only by an environment variable, and the core prints that it
    uses the variable, so stderr is redirected, too.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(terminal, hidden.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def suppress_raylet_messages(notice: str) -> None:
    """Suppress the raylet's messages that contain `notice`; Ray has no setting for that. Others are still printed."""
    show = ray._private.worker.print_to_stdstream

    def show_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if not any(notice in line for line in data.get("lines", ())):
            show(data, *arguments, **options)

    ray._private.worker.print_to_stdstream = show_others


def hide_logged_user_errors() -> None:
    """Keep Ray Data from printing tracebacks of a UserError, whose message the job prints; its log file has them."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(_is_no_user_error)


def _is_no_user_error(record: logging.LogRecord) -> bool:
    """Return False for a record about a UserError, which may be logged in several records while it is handled."""
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    return error is None or user_error(error) is None


def let_ctrl_c_interrupt(trainer: Any) -> None:
    """Let Ctrl-C raise KeyboardInterrupt from `trainer.fit()`, which would end the process without a message."""
    trainer._register_sigint_handler = lambda controller: None


def map_blocks(dataset: "ray.data.Dataset", function: Callable[..., Any], **options: Any) -> "ray.data.Dataset":
    """Call `Dataset.map_batches` for unsplit blocks, which it refuses if the function's actors reserve GPUs."""
    return dataset.map_batches_internal(function, batch_size=None, **options)


class Reservation:
    """Request for resources to the actor through which Ray Data and Ray Train share a cluster."""

    def __init__(self, name: str, bundles: Sequence[dict[str, float]]) -> None:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        self._coordinator: Any = get_or_create_autoscaling_coordinator()
        self._name, self._bundles = name, list(bundles)

    def renew(self, seconds: float) -> None:
        """Request the resources, from now on for this long."""
        from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority

        # The priority of training itself. Among equal priorities the first request wins.
        high = ResourceRequestPriority.HIGH
        ray.get(self._coordinator.request_resources.remote(self._name, self._bundles, seconds, priority=high))

    def cancel(self) -> None:
        """Cancel the request."""
        ray.get(self._coordinator.cancel_request.remote(self._name))
