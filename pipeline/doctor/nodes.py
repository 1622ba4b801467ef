"""Nodes of a cluster, and queries to all of them in parallel, in bounded time."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.errors import user_error

HELLO_LIMIT = 90.0  # seconds for a node's first answer: it starts a worker and unpacks the job's working directory
ROLL_CALL_LIMIT = 20.0  # seconds for a sign of life from a node that has not answered a query
HEAD = "node:__internal_head__"  # a resource that only the head has
LOST = "was lost during the checks; check its logs and the provider's console (a preempted spot node?)"


@dataclass(frozen=True)
class Node:
    """Live node with the resources that Ray reports."""

    id: str
    name: str  # in findings
    address: str
    cpus: float
    gpus: int
    object_store_bytes: int
    is_head: bool

    @property
    def computes(self) -> bool:
        return self.cpus > 0 or self.gpus > 0


@dataclass(frozen=True)
class Answer:
    """Answer of a node, with times by this process's clock in seconds since the epoch."""

    value: Any
    sent: float
    received: float


@dataclass(frozen=True)
class Silence:
    """Reason for a missing answer."""

    sentence: str
    timed_out: bool = False


Reply = Answer | Silence


@dataclass(frozen=True)
class Question:
    """Task that was sent to a node."""

    node: Node
    reference: Any
    sent: float


def living_nodes() -> list[Node]:
    """Return the live nodes, the head first. Names of nodes that share an address include a part of the node id."""
    found = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in found]
    nodes = [_node(node, unique=addresses.count(node["NodeManagerAddress"]) == 1) for node in found]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def _node(node: dict[str, Any], unique: bool) -> Node:
    has = node["Resources"]
    name = node["NodeManagerAddress"] if unique else f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"
    return Node(
        id=node["NodeID"],
        name=f"{name} (head)" if HEAD in has else name,
        address=node["NodeManagerAddress"],
        cpus=has.get("CPU", 0),
        gpus=int(has.get("GPU", 0)),
        object_store_bytes=int(has.get("object_store_memory", 0)),
        is_head=HEAD in has,
    )


def send(function: Callable[..., Any], node: Node, *arguments: Any, gpus: int = 0, fresh: bool = False) -> Question:
    """Run a function on this node only, concurrently with any other work on the node.

    Args:
        gpus: number of GPUs to reserve. Nothing else is reserved, so that busy nodes and a head without CPUs answer.
        fresh: end the worker process after the task.
    """
    task = ray.remote(max_retries=0, max_calls=1 if fresh else 0, **on(node, gpus))(function)
    return Question(node, task.remote(*arguments), time.time())


def on(node: Node, gpus: int = 0) -> dict[str, Any]:
    """Return the Ray options of a task or actor that runs only on this node and reserves only GPUs."""
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": strategy}


def collect(questions: Sequence[Question], limit: float) -> list[tuple[Node, Reply]]:
    """Return the replies in the order of the questions. Tasks without a reply after `limit` seconds are canceled."""
    end = time.monotonic() + limit
    replies: dict[Any, Reply] = {}
    sent = {question.reference: question.sent for question in questions}
    waiting = list(sent)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(end - time.monotonic(), 0))
        if not ready:
            break
        received = time.time()
        for reference in ready:
            replies[reference] = _reply(reference, sent[reference], received)
    for reference in waiting:
        ray.cancel(reference, force=True)
        replies[reference] = Silence(f"no answer within {limit:.0f} s", timed_out=True)
    return [(question.node, replies[question.reference]) for question in questions]


def _reply(reference: Any, sent: float, received: float) -> Reply:
    try:
        return Answer(ray.get(reference, timeout=ROLL_CALL_LIMIT), sent, received)
    except Exception as error:
        return Silence(sentence_of(error), isinstance(error, ray.exceptions.GetTimeoutError))


