"""Speed and memory of the network versus the textbook formulation, with the same weights and images in one run.

    python benchmarks/model.py                  PSPNet50, 473 x 473, 150 classes on this machine's CPU
    python benchmarks/model.py --device cuda    on a GPU: 473 x 473 and 713 x 713, batch sizes as far as they fit

Requires only torch and safetensors. The weights are random, not trained. Each variant runs once per round, in turn:
times are medians over the rounds, and speedups are medians of the ratio to the textbook in eager float32 in each round.
GFLOP are counted by torch for direct convolutions, even where Winograd's algorithm needs fewer. Peak memory on a CPU is
that of a process that does nothing else, including torch's libraries; on a GPU it is what torch allocated.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import textbook
from benchmarks.rates import matrix_rates, timed
from benchmarks.variants import BASELINE, TASKS, Case

CPU_SIZES, GPU_SIZES = [473], [473, 713]
CPU_BATCHES = {"forward": [1], "labels": [1], "training": [2]}
GPU_BATCHES = [1, 4, 16, 32, 64, 128]
# Field of a row -> its title and format in the table.
COLUMNS = {
    "task": ("task", "8"),
    "size": ("size", "4d"),
    "batch": ("batch", "5d"),
    "variant": ("variant", "26"),
    "ms_per_image": ("ms/image", "9.2f"),
    "images_per_s": ("images/s", "9.2f"),
    "speedup": ("speed-up", "8.2f"),
    "gflop": ("GFLOP", "7.0f"),
    "gflop_per_s": ("GFLOP/s", "9.0f"),
    "share_of_rate": ("of rate", "7.0%"),
    "mib": ("MiB", "7.0f"),
    "agreement": ("agree", "8.4%"),
}


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print_peak(arguments)
        return
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/model.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "network": {"backbone": arguments.backbone, "classes": arguments.classes},
        "rounds": arguments.rounds,
        "matrix_gflop_per_s": matrix_rates(device),
    }
    print(json.dumps(report, indent=1))
    print(table_line({name: title for name, (title, _) in COLUMNS.items()}), flush=True)
    report["rows"] = []
    for task in arguments.tasks:
        for size in arguments.sizes or (GPU_SIZES if on_gpu else CPU_SIZES):
            for batch in arguments.batches or (GPU_BATCHES if on_gpu else CPU_BATCHES[task]):
                rows = measure(arguments, task, size, batch, report["matrix_gflop_per_s"])
                print("\n".join(map(table_line, rows)), flush=True)
                report["rows"] += rows
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--backbone", default="resnet50", help="resnet50 (default), resnet18 to resnet269")
    parser.add_argument("--classes", type=int, default=150, help="number of classes (150)")
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the square images, pixels")
    parser.add_argument("--batches", type=int, nargs="+", help="numbers of images per call")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="tasks to measure (all)")
    parser.add_argument("--variants", nargs="+", help="variants to measure besides the baseline (all)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (5)")
    parser.add_argument("--threads", type=int, help="number of CPU threads (default of torch)")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--peak", action="store_true", help="only print the peak memory of one variant, MiB")
    return parser.parse_args()


def measure(
    arguments: argparse.Namespace, task: str, size: int, batch: int, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Return a row for each variant; a variant that does not fit into the GPU memory has no results."""
    case = Case(arguments.backbone, arguments.classes, size, batch, arguments.device)
    gflop = count_gflop(case, task)
    rows, calls, results = [], {}, {}
    for name, prepare in case.calls(task).items():
        if arguments.variants and name not in (BASELINE, *arguments.variants):
            continue
        rows.append({"task": task, "size": size, "batch": batch, "variant": name})
        try:
            calls[name], results[name], rows[-1]["mib"] = prepared(prepare, case.device)
        except torch.OutOfMemoryError:
            print(f"{name}: batch {batch} of {size} x {size} does not fit into the GPU memory", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call, case.device))
    for row in rows:
        name = row["variant"]
        if name not in calls:
            continue
        median = statistics.median(seconds[name])
        count = gflop["textbook" if name.startswith("textbook") else "ours"]
        rate = rates[next((precision for precision in ("bfloat16", "int8", "TF32") if precision in name), "float32")]
        row |= {"ms_per_image": 1e3 * median / batch, "images_per_s": batch / median, "gflop": count / batch}
        row |= {"gflop_per_s": count / median, "share_of_rate": count / median / rate}
        if case.device.type == "cpu":
            row["mib"] = own_process_peak(arguments, task, size, batch, name)
        if BASELINE in calls:
            pairs = zip(seconds[BASELINE], seconds[name], strict=True)
            row["speedup"] = statistics.median(base / own for base, own in pairs)
            if task == "labels":
                row["agreement"] = agreement(results[BASELINE], results[name])
    return rows


