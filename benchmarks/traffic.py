"""Network traffic of a data-parallel training step, computed from the layers, and the time that it takes.

    python benchmarks/traffic.py --gpus 8 16 32 64 128 256 --latency-us 10 --gigabits 100

A step all-gathers the statistics of each BatchNorm (2 C + 1 numbers from each worker), all-reduces their gradients
(2 C numbers), and all-reduces the gradients of all parameters. Bytes and messages are exact. Times follow the formulas
for rings: (n - 1) (latency + bytes / rate) to gather from n workers, 2 (n - 1) (latency + bytes / n / rate) to reduce.
For comparison, two processes on this machine are timed over gloo. Requires only torch.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks import machine
from models.pspnet import Architecture, PSPNet

BYTES = 4  # per number
TIMES = 50  # repetitions of each timed message


def main() -> None:
    options = parse()
    report: dict[str, Any] = {**machine.about(), "options": vars(options), "networks": {}}
    for backbone in options.backbones:
        sent = traffic(backbone)
        line = options.latency_us / 1e6, options.gigabits * 1e9 / 8
        steps = {n: seconds(sent, n, min(n, options.batch_norm_workers or n), *line) for n in options.gpus}
        report["networks"][backbone] = {**sent, "seconds_by_gpus": steps}
        print(
            f"{backbone}: {sent['gradient_bytes'] / 1e6:.0f} MB of gradients; {len(sent['channels'])} BatchNorms of "
            f"{sum(sent['channels']):,} channels, {sent['gathered_bytes'] / 1e3:.0f} kB from each worker"
        )
        for n, parts in steps.items():
            print(f"    {n:4} GPUs: " + ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in parts.items()))
    report["gloo_on_loopback_ms"] = measured()
    print(
        "two local processes, gloo: ",
        {name: round(ms, 3) for name, ms in report["gloo_on_loopback_ms"].items()},
    )
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50", "resnet101"])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--latency-us", type=float, default=10.0, help="latency to the next worker, microseconds")
    parser.add_argument("--gigabits", type=float, default=100.0, help="Gbit/s from one worker to the next")
    parser.add_argument("--batch-norm-workers", type=int, help="number of workers that share statistics (all)")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


def traffic(backbone: str) -> dict[str, Any]:
    """Return the bytes that a worker sends in a step."""
    with torch.device("meta"):
        network = PSPNet(Architecture(backbone, 150))
    channels = [layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    return {
        "channels": channels,
        "gradient_bytes": BYTES * sum(parameter.numel() for parameter in network.parameters()),
        "gathered_bytes": BYTES * sum(2 * count + 1 for count in channels),
        "reduced_bytes": BYTES * sum(2 * count for count in channels),
    }


def seconds(sent: dict[str, Any], n: int, together: int, latency: float, rate: float) -> dict[str, float]:
    """Return the seconds of messages in a step with n workers, of which `together` share statistics.

    Each BatchNorm waits for its messages; the gradients are sent during the backward pass.
    """
    layers = len(sent["channels"])
    gather = (together - 1) * (layers * latency + sent["gathered_bytes"] / rate)
    reduce = 2 * (together - 1) * (layers * latency + sent["reduced_bytes"] / together / rate)
    gradients = 2 * (n - 1) * (latency + sent["gradient_bytes"] / n / rate)
    return {"batch norm": gather + reduce, "gradients": gradients}


def measured() -> dict[str, float]:
    """Return the median time of each message, ms."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_time_messages, (folder,), nprocs=2)
        return json.loads(Path(folder, "result").read_text())


def _time_messages(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    small, large = torch.zeros(2 * 512 + 1), torch.zeros(25_000_000 // BYTES)
    gathered = [torch.empty_like(small), torch.empty_like(small)]
    result = {
        "gather of 512 channels": _median_ms(lambda: dist.all_gather(gathered, small)),
        "reduction of 512 channels": _median_ms(lambda: dist.all_reduce(small)),
        "reduction of 25 MB": _median_ms(lambda: dist.all_reduce(large)),
    }
    if rank == 0:
        Path(folder, "result").write_text(json.dumps(result))
    dist.destroy_process_group()


def _median_ms(send: Any) -> float:
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        send()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