def here(function: Callable[..., Any], *arguments: Any, limit: float) -> Reply:
    """Call a function in this process, with a time limit. A thread that hangs is abandoned."""
    replies: list[Reply] = []
    sent = time.time()

    def run() -> None:
        try:
            value = function(*arguments)
            replies.append(Answer(value, sent, time.time()))
        except Exception as error:
            replies.append(Silence(sentence_of(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return replies[0] if replies else Silence(f"no answer within {limit:.0f} s", timed_out=True)


def sentence_of(error: Exception) -> str:
    """Describe a failed task in one line, with the remedy if it is known."""
    if known := user_error(error):
        return str(known)
    if isinstance(error, ray.exceptions.NodeDiedError | ray.exceptions.TaskUnschedulableError):
        return LOST
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its worker was killed because memory ran out; stop other work there, or use a node with more memory"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its worker process crashed (out of memory, or a bug in a native library); {_look_at_logs()}"
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        return f"the job's runtime environment could not be set up there: {_last_line(error)}"
    if "No module named 'pipeline'" in str(error) or "No module named 'models'" in str(error):
        return "Sceneparse is not installed there; submit the job with --working-dir . or install the package there"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {_last_line(cause)}"


def _look_at_logs() -> str:
    return "see /tmp/ray/session_latest/logs there"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "(no message)"


class Roll:
    """List of nodes to query. Lost or unresponsive nodes are removed, so that no later check waits for them."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = list(nodes)
        self._silent: set[str] = set()

    @property
    def computing(self) -> list[Node]:
        return [node for node in self.nodes if node.computes]

    def ask(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        limit: float,
        nodes: Sequence[Node] | None = None,
        fresh: bool = False,
    ) -> list[tuple[Node, Reply]]:
        """Run a function on the given nodes (default: all) in parallel."""
        asked = self.nodes if nodes is None else nodes
        return self.collect([send(function, node, *arguments, fresh=fresh) for node in asked], limit)

    def collect(self, questions: Sequence[Question], limit: float) -> list[tuple[Node, Reply]]:
        replies = collect(questions, limit)
        self._silent |= {node.id for node, reply in replies if isinstance(reply, Silence) and reply.timed_out}
        return replies

    def call(self) -> list[CheckResult]:
        """Remove the nodes that are lost or no longer answer, and return a finding for each."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = [node for node in self.nodes if node.id not in alive]
        silent = [node for node in self.nodes if node.id in self._silent and node.id in alive]
        self._silent.clear()
        replies = collect([send(hello, node) for node in silent], ROLL_CALL_LIMIT)
        mute = [node for node, reply in replies if isinstance(reply, Silence)]
        self.nodes = [node for node in self.nodes if node not in lost and node not in mute]
        hangs = f"no longer answers, and is skipped from now on; restart it, or {_look_at_logs()}"
        return [CheckResult(FAIL, LOST, node.name) for node in lost] + [
            CheckResult(FAIL, hangs, node.name) for node in mute
        ]


def hello() -> bool:
    return True


def answered(replies: Iterable[tuple[Node, Reply]]) -> tuple[dict[Node, Any], list[CheckResult]]:
    """Return the values by node, and a finding for each node without an answer."""
    values = {node: reply.value for node, reply in replies if isinstance(reply, Answer)}
    findings = [CheckResult(FAIL, reply.sentence, node.name) for node, reply in replies if isinstance(reply, Silence)]
    return values, findings


def judge_nodes(nodes: Sequence[Node], silent: list[CheckResult], private: bool = False) -> list[CheckResult]:
    """Report the nodes and their resources. `private`: the driver started this Ray itself."""
    computing = [node for node in nodes if node.computes]
    has = f"{sum(node.cpus for node in nodes):g} CPUs, {sum(node.gpus for node in nodes)} GPUs"
    # A local Ray may be started with more CPUs than the machine has (pipeline/cluster/connection.py).
    own = f"only this machine, since RAY_ADDRESS is not set; a local Ray with {has}"
    message = own if private else f"{len(nodes)} {'answers' if len(nodes) == 1 else 'answer'}, {has}"
    if nodes and not computing:
        return [
            *silent,
            CheckResult(
                WARN,
                f"{message}: no compute node is running, and only running nodes are checked; start one of each kind "
                "first, with a task that requests it (docs/doctor.md)",
            ),
        ]
    return [*silent, CheckResult(OK, message)] if nodes else silent
