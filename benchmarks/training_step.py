"""Training images/s of CPU processes: one process, and two with plain and with synchronized batch norm.

    python benchmarks/training_step.py --backbone resnet18 --crop 129 --batch 4

Requires only torch. Each process uses one thread. Results are medians over `--rounds` alternating rounds.
"""

import argparse
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.pspnet import Architecture, PSPNet
from models.training.step import BatchNorm, Precision, StepOptions, TrainingStep, sgd

STEPS = 4


def make_step(arguments: argparse.Namespace, precision: Precision, batch_norm: BatchNorm) -> TrainingStep:
    torch.manual_seed(0)
    model = PSPNet(Architecture(arguments.backbone, 19))
    optimizer = sgd(model, 0.01, 10, 0.9, 1e-4)
    options = StepOptions(precision=precision, batch_norm=batch_norm)
    return TrainingStep(model, optimizer, (120,) * 3, (60,) * 3, torch.device("cpu"), options)


def images_per_second(arguments: argparse.Namespace, step: TrainingStep) -> float:
    """Return the rate of this process; the first step, which allocates memory, is not counted."""
    shape = (arguments.batch, arguments.crop, arguments.crop)
    images, labels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8), torch.randint(0, 19, shape)
    step(images, labels, 1e-3)
    start = time.perf_counter()
    for _ in range(STEPS):
        step(images, labels, 1e-3)
    return STEPS * arguments.batch / (time.perf_counter() - start)


def worker(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    measured: dict[str, list[float]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    kinds: tuple[BatchNorm, ...] = ("plain", "synchronized")
    for number in range(arguments.rounds):
        for precision in precisions:
            if rank == 0:
                name = f"{precision}, one process"
                measured.setdefault(name, []).append(
                    images_per_second(arguments, make_step(arguments, precision, "plain"))
                )
            for kind in kinds:
                store = f"file://{folder}/{number}-{precision}-{kind}"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
                rate = images_per_second(arguments, make_step(arguments, precision, kind))
                dist.destroy_process_group()
                measured.setdefault(f"{precision}, two processes, {kind} batch norm", []).append(2 * rate)
    if rank == 0:
        for name, rates in measured.items():
            print(f"{statistics.median(rates):8.1f} images/s  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="resnet18 (default) to resnet269")
    parser.add_argument("--crop", type=int, default=129, help="side of the crops, pixels (129)")
    parser.add_argument("--batch", type=int, default=4, help="images per process and step (4)")
    parser.add_argument("--rounds", type=int, default=3, help="number of alternating rounds (3)")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder, parser.parse_args()), nprocs=2)


if __name__ == "__main__":
    main()
