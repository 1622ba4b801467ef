"""The nodes of a cluster, and questions to all of them at once that end in bounded time."""

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

HELLO_LIMIT = 90.0  # seconds for a node's first answer: its worker starts, and unpacks the job's working directory
ROLL_CALL_LIMIT = 20.0  # seconds for a sign of life from a node that has not answered a question
HEAD = "node:__internal_head__"  # a resource that the head alone has
LOST = "was lost during the checks; look at its logs and at the provider's console (a spot node taken back?)"


@dataclass(frozen=True)
class Node:
    """A living node, and what Ray says that it has."""

    id: str
    name: str  # what it is called in findings
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
    """What a node said, and when, by this process's clock, seconds since the epoch."""

    value: Any
    sent: float
    received: float


@dataclass(frozen=True)
class Silence:
    """Why there is no answer."""

    sentence: str
    timed_out: bool = False


Reply = Answer | Silence


@dataclass(frozen=True)
class Question:
    """A task that was sent to a node."""

    node: Node
    reference: Any
    sent: float


def living_nodes() -> list[Node]:
    """Nodes that are alive now, the head first; of several at one address the names have a piece of their ids."""
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
    """Run a function on a node, and on no other, beside whatever work the node has.

    Args:
        gpus: to reserve for it; without any, nothing is reserved, so that busy nodes and a head without CPUs answer.
        fresh: whether its process ends with it.
    """
    task = ray.remote(max_retries=0, max_calls=1 if fresh else 0, **on(node, gpus))(function)
    return Question(node, task.remote(*arguments), time.time())


def on(node: Node, gpus: int = 0) -> dict[str, Any]:
    """Ray's options for a task or actor on this node and no other, that reserves GPUs alone."""
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": strategy}


def collect(questions: Sequence[Question], limit: float) -> list[tuple[Node, Reply]]:
    """Replies in the order of the questions; what has none after `limit` seconds is given up."""
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
        replies[reference] = Silence(f"gave no answer within {limit:.0f} s", timed_out=True)
    return [(question.node, replies[question.reference]) for question in questions]


def _reply(reference: Any, sent: float, received: float) -> Reply:
    try:
        return Answer(ray.get(reference, timeout=ROLL_CALL_LIMIT), sent, received)
    except Exception as error:
        return Silence(sentence_of(error), isinstance(error, ray.exceptions.GetTimeoutError))


def here(function: Callable[..., Any], *arguments: Any, limit: float) -> Reply:
    """The same for a function in this process; a thread that hangs is left behind."""
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
    return replies[0] if replies else Silence(f"gave no answer within {limit:.0f} s", timed_out=True)


def sentence_of(error: Exception) -> str:
    """One line about a task that failed, with what to do where that is known."""
    if known := user_error(error):
        return str(known)
    if isinstance(error, ray.exceptions.NodeDiedError | ray.exceptions.TaskUnschedulableError):
        return LOST
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its worker was killed for lack of memory; stop other work there, or take a node with more"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its worker process died (out of memory, or a library's crash); {_look_at_logs()}"
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        return f"the job's runtime environment cannot be set up there: {_last_line(error)}"
    if "No module named 'pipeline'" in str(error) or "No module named 'models'" in str(error):
        return "has not this program's code; submit the job with --working-dir . or install the package there"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {_last_line(cause)}"


def _look_at_logs() -> str:
    return "look at /tmp/ray/session_latest/logs there"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "(no message)"


class Roll:
    """The nodes that are asked; those that are lost or fall silent are struck off, so that no one waits again."""

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
        """Ask nodes, all if none are given, the same question at once."""
        asked = self.nodes if nodes is None else nodes
        return self.collect([send(function, node, *arguments, fresh=fresh) for node in asked], limit)

    def collect(self, questions: Sequence[Question], limit: float) -> list[tuple[Node, Reply]]:
        replies = collect(questions, limit)
        self._silent |= {node.id for node, reply in replies if isinstance(reply, Silence) and reply.timed_out}
        return replies

    def call(self) -> list[CheckResult]:
        """Strike off the nodes that are gone, and those that do not answer any more."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = [node for node in self.nodes if node.id not in alive]
        doubtful = [node for node in self.nodes if node.id in self._silent and node.id in alive]
        self._silent.clear()
        replies = collect([send(hello, node) for node in doubtful], ROLL_CALL_LIMIT)
        mute = [node for node, reply in replies if isinstance(reply, Silence)]
        self.nodes = [node for node in self.nodes if node not in lost and node not in mute]
        hangs = f"does not answer any more, and is not asked again; restart it, or {_look_at_logs()}"
        return [CheckResult(FAIL, LOST, node.name) for node in lost] + [
            CheckResult(FAIL, hangs, node.name) for node in mute
        ]


def hello() -> bool:
    return True


def answered(replies: Iterable[tuple[Node, Reply]]) -> tuple[dict[Node, Any], list[CheckResult]]:
    """What nodes said, and a finding for each that said nothing."""
    values = {node: reply.value for node, reply in replies if isinstance(reply, Answer)}
    findings = [CheckResult(FAIL, reply.sentence, node.name) for node, reply in replies if isinstance(reply, Silence)]
    return values, findings


def judge_nodes(nodes: Sequence[Node], silent: list[CheckResult], private: bool = False) -> list[CheckResult]:
    """Which nodes there are, and which of them compute; `private`: whether the Ray is the driver's own."""
    computing = [node for node in nodes if node.computes]
    has = f"{sum(node.cpus for node in nodes):g} CPUs, {sum(node.gpus for node in nodes)} GPUs"
    # A local Ray is told of more CPUs than there may be (pipeline/cluster/connection.py).
    own = f"this machine alone, since RAY_ADDRESS names no cluster; a Ray of its own counts {has}"
    told = own if private else f"{len(nodes)} {'answers' if len(nodes) == 1 else 'answer'}, {has}"
    if nodes and not computing:
        return [
            *silent,
            CheckResult(
                WARN,
                f"{told}: no node computes yet, and what is not up is not checked; start one of each kind first, by a "
                "task that asks for it (docs/doctor.md)",
            ),
        ]
    return [*silent, CheckResult(OK, told)] if nodes else silent
