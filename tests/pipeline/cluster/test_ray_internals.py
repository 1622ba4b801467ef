"""Canary tests of the private APIs of Ray that the pipeline uses: each fails if a later Ray changes its API."""

import ast
import inspect
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data

from pipeline.cluster import connection, ray_internals
from pipeline.doctor import nodes
from pipeline.doctor.run import NOTICES_OF_LOSS
from pipeline.errors import UserError
from tests.conftest import REPOSITORY

RAY = "2.60"  # the version on which the APIs were verified
MODULE = REPOSITORY / "pipeline/cluster/ray_internals.py"
NODE_PROVIDER = REPOSITORY / "pipeline/cluster/aws_node_provider.py"
PACKAGE = Path(ray.__file__).parent


@contextmanager
def verified(api: str, module: Path = MODULE) -> Iterator[None]:
    """Say what to check if the API is missing, or is not as asserted in the `with` block."""
    try:
        yield
    except (AssertionError, AttributeError, ImportError, TypeError, ValueError, pytest.fail.Exception) as error:
        pytest.fail(
            f"Ray {ray.__version__} changed {api}, verified on {RAY} ({type(error).__name__}: {error}); "
            f"see {module.relative_to(REPOSITORY)}"
        )


def accepts(function: Any, *arguments: Any, **options: Any) -> bool:
    """Return True if the function can be called so. Raises TypeError if not."""
    return inspect.signature(function).bind(*arguments, **options) is not None


def contains(path: str, text: str) -> bool:
    return text.encode() in (PACKAGE / path).read_bytes()


def test_a_changed_api_is_reported_with_its_version_and_the_place_to_check() -> None:
    advice = re.escape(f"Ray {ray.__version__} changed no_api, verified on {RAY} (AttributeError: ")
    with (
        pytest.raises(pytest.fail.Exception, match=f"^{advice}.*; see pipeline/cluster/ray_internals.py$"),
        verified("no_api"),
    ):
        ray.no_api  # noqa: B018


def test_token_authentication() -> None:
    from ray._private.authentication import authentication_utils

    with verified("is_token_auth_enabled"):
        assert accepts(authentication_utils.is_token_auth_enabled)
        assert isinstance(ray_internals.uses_token_authentication(), bool)


def test_client_that_asks_the_head() -> None:
    with verified("GcsClient"):
        from ray._raylet import GcsClient, InnerGcsClient
        from ray.exceptions import AuthenticationError

        with pytest.raises(ValueError, match="Invalid gcs_address"):
            GcsClient(address="nowhere")
        assert accepts(InnerGcsClient.internal_kv_keys, None, b"", b"fun", timeout=10)
        assert issubclass(AuthenticationError, Exception)
    compile(ray_internals.ASK_HEAD, "ASK_HEAD", "exec")


def test_global_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with verified("the global node"):
        from ray._private import node, worker

        assert hasattr(worker, "_global_node")
        assert isinstance(node.Node.webui_url, property)
        assert accepts(node.Node.get_temp_dir_path, None)
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.dashboard_address() is None


def test_options_of_the_raylet() -> None:
    with verified("the options of the raylet"):
        from ray._private import services

        source = inspect.getsource(services.start_raylet)
        for name in ("plasma_directory", "fallback_directory"):
            assert f'f"--{name}={{{name}}}"' in source


def test_available_resources_per_node() -> None:
    with verified("available_resources_per_node"):
        from ray._private import state

        assert accepts(state.available_resources_per_node)


def test_resources_of_the_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    with verified("get_max_resources_from_cluster_config"):
        from ray._private import state
        from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

        groups = [
            NodeGroupConfig(resources={"CPU": 16, "GPU": 1}, max_count=8),
            NodeGroupConfig(resources={"CPU": 4}, max_count=2),
        ]
        config: ClusterConfig | None = ClusterConfig(node_group_configs=groups)
        monkeypatch.setattr(state.state, "get_cluster_config", lambda: config)
        assert ray_internals.max_resources_of_autoscaler() == {"CPU": 136, "GPU": 8}
        config = None  # as Ray has it without an autoscaler
        assert ray_internals.max_resources_of_autoscaler() == {}


