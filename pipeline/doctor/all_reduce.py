"""All-reduce check: an all-reduce between two nodes must give the correct sum, and its bandwidth is measured."""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import ray
import ray.util

from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult, spread
from pipeline.doctor.gpus import free_gpus
from pipeline.doctor.nodes import Node, Question, Reply, Roll, Silence, answered, on, send
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

Backend = Literal["gloo", "nccl"]

ELEMENTS = 8_000_000  # float32
MEET_TIMEOUT = 60.0  # seconds that a rank waits for the other one
LIMIT = 180.0  # seconds for a round of pairs, in which both ranks import torch, connect and reduce
MAX_SECONDS, MAX_TIMES = 2.0, 20  # limits of the timed all-reduces
UNEVEN = 0.5  # share of the median rate below which a pair is reported
PORTS = "open all TCP ports between the nodes (security group, firewall, network policy)"
INTERFACES: dict[Backend, str] = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


class Host:
    """Rank 0, an actor. Its port is open before the other rank learns of it."""

    def __init__(self) -> None:
        self._store: dist.TCPStore | None = None

    def open(self, meet_timeout: float = MEET_TIMEOUT) -> tuple[str, int]:
        """Open a store and return the address and port to which rank 1 connects."""
        import torch.distributed as dist

        address = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(
            address, 0, 2, is_master=True, timeout=timedelta(seconds=meet_timeout), wait_for_workers=False
        )
        return address, self._store.port

    def reduce(self, backend: Backend, meet_timeout: float = MEET_TIMEOUT) -> float:
        assert self._store is not None, "not open"
        return _reduce(0, backend, self._store, "rank 1, which should connect to this node", meet_timeout)


def reduce_with(backend: Backend, address: str, port: int, meet_timeout: float = MEET_TIMEOUT) -> float:
    """All-reduce as rank 1 with the Host at that address. Return the result of `_reduce`. Raises UserError."""
    import torch.distributed as dist

    other = f"rank 0 at {address}:{port}"
    try:
        store = dist.TCPStore(address, port, 2, is_master=False, timeout=timedelta(seconds=meet_timeout))
    except RuntimeError as error:
        raise UserError(f"{backend} cannot reach {other} ({_first_line(error)}); {PORTS}") from None
    return _reduce(1, backend, store, other, meet_timeout)


def _reduce(rank: int, backend: Backend, store: "dist.TCPStore", other: str, meet_timeout: float) -> float:
    """All-reduce ELEMENTS numbers with the other rank.

    Returns: bus bandwidth in MB/s, that is 2 (n - 1) / n of the message's bytes per second, for n = 2 ranks.
    Raises: UserError.
    """
    # Makes a timeout raise an exception instead of ending the process.
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    import torch
    import torch.distributed as dist

    if backend == "nccl" and not torch.cuda.is_available():
        raise UserError("torch does not see a GPU there; see the GPUs check")
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=timedelta(seconds=meet_timeout))
    except RuntimeError as error:
        raise UserError(f"{backend} cannot connect to {other} ({_first_line(error)}); {_remedy(backend)}") from None
    try:
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        return _rate(rank, device)
    except RuntimeError as error:
        raise UserError(f"{backend} all-reduce failed ({_first_line(error)}); {_remedy(backend)}") from None
    finally:
        dist.destroy_process_group()


def _remedy(backend: Backend) -> str:
    return f"{PORTS}; with several network interfaces set {INTERFACES[backend]}"


def _rate(rank: int, device: "torch.device") -> float:
    import torch
    import torch.distributed as dist

    pattern = (torch.arange(ELEMENTS, device=device) % 1000).float()
    message = pattern * (rank + 1)
    dist.all_reduce(message)
    if not torch.equal(message, pattern * 3):
        raise UserError("all-reduce returned a wrong sum; replace one of the two machines")
    message = torch.zeros(ELEMENTS, device=device)
    once = torch.tensor([_seconds(message, 1)], device=device)
    dist.all_reduce(once, dist.ReduceOp.MAX)  # so that both ranks repeat it equally often
    times = int(min(max(MAX_SECONDS / once.item(), 1), MAX_TIMES))
    return ELEMENTS * 4 * times / _seconds(message, times) / 1e6