def prepared(prepare: Callable[[], Callable[[], Any]], device: torch.device) -> tuple[Callable[[], Any], Any, float]:
    """Return the call, its first result, and the GPU memory that it took, MiB."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    call = prepare()
    result = call()
    call()  # a second call, because compiled and captured graphs need two
    if device.type != "cuda":
        return call, result, 0.0
    return call, result, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def count_gflop(case: Case, task: str) -> dict[str, float]:
    """Return the GFLOP of the whole batch: the forward pass, and for training also the backward pass."""
    # Counted on two images, since the textbook's step with a whole batch may not fit into the GPU memory, and BatchNorm
    # does not train on one.
    images_N3HW = case.normalised()[:1].repeat(2, 1, 1, 1)
    formulations = {"textbook": partial(textbook.logits, case.model), "ours": case.model}
    if task == "training":
        formulations["textbook"] = partial(textbook.training_logits, case.model)
    counts = {}
    case.model.train(task == "training")
    for name, formulation in formulations.items():
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(task == "training"):
            result = formulation(images_N3HW)
            if task == "training":
                sum(logits.sum() for logits in result).backward()
                case.model.zero_grad(set_to_none=True)
        counts[name] = counter.get_total_flops() / 1e9 * len(case.images_NHW3) / 2
    case.model.eval()
    return counts


def agreement(reference: Any, result: Any) -> float:
    """Return the fraction of pixels whose label equals that of the reference."""
    ids = [r[0].numpy() if isinstance(r, list) else r.class_ids_NHW for r in (reference, result)]
    return float((ids[0] == ids[1]).mean())


def own_process_peak(arguments: argparse.Namespace, task: str, size: int, batch: int, name: str) -> float:
    """Return the peak resident memory, MiB, of a process that prepares one variant and runs it once."""
    options = {"backbone": arguments.backbone, "classes": arguments.classes, "sizes": size, "batches": batch}
    options |= {"tasks": task, "variants": name, "threads": torch.get_num_threads()}
    command = [sys.executable, __file__, "--peak", *(f"--{key}={value}" for key, value in options.items())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(arguments: argparse.Namespace) -> None:
    case = Case(arguments.backbone, arguments.classes, arguments.sizes[0], arguments.batches[0], "cpu")
    case.calls(arguments.tasks[0])[arguments.variants[0]]()()
    # Not from getrusage, whose peak starts with that of the parent process.
    (peak,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    return f"{names[0].split(':')[1].strip()}, {torch.get_num_threads()} threads" if names else platform.processor()


def table_line(row: dict[str, Any]) -> str:
    cells = []
    for name, (title, form) in COLUMNS.items():
        value = row.get(name)
        text = "-" if value is None else value if isinstance(value, str) else f"{value:{form}}"
        width = max(len(title), int(form.split(".")[0].rstrip("d")))
        cells.append(text.ljust(width) if name in ("task", "variant") else text.rjust(width))
    return "  ".join(cells)


if __name__ == "__main__":
    main()