def test_log_level_of_the_core() -> None:
    with verified("RAY_BACKEND_LOG_LEVEL"):
        assert contains("_raylet.so", "RAY_BACKEND_LOG_LEVEL")


def test_suppressed_messages_of_the_raylet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    told = [f"12 {connection.MANY_PROCESSES} 1f2e", "the disk is full"]
    stopped = threading.Event()

    def poll() -> tuple[None, dict[str, Any]]:
        message = told.pop(0)
        if not told:
            stopped.set()
        return None, {"job_id": None, "error_message": message}

    subscriber = SimpleNamespace(subscribe=lambda: None, poll=poll)
    monkeypatch.setattr(worker, "_internal_kv_initialized", lambda: False)
    with verified("the printing of the raylet's messages"):
        monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # restores it after the test
        ray_internals.suppress_raylet_messages(connection.MANY_PROCESSES)
        driver: Any = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=ray.JobID.nil())
        worker.listen_error_messages(driver, stopped)
        printed = capsys.readouterr().out
        assert "the disk is full" in printed
        assert connection.MANY_PROCESSES not in printed


def test_handler_of_ctrl_c_during_training() -> None:
    import inspect

    from ray.train.torch import TorchTrainer

    with verified("the handler of SIGINT in fit"):
        assert "self._register_sigint_handler(controller)" in inspect.getsource(TorchTrainer.fit) + inspect.getsource(
            TorchTrainer._initialize_and_run_controller
        )


def test_wording_of_the_suppressed_messages() -> None:
    with verified("the wording of the messages that are suppressed"):
        terminated, dead = NOTICES_OF_LOSS
        assert contains("core/src/ray/raylet/raylet", connection.MANY_PROCESSES)
        assert contains("_private/process_watcher.py", terminated)
        assert contains("core/src/ray/gcs/gcs_server", dead)


def test_resource_of_the_head() -> None:
    with verified("HEAD_NODE_RESOURCE_NAME"):
        from ray._common.constants import HEAD_NODE_RESOURCE_NAME

        assert HEAD_NODE_RESOURCE_NAME == nodes.HEAD


def test_batches_of_whole_blocks() -> None:
    options = {"fn_constructor_kwargs": {}, "batch_format": "pyarrow", "num_cpus": 1, "num_gpus": 1, "compute": None}
    with verified("Dataset.map_batches_internal"):
        assert accepts(ray.data.Dataset.map_batches_internal, None, dict, batch_size=None, **options)


def test_callbacks_of_an_execution() -> None:
    with verified("ExecutionCallback"):
        from ray.data._internal.execution.streaming_executor import StreamingExecutor

        base = ray_internals.ExecutionCallback
        assert accepts(base)
        assert accepts(base.on_execution_step, None, executor=None)

        class Callback(base):  # type: ignore[misc, valid-type]
            pass

        context = ray.data.DataContext.get_current().copy()
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Callback]
        assert Callback in context.execution_callback_classes
        assert "callback.on_execution_step(self)" in inspect.getsource(StreamingExecutor)


def test_the_first_of_equal_reservations_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # otherwise the coordinator starts a thread
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    with verified("the AutoscalingCoordinator"):
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module
        from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as of_training

        assert "priority=ResourceRequestPriority.HIGH" in inspect.getsource(of_training)
        assert accepts(module.get_or_create_autoscaling_coordinator)
        node = {"Alive": True, "NodeID": "a", "Resources": {"CPU": 3.0}}
        coordinator = module._AutoscalingCoordinatorActor(
            send_resources_request=lambda *_: None, get_cluster_nodes=lambda: [node]
        )
        handle = SimpleNamespace(
            request_resources=SimpleNamespace(remote=coordinator.request_resources),
            cancel_request=SimpleNamespace(remote=coordinator.cancel_request),
        )
        monkeypatch.setattr(module, "get_or_create_autoscaling_coordinator", lambda: handle)
        first = ray_internals.Reservation("first", [{"CPU": 2.0}])
        second = ray_internals.Reservation("second", [{"CPU": 2.0}])
        first.renew(60)
        second.renew(60)
        first.renew(60)
        assert coordinator.get_reserved_resources("first") == {"a": {"CPU": 2.0}}
        assert coordinator.get_reserved_resources("second") == {}
        first.cancel()
        assert coordinator.get_reserved_resources("first") == {}
        assert coordinator.get_reserved_resources("second") == {"a": {"CPU": 2.0}}


