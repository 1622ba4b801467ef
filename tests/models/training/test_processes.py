"""Training steps over several gloo processes are those of one process with all images."""

import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from models.training.step import LossOptions, TrainingStep
from tests.models.processes import run_processes
from tests.models.training_samples import images_and_labels, make_step

pytestmark = pytest.mark.slow

SPLIT = (3, 2)
STEPS = 2
WEIGHTED = LossOptions(class_weights=(1.0, 2.0, 0.5, 1.0, 3.0), label_smoothing=0.1)
REGIONS = LossOptions(ohem_threshold=0.2, ohem_min_kept=0.3, dice_weight=0.5, lovasz_weight=1.0)

# What two processes do, and what differs when one does it with all images. With `frozen` no BatchNorm depends on its
# batch, so that any cut of the images is exact.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the paper's": ({"clip_norm": 0.5, "ema_decay": 0.5}, {}),
    "activations computed again": ({"activation_checkpointing": True}, {"activation_checkpointing": False}),
    # The processes make 2 passes and 1.
    "micro-batches of their own": (
        {"batch_norm": "plain", "micro_batch": 2, "loss": WEIGHTED, "clip_norm": 0.1, "frozen": True},
        {"micro_batch": None},
    ),
    # Both make 3 passes, though one has 2 images.
    "micro-batches together": ({"micro_batch": 1, "loss": REGIONS, "frozen": True}, {"micro_batch": None}),
}


def outcome(step: TrainingStep, share: slice) -> dict[str, Any]:
    images, labels = images_and_labels(sum(SPLIT))
    results = [step(images[share], labels[share], 0.01) for _ in range(STEPS)]
    return {
        "losses": torch.stack([torch.stack([r.main, r.auxiliary]) for r in results]),
        "norm": results[-1].gradient_norm,
        "network": step.network.state_dict(),
        "averaged": step.averaged.state_dict(),
    }


def two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    share = slice(0, SPLIT[0]) if rank == 0 else slice(SPLIT[0], None)
    found: dict[str, Any] = {
        name: outcome(make_step(dtype=torch.float64, **options), share) for name, (options, _) in CASES.items()
    }
    # Shares of 3 images and 1: only the second process has an image alone, and both have to stop.
    share = slice(0, 3) if rank == 0 else slice(3, 4)
    images, labels = images_and_labels(4)
    with pytest.raises(ValueError, match=r"1 image\(s\) and micro_batch None runs a forward pass on one image"):
        make_step(batch_norm="plain")(images[share], labels[share], 0.01)
    model = make_step()._model
    found["DistributedDataParallel"] = (model.forward_sync_buffers, model.gradient_as_bucket_view)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    run_processes(two_processes, folder, 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_unequal_shares_train_as_one_with_the_whole_batch(
    found: list[dict[str, Any]], name: str
) -> None:
    options, differing = CASES[name]
    expected = outcome(make_step(dtype=torch.float64, **{**options, **differing}), slice(None))
    ours = [processes[name] for processes in found]
    torch.testing.assert_close(sum(o["losses"] for o in ours), expected["losses"], rtol=1e-9, atol=0)
    for own in ours:
        if expected["norm"] is not None:
            torch.testing.assert_close(own["norm"], expected["norm"], rtol=1e-8, atol=0)
        for kind in ("network", "averaged"):
            for key, tensor in expected[kind].items():
                torch.testing.assert_close(own[kind][key], tensor, rtol=1e-8, atol=1e-10, msg=f"{kind} {key}")
                assert torch.equal(own[kind][key], ours[0][kind][key]), f"{kind} {key} differs between the processes"


def test_a_pass_neither_broadcasts_statistics_nor_copies_gradients(found: list[dict[str, Any]]) -> None:
    assert [processes["DistributedDataParallel"] for processes in found] == [(False, True)] * 2


def three_processes(rank: int, folder: str) -> None:
    """Save after a step, go on for two, and go on from the saved state for two in a step of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    shares = [tuple(t[rank : rank + 1] for t in images_and_labels(3, seed)) for seed in range(3)]
    step, file = make_step(ema_decay=0.9), io.BytesIO()
    step(*shares[0], 0.01)
    torch.save(step.state_dict(), file)
    resumed = make_step(ema_decay=0.9, seed=7)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for one in (step, resumed):
        for share in shares[1:]:
            one(*share, 0.01)
    torch.save([step.state_dict(), resumed.state_dict()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_three_processes_that_go_on_from_a_saved_state_compute_the_same_bits(tmp_path: Path) -> None:
    """Sums of three depend on their order, and DistributedDataParallel changes that after its first backward pass."""
    run_processes(three_processes, tmp_path, 3)
    straight, resumed = torch.load(tmp_path / "0.pt")
    for kind in ("network", "average"):
        for name, tensor in straight[kind].items():
            assert torch.equal(resumed[kind][name], tensor), f"{kind} {name}"


def compiled(rank: int, folder: str) -> None:
    """A step with and one without the compiler's front end: generating code for each piece would take minutes more."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")  # type: ignore
    images, labels = (tensor[2 * rank : 2 * rank + 2] for tensor in images_and_labels(4))
    steps = [make_step(compile=compile) for compile in (False, True)]
    losses = [step(images, labels, 0.01).main for step in steps]
    if rank == 0:
        torch.save([losses, *(step.network.state_dict() for step in steps)], f"{folder}/found.pt")
    dist.destroy_process_group()


def test_a_compiled_network_trains_alike_over_two_processes_and_keeps_its_names(tmp_path: Path) -> None:
    run_processes(compiled, tmp_path, 2)
    losses, plain, other = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert other.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
