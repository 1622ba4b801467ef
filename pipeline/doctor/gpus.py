"""Processor checks: Ray, the driver and torch must see the same GPUs, compile for them, and multiply correctly."""

import csv
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cluster import ray_internals
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.doctor.nodes import Node, Question, Reply, Roll, Silence, answered, send
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

LIMIT = 150.0  # seconds, for importing torch and, on GPUs, initializing CUDA and compiling a kernel
SIDE = 256  # of the multiplied matrices
TOLERANCE = 0.02  # relative to the largest value; bfloat16 has 8 significant bits
SMI_TIMEOUT = 30.0  # seconds
# Oldest branch of the driver by major version of CUDA.
# Source: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MIN_DRIVERS = {"11": 450, "12": 525, "13": 580}


@dataclass(frozen=True)
class Installed:
    """GPU that the NVIDIA driver reports, whether or not Ray uses it."""

    name: str
    driver: str


@dataclass(frozen=True)
class Tried:
    """Results from torch on a node, for its reserved GPUs or its CPUs."""

    torch: str
    cuda: str | None  # that torch was built for
    names: tuple[str, ...] = ()  # of the GPUs that torch sees
    native_bfloat16: bool = True  # on all of them
    nccl: str | None = None
    compile_error: str | None = None
    unsupported: tuple[str, ...] = ()  # GPUs older than any that torch was built for
    oldest: str | None = None  # compute capability that torch was built for


def installed_gpus() -> list[Installed] | None:
    """Return the GPUs that nvidia-smi lists: empty if it finds no driver, None if there is no nvidia-smi.

    Raises: UserError if nvidia-smi hangs, as it does when a GPU has failed.
    """
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi hangs ({SMI_TIMEOUT:.0f} s); restart the machine, or replace it") from None
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
    """Multiply in bfloat16, and compile a kernel, on every GPU that this process may use.

    GPUs older than any that torch was built for are only named. Raises UserError for a wrong result.
    """
    import torch

    from models.inference.predictor import has_native_bfloat16

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    oldest = oldest_capability(torch.cuda.get_arch_list())
    supported = [device for device in devices if oldest is None or torch.cuda.get_device_capability(device) >= oldest]
    for device in supported:
        _multiply(device)
    errors = [error for device in supported if (error := compile_error(device))]
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return Tried(
        torch.__version__,
        torch.version.cuda,
        tuple(torch.cuda.get_device_name(device) for device in devices),
        all(has_native_bfloat16(device) for device in devices),
        ".".join(map(str, torch.cuda.nccl.version())) if devices and has_nccl else None,
        errors[0] if errors else None,
        tuple(torch.cuda.get_device_name(device) for device in devices if device not in supported),
        None if oldest is None else ".".join(map(str, oldest)),
    )


def oldest_capability(architectures: list[str]) -> tuple[int, int] | None:
    """Return the lowest compute capability among architectures such as sm_75 and sm_120; None without any."""
    numbers = [int("".join(filter(str.isdigit, name))) for name in architectures]
    return divmod(min(numbers), 10) if numbers else None


def compile_error(device: "torch.device", backend: str | Callable[..., Any] = "inductor") -> str | None:
    """Compile and run a tiny kernel on the device; return the reason if that fails."""
    import torch

    from models.inference.fallback import reason

    def add(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    x = torch.ones(8, device=device)
    try:
        result = torch.compile(add, backend=backend)(x)
    except Exception as error:  # torch, Triton and the C compiler raise dozens of unrelated types
        return reason(error)
    return None if torch.equal(result, add(x)) else f"a compiled kernel gave a wrong result on {device}"


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
            f"bfloat16 multiplication failed on {device} ({reason}); check its driver, or replace it"
        ) from None
    off = float((found - wanted).abs().max() / wanted.abs().max())
    if not off < TOLERANCE:
        raise UserError(f"bfloat16 multiplication on {device} is wrong (off by {off:.1%}); replace the machine")


def free_gpus() -> dict[str, int]:
    """Return the number of free whole GPUs by node id."""
    available = ray_internals.available_resources_per_node()
    return {node: int(resources.get("GPU", 0)) for node, resources in available.items()}


def check_gpus(roll: Roll, installed: Mapping[Node, list[Installed] | None]) -> list[CheckResult]:
    """Compare the GPUs that Ray offers, the driver reports and torch sees, and check bfloat16 on the free ones."""
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
            busy = f"{node.gpus - count} of {node.gpus} GPU(s) are in use and were not checked"
            findings.append(CheckResult(WARN, f"{busy}; run this again when they are free", node.name))
    drivers = {gpu.driver for node in roll.nodes if node.gpus for gpu in installed.get(node) or ()}
    findings += judge_uniform(drivers, {its.cuda or "none" for its in tried.values()})
    if findings:
        return findings
    if not tried:
        return [CheckResult(OK, "none; training and labeling will run on CPUs")]
    some = next(iter(tried.values()))
    message = (
        f"{sum(len(its.names) for its in tried.values())} as offered by Ray ({', '.join(sorted(set(some.names)))})"
    )
    driver = f", driver {', '.join(drivers)}" if drivers else ""
    return [
        CheckResult(
            OK, f"{message}{driver}, torch for CUDA {some.cuda}; bfloat16 is correct and native, and kernels compile"
        )
    ]


