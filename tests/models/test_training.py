"""One training step: schedule, groups, ignored pixels, and two processes that equal one."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm import synchronize
from models.pspnet import Architecture, PSPNet
from models.training import TrainingStep, poly_rate, sgd

SMALL = Architecture("resnet18", 5, dropout=0.0)
SPLIT = (5, 3)


def model(dtype: torch.dtype = torch.float32) -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(SMALL).to(dtype).train()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    labels = torch.randint(0, 5, (8, 65, 65))
    labels[torch.rand(8, 65, 65) < 0.3] = 255
    labels[0] = 255  # shares then differ in labelled pixels too
    return torch.randint(0, 256, (8, 65, 65, 3), dtype=torch.uint8), labels


def step(network: nn.Module, plain: PSPNet, precision="float32") -> TrainingStep:
    optimizer = sgd(plain, 0.01, 10, 0.9, 1e-4)
    return TrainingStep(network, optimizer, (120, 120, 120), (60, 60, 60), torch.device("cpu"), 255, 0.4, precision)


def test_poly_rate_falls_from_the_base_to_nothing() -> None:
    assert poly_rate(0, 100, 0.01, 0.9) == 0.01
    assert poly_rate(50, 100, 0.01, 0.9) == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < poly_rate(99, 100, 0.01, 0.9) < 0.01 * 0.02


def test_new_layers_learn_ten_times_as_fast() -> None:
    network = model()
    training_step = step(network, network)
    images, labels = batch()
    training_step(images, labels, training_step.count_labelled(labels), 0.003)
    backbone, head = training_step.optimizer.param_groups
    assert (backbone["lr"], head["lr"]) == (0.003, pytest.approx(0.03))
    assert {id(p) for group in (backbone, head) for p in group["params"]} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_lower_the_loss(precision: str) -> None:
    network = model()
    training_step = step(network, network, precision)
    images, labels = batch()
    labelled = training_step.count_labelled(labels)
    losses = [float(training_step(images[:2], labels[:2] * 0, labelled, 0.01)) for _ in range(5)]
    assert losses[-1] < losses[0] * 0.7


def test_a_batch_without_labelled_pixels_has_no_loss_and_keeps_weights_finite() -> None:
    network = model()
    training_step = step(network, network)
    images, labels = batch()
    labels[:] = 255
    assert training_step(images, labels, training_step.count_labelled(labels), 0.01) == 0
    assert all(p.isfinite().all() for p in network.parameters())


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = synchronize(model(torch.float64))
    assert isinstance(network, PSPNet)
    training_step = step(DistributedDataParallel(network), network)
    images, labels = (tensor.split(SPLIT)[rank] for tensor in batch())
    for _ in range(2):
        labelled = training_step.count_labelled(labels)
        dist.all_reduce(labelled)
        loss = training_step(images, labels, labelled, 0.01)
        dist.all_reduce(loss)
    torch.save({"loss": loss, **network.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_shares_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    network = model(torch.float64)
    before = copy.deepcopy(network.state_dict())
    training_step = step(network, network)
    images, labels = batch()
    for _ in range(2):
        loss = training_step(images, labels, training_step.count_labelled(labels), 0.01)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found.pop("loss"), loss, rtol=1e-10, atol=0)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11, msg=name)
    assert not torch.equal(before["head.conv.weight"], network.state_dict()["head.conv.weight"])
