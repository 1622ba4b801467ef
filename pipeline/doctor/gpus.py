"""Processors: whether Ray, the driver and torch see the same GPUs, and whether bfloat16 arithmetic is right."""

import csv
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray._private.state

from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.doctor.nodes import Node, Question, Reply, Roll, Silence, answered, send
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

LIMIT = 150.0  # seconds: torch's import, and for GPUs CUDA's start
SIDE = 256  # of the matrices that are multiplied
TOLERANCE = 0.02  # of the largest value; bfloat16 has 8 bits
SMI_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Installed:
    """A GPU that the driver shows, whoever may use it."""

    name: str
    driver: str


@dataclass(frozen=True)
class Tried:
    """What torch said on a node of the GPUs that were reserved, or of its CPUs."""

    torch: str
    cuda: str | None  # which torch was built for
    names: tuple[str, ...] = ()  # as far as torch sees them
    native_bfloat16: bool = True  # of all of them
    nccl: str | None = None


def installed_gpus() -> list[Installed] | None:
    """The GPUs of this machine by nvidia-smi, none if it finds no driver; None where there is no nvidia-smi.

    Raises UserError if it hangs, as it does when a GPU has failed.
    """
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi hangs (for {SMI_TIMEOUT:.0f} s); restart the machine, or replace it") from None
    if done.returncode:
        return []
    return [Installed(name.strip(), driver.strip()) for name, driver in csv.reader(done.stdout.splitlines())]


def try_cpu() -> Tried:
    """Multiply in bfloat16 on the CPU. Raises UserError for a wrong result."""
    import torch

    from models.inference.predictor import has_native_bfloat16

    device = torch.device("cpu")
    _multiply(device)
    return Tried(torch.__version__, torch.version.cuda, native_bfloat16=has_native_bfloat16(device))


def try_gpus() -> Tried:
    """Multiply in bfloat16 on every GPU that this process may use. Raises UserError for a wrong result."""
    import torch

    from models.inference.predictor import has_native_bfloat16

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in devices:
        _multiply(device)
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return Tried(
        torch.__version__,
        torch.version.cuda,
        tuple(torch.cuda.get_device_name(device) for device in devices),
        all(has_native_bfloat16(device) for device in devices),
        ".".join(map(str, torch.cuda.nccl.version())) if devices and has_nccl else None,
    )


def _multiply(device: "torch.device") -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, SIDE, SIDE, generator=generator)
    wanted = a.double() @ b.double()
    try:
        found = (a.to(device, torch.bfloat16) @ b.to(device, torch.bfloat16)).cpu().double()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"bfloat16 does not compute on {device} ({reason}); look at its driver, or replace it"
        ) from None
    off = float((found - wanted).abs().max() / wanted.abs().max())
    if not off < TOLERANCE:
        raise UserError(f"bfloat16 on {device} computes wrong results (off by {off:.1%}); replace the machine")


def free_gpus() -> dict[str, int]:
    """Whole GPUs that nobody uses now, by node id."""
    available = ray._private.state.available_resources_per_node()
    return {node: int(resources.get("GPU", 0)) for node, resources in available.items()}


def check_gpus(roll: Roll, installed: Mapping[Node, list[Installed] | None]) -> list[CheckResult]:
    """Compare what Ray offers, what the driver shows and what torch sees and computes."""
    free = free_gpus()
    questions: list[Question] = []
    for node in roll.nodes:
        if count := min(free.get(node.id, 0), node.gpus):
            questions.append(send(try_gpus, node, gpus=count))
    replies: dict[Node, Reply] = dict(roll.collect(questions, LIMIT))
    findings = []
    tried: dict[Node, Tried] = {}
    for node in roll.nodes:
        count = min(free.get(node.id, 0), node.gpus)
        findings += judge_offer(node.name, node.gpus, installed.get(node))
        reply = replies.get(node)
        if isinstance(reply, Silence):
            findings.append(CheckResult(FAIL, _unused(reply), node.name))
        elif reply is not None:
            tried[node] = reply.value
            findings += judge_tried(node.name, count, reply.value, installed.get(node))
        if count < node.gpus:
            busy = f"{node.gpus - count} of {node.gpus} GPU(s) are in use and were not tried"
            findings.append(CheckResult(WARN, f"{busy}; run this again when they are free", node.name))
    drivers = {gpu.driver for node in roll.nodes if node.gpus for gpu in installed.get(node) or ()}
    findings += judge_uniform(drivers, {its.cuda or "none" for its in tried.values()})
    if findings:
        return findings
    if not tried:
        return [CheckResult(OK, "none; training and labelling will run on CPUs")]
    some = next(iter(tried.values()))
    told = f"{sum(len(its.names) for its in tried.values())} as Ray says ({', '.join(sorted(set(some.names)))})"
    driver = f", driver {', '.join(drivers)}" if drivers else ""
    return [CheckResult(OK, f"{told}{driver}, torch for CUDA {some.cuda}; bfloat16 is right and native")]