def test_node_provider_on_aws() -> None:
    with verified("AWSNodeProvider", NODE_PROVIDER):
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler.node_launch_exception import NodeLaunchException

        assert list(inspect.signature(AWSNodeProvider._create_node).parameters) == [
            *("self", "node_config", "tags", "count")
        ]
        assert NodeLaunchException("SpotMaxPriceTooLow", "", None).category == "SpotMaxPriceTooLow"


def test_the_node_provider_imports_nothing_of_this_project() -> None:
    """The head imports it alone."""
    assert packages(ast.parse(NODE_PROVIDER.read_text())) - sys.stdlib_module_names == {"ray"}


def test_importing_the_module_does_not_import_ray_data() -> None:
    """Processes that decode images import it, and `ray.data` takes seconds."""
    top = [node for node in ast.parse(MODULE.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = {name for node in top for name in imported(node) if name.startswith("ray")}
    assert {name for name in ours if name != "ray" and not name.startswith("ray._private.")} == set()


@pytest.mark.parametrize("folder", ["pipeline", "jobs", "models"])
def test_no_other_module_uses_private_apis_of_ray(folder: str) -> None:
    others = {*(REPOSITORY / folder).rglob("*.py")} - {MODULE, NODE_PROVIDER}
    assert others
    found = {str(path.relative_to(REPOSITORY)): private_uses(ast.parse(path.read_text())) for path in others}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.worker",
        "def f():\n    from ray._raylet import GcsClient",
        "from ray.data import _internal",
        "from ray.train.v2._internal.execution import context",
        "import ray\nray._private.state.state",
        "import ray\nray.data.Dataset._plan",
        "dataset.map_batches_internal(f)",
        "CODE = 'from ray._raylet import GcsClient'",
    ],
)
def test_private_uses_are_found(code: str) -> None:
    assert private_uses(ast.parse(code))


def test_public_uses_are_no_private_ones() -> None:
    assert private_uses(ast.parse("import ray.data\nfrom ray.data.block import Block\nray.data.from_arrow(t)")) == set()
    assert private_uses(ast.parse(MODULE.read_text()))
    assert private_uses(ast.parse(NODE_PROVIDER.read_text()))


def private_uses(tree: ast.AST) -> set[str]:
    """Return the private names of Ray in imports, in `ray.` expressions and in programs that are strings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {*imported(node)}
        elif isinstance(node, ast.Attribute):
            found.add("ray." + node.attr if node.attr.endswith("_internal") else ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {*re.findall(r"\b(?:import|from)\s+(ray\.[\w.]+)", node.value)}
    private = re.compile(r"ray\.([\w.]+\.)?(_\w*|\w+_internal)\b")
    return {name for name in found if private.match(name)}


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the full names of what a statement imports."""
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    yield from (prefix + name.name for name in node.names)


def packages(tree: ast.AST) -> set[str]:
    """Return the packages that a module imports from, wherever in it."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in statements for name in imported(node)}


def test_the_terminal_handler_of_ray_data_can_filter_records(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    with verified("the log handlers of Ray Data"):
        handlers = logging.getLogger("ray.data").handlers
        (handler,) = (one for one in handlers if type(one).__module__ == "ray._private.log")
        assert isinstance(handler, logging.StreamHandler)
    monkeypatch.setattr(handler, "filters", list(handler.filters))
    monkeypatch.setattr(handler, "emit", lambda record: shown.append(record.getMessage()))
    logger = logging.getLogger("ray.data.exceptions")
    ray_internals.hide_logged_user_errors()
    ray_internals.hide_logged_user_errors()
    logger.error("no error is handled")
    for error in (UserError("data.root: missing"), ValueError("a bug")):
        try:
            raise RuntimeError("task failed") from error
        except RuntimeError as failure:
            logger.error("while it is handled: %r", error)
            handled = failure
        logger.error("afterwards: %r", error, exc_info=handled)
    assert shown == [
        "no error is handled",
        "while it is handled: ValueError('a bug')",
        "afterwards: ValueError('a bug')",
    ]