def _seconds(message: "torch.Tensor", times: int) -> float:
    import torch
    import torch.distributed as dist

    start = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(message)
    if message.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def rounds_of_pairs(nodes: Sequence[Node]) -> list[list[tuple[Node, Node]]]:
    """Return rounds of neighboring pairs. An odd node is in a second round; a single node pairs with itself."""
    if len(nodes) < 2:
        return [[(node, node)] for node in nodes]
    pairs = [(nodes[first], nodes[first + 1]) for first in range(0, len(nodes) - 1, 2)]
    return [pairs] if len(nodes) % 2 == 0 else [pairs, [(nodes[-1], nodes[0])]]


def check_gloo(roll: Roll) -> list[CheckResult]:
    """All-reduce over CPUs between the compute nodes."""
    return _check(roll, "gloo", roll.computing)


def check_nccl(roll: Roll) -> list[CheckResult]:
    """All-reduce over GPUs between the nodes that have a free one."""
    with_gpus = [node for node in roll.nodes if node.gpus]
    if not with_gpus:
        return [CheckResult(OK, "not checked, since there are no GPUs")]
    free = free_gpus()
    ready = [node for node in with_gpus if free.get(node.id, 0) > 0]
    if len(ready) == 1 and free[ready[0].id] < 2:
        message = f"not checked: needs two free GPUs, on {len(with_gpus)} node(s) with GPUs"
        return [CheckResult(OK if len(with_gpus) == 1 else WARN, message)]
    busy = [
        CheckResult(WARN, "not checked, since all its GPUs are in use", n.name) for n in with_gpus if n not in ready
    ]
    return busy + _check(roll, "nccl", ready)


def _check(roll: Roll, backend: Backend, nodes: Sequence[Node]) -> list[CheckResult]:
    findings: list[CheckResult] = []
    rates: dict[str, float] = {}
    gpus = int(backend == "nccl")
    for pairs in rounds_of_pairs(nodes):
        hosts: dict[Node, Any] = {first: ray.remote(**on(first, gpus))(Host).remote() for first, _ in pairs}
        try:
            opened = [Question(node, host.open.remote(), time.time()) for node, host in hosts.items()]
            places, silent = answered(roll.collect(opened, LIMIT))
            findings += silent
            met = [(first, second) for first, second in pairs if first in places]
            ranks = [Question(first, hosts[first].reduce.remote(backend), time.time()) for first, _ in met]
            ranks += [
                send(reduce_with, second, backend, *places[first], gpus=gpus, fresh=True) for first, second in met
            ]
            replies = roll.collect(ranks, LIMIT)
        finally:
            for host in hosts.values():
                ray.kill(host)
        for (first, one), (second, other) in zip(replies[: len(met)], replies[len(met) :], strict=True):
            name = first.name if first is second else f"{first.name} with {second.name}"
            if isinstance(one, Silence) or isinstance(other, Silence):
                findings.append(CheckResult(FAIL, _sentence(one, other), name))
            else:
                rates[name] = one.value
    return findings + judge_rates(backend, rates, alone=len(nodes) == 1)


def _sentence(one: Reply, other: Reply) -> str:
    """Return the more informative of two replies: an error rather than a timeout, rank 1 rather than rank 0."""
    silent = [reply for reply in (other, one) if isinstance(reply, Silence)]
    return min(silent, key=lambda reply: reply.timed_out).sentence


def judge_rates(backend: Backend, rates: dict[str, float], alone: bool) -> list[CheckResult]:
    """Report the bus bandwidth of the pairs, MB/s, and the pairs that are much slower than the others."""
    if not rates:
        return []
    usual = median(rates.values())
    slow = [
        CheckResult(WARN, f"{rate:.0f} MB/s, but the median is {usual:.0f}; check type, zone and network", name)
        for name, rate in rates.items()
        if len(rates) > 2 and rate < UNEVEN * usual
    ]
    compared = "two processes on the only node" if alone else f"{len(rates)} pair(s) of nodes"
    size = f"{ELEMENTS * 4 / 1e6:.0f} MB"
    speed = spread(rates.values(), lambda rate: f"{rate:.0f} MB/s")
    return [CheckResult(OK, f"{backend}, {compared}, {size}: the sum is correct, bus bandwidth {speed}"), *slow]