def _unused(reply: Silence) -> str:
    if reply.timed_out:
        return (
            f"its GPUs did not answer within {LIMIT:.0f} s: taken by other work meanwhile, or stuck (nvidia-smi there)"
        )
    return reply.sentence


def judge_offer(name: str, offered: int, installed: list[Installed] | None) -> list[CheckResult]:
    """Hold what Ray offers against what the driver shows."""
    if installed is None:
        return []
    if offered > len(installed):
        return [
            CheckResult(
                FAIL,
                f"Ray offers {offered} GPU(s), nvidia-smi finds {len(installed)}; start Ray there with "
                f"--num-gpus={len(installed)}, or install the NVIDIA driver",
                name,
            )
        ]
    if offered < len(installed):
        told = f"{len(installed)} GPU(s) ({installed[0].name}) are there, Ray offers {offered}"
        return [CheckResult(WARN, f"{told}; start Ray there with --num-gpus={len(installed)} to use them", name)]
    return []


def judge_tried(name: str, reserved: int, tried: Tried, installed: list[Installed] | None) -> list[CheckResult]:
    """Hold what torch sees and can do against what was reserved."""
    if len(tried.names) < reserved:
        told = f"Ray offers {reserved} GPU(s), torch {tried.torch} sees {len(tried.names)}"
        if tried.cuda is None:
            return [CheckResult(FAIL, f"{told}, since it is built for CPUs alone; install torch for CUDA", name)]
        if not installed:
            return [
                CheckResult(FAIL, f"{told} and there is no driver; install it, or start Ray with --num-gpus=0", name)
            ]
        told += f"; it is for CUDA {tried.cuda}, and driver {installed[0].driver} may be too old for that"
        return [CheckResult(FAIL, f"{told}: update the driver, or install torch for an older CUDA", name)]
    findings = []
    if not tried.native_bfloat16:
        told = f"{', '.join(sorted(set(tried.names)))} does not compute in bfloat16"
        findings.append(CheckResult(WARN, f"{told}; predictors take float32 there, several times slower", name))
    if reserved and tried.nccl is None:
        findings.append(
            CheckResult(FAIL, f"torch {tried.torch} has no NCCL, so GPUs cannot train together; install another", name)
        )
    return findings


def judge_uniform(drivers: set[str], cudas: set[str]) -> list[CheckResult]:
    """Versions that should be equal on all nodes with GPUs."""
    findings = []
    if len(drivers) > 1:
        told = f"NVIDIA drivers differ between nodes: {', '.join(sorted(drivers))}"
        findings.append(CheckResult(WARN, f"{told}; use one image for all"))
    if len(cudas) > 1:
        told = f"torch is for different CUDAs: {', '.join(sorted(cudas))}"
        findings.append(CheckResult(FAIL, f"{told}; install the same torch everywhere"))
    return findings


def check_cpus(roll: Roll) -> list[CheckResult]:
    """Multiply in bfloat16 on the CPUs of every node that computes."""
    tried, findings = answered(roll.ask(try_cpu, limit=LIMIT, nodes=roll.computing, fresh=True))
    if findings or not tried:
        return findings or [CheckResult(OK, "no node offers CPUs or GPUs")]
    native = sum(its.native_bfloat16 for its in tried.values())
    if native == len(tried):
        return [CheckResult(OK, "right, and native on the CPUs of every node that computes")]
    told = f"right; {len(tried) - native} of {len(tried)} node(s) have no bfloat16 in their CPUs"
    return [CheckResult(OK, f"{told} (predictors on CPUs take float32 there)")]