def _unused(reply: Silence) -> str:
    if reply.timed_out:
        return (
            f"its GPUs did not answer within {LIMIT:.0f} s: another job has taken them, or they hang; run nvidia-smi "
            "there"
        )
    return reply.sentence


def judge_offer(name: str, offered: int, installed: list[Installed] | None) -> list[CheckResult]:
    """Compare the number of GPUs that Ray offers with the driver's."""
    if installed is None:
        return []
    if offered > len(installed):
        return [
            CheckResult(
                FAIL,
                f"Ray offers {offered} GPU(s), but nvidia-smi lists {len(installed)}; start Ray there with "
                f"--num-gpus={len(installed)}, or install the NVIDIA driver",
                name,
            )
        ]
    if offered < len(installed):
        message = f"{len(installed)} GPU(s) ({installed[0].name}) are installed, but Ray offers {offered}"
        return [CheckResult(WARN, f"{message}; start Ray there with --num-gpus={len(installed)} to use them", name)]
    return []


def judge_tried(name: str, reserved: int, tried: Tried, installed: list[Installed] | None) -> list[CheckResult]:
    """Compare the GPUs that torch sees, and what they support, with the reserved ones."""
    if len(tried.names) < reserved:
        message = f"Ray offers {reserved} GPU(s), but torch {tried.torch} sees {len(tried.names)}"
        if tried.cuda is None:
            return [CheckResult(FAIL, f"{message}, since it is built for CPUs only; install torch for CUDA", name)]
        if not installed:
            return [
                CheckResult(
                    FAIL, f"{message}, since there is no driver; install it, or start Ray with --num-gpus=0", name
                )
            ]
        if minimum := _newer_driver_needed(tried.cuda, installed[0].driver):
            message += f"; CUDA {tried.cuda} needs driver {minimum} or newer, and {installed[0].driver} is installed"
        else:
            message += f"; it is built for CUDA {tried.cuda}, for which driver {installed[0].driver} may be too old"
        return [CheckResult(FAIL, f"{message}: update the driver, or install torch for an older CUDA version", name)]
    findings = []
    if tried.unsupported:
        message = f"torch {tried.torch} is built for GPUs of compute capability {tried.oldest} or newer"
        message += f", not for {', '.join(sorted(set(tried.unsupported)))}"
        findings.append(CheckResult(FAIL, f"{message}; use newer GPUs, or torch for an older CUDA version", name))
    if tried.compile_error:
        message = f"torch.compile failed ({tried.compile_error}); predictors run uncompiled there, which takes longer"
        findings.append(CheckResult(WARN, f"{message}: install Triton, gcc, libc6-dev and python3-dev", name))
    if not tried.native_bfloat16:
        message = f"{', '.join(sorted(set(tried.names)))} has no native bfloat16"
        message += "; predictors use float16 there, and training float32"
        findings.append(CheckResult(WARN, f"{message} unless optimization.precision is float16", name))
    if reserved and tried.nccl is None:
        findings.append(
            CheckResult(
                FAIL, f"torch {tried.torch} has no NCCL, which training on several GPUs needs; install another", name
            )
        )
    return findings


def _newer_driver_needed(cuda: str, driver: str) -> int | None:
    """Return the oldest branch of the driver that a version of CUDA works with, if this driver is older."""
    minimum = MIN_DRIVERS.get(cuda.split(".")[0])
    return minimum if minimum is not None and int(driver.split(".")[0]) < minimum else None


def judge_uniform(drivers: set[str], cudas: set[str]) -> list[CheckResult]:
    """Report driver and CUDA versions that differ between nodes with GPUs."""
    findings = []
    if len(drivers) > 1:
        message = f"NVIDIA drivers differ between nodes: {', '.join(sorted(drivers))}"
        findings.append(CheckResult(WARN, f"{message}; use the same image everywhere"))
    if len(cudas) > 1:
        message = f"torch is built for different CUDA versions: {', '.join(sorted(cudas))}"
        findings.append(CheckResult(FAIL, f"{message}; install the same torch everywhere"))
    return findings


def check_cpus(roll: Roll) -> list[CheckResult]:
    """Multiply in bfloat16 on the CPUs of every compute node."""
    tried, findings = answered(roll.ask(try_cpu, limit=LIMIT, nodes=roll.computing, fresh=True))
    if findings or not tried:
        return findings or [CheckResult(OK, "no node offers CPUs or GPUs")]
    native = sum(its.native_bfloat16 for its in tried.values())
    if native == len(tried):
        return [CheckResult(OK, "correct, and native on the CPUs of every compute node")]
    message = f"correct; the CPUs of {len(tried) - native} of {len(tried)} node(s) have no native bfloat16"
    return [CheckResult(OK, f"{message} (predictors on CPUs use float32 there)")]
