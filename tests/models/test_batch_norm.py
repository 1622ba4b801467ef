"""Synchronized BatchNorm: two processes must be one process with both batches. And folding."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm import SyncBatchNorm2d, fold_batch_norm, neighbours, synchronize, synchronized_processes
from models.pspnet import Architecture, PSPNet
from models.pyramid import Pyramid, PyramidHead
from tests.models.fused_batch_norm import pretend_kernels
from tests.models.processes import run_processes

SPLITS = [(4, 4), (5, 3)]
DTYPES = [torch.float64, torch.float32]
NETWORKS = [(torch.float64, (5, 3)), (torch.float32, (4, 4))]
LAYERS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "no running statistics": {"track_running_stats": False},
}
SMALL = Architecture("resnet18", 5, dropout=0.0)


def part(tensor: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    return tensor.split(split)[rank].clone()


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies: the module's own change with its next step."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def make_layer(dtype: torch.dtype, options: dict[str, Any]) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(6, **options).to(dtype)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    return layer


def layer_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(8, 6, 5, 7, dtype=dtype) * 3 + torch.arange(6, dtype=dtype)[:, None, None]
    return x, torch.randn_like(x)


def run_layer(layer: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Two steps, so that running statistics accumulate; the gradients are the second's."""
    layer(x)
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * weights).sum().backward()
    assert x.grad is not None
    gradients = {f"grad {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "dx": x.grad, **gradients, **buffers(layer)}


def network_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    labels = torch.randint(0, 5, (8, 9, 9))
    labels[torch.rand(8, 9, 9) < 0.2] = 255
    return torch.randn(8, 3, 65, 65).to(dtype), labels


def run_network(model: nn.Module, images: Tensor, labels: Tensor, loss_scale: float) -> dict[str, Tensor]:
    """`loss_scale` turns the sum over this process's pixels into its share of the global mean."""
    images = images.clone().requires_grad_()
    logits, auxiliary = model(images)
    losses = [F.cross_entropy(x, labels, ignore_index=255, reduction="sum") for x in (logits, auxiliary)]
    ((losses[0] + 0.4 * losses[1]) * loss_scale).backward()
    module = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {f"grad {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert images.grad is not None
    return {"out": logits.detach(), "dx": images.grad / loss_scale, **gradients, **buffers(module)}


def count_collectives() -> dict[str, int]:
    calls = {"all_gather_single": 0, "all_reduce": 0}

    def count(name: str) -> None:
        original = getattr(dist, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        setattr(dist, name, counted)

    for name in calls:
        count(name)
    return calls


def run_layers(kernels: str, rank: int) -> dict[Any, Any]:
    """Every case of a layer, each with its outcome."""
    results: dict[Any, Any] = {}
    for dtype in DTYPES:
        for split in SPLITS:
            x, weights = (part(t, split, rank) for t in layer_inputs(dtype))
            for name, options in LAYERS.items():
                layer = synchronize(make_layer(dtype, options))
                results["layer", kernels, name, dtype, split] = run_layer(layer, x, weights)
    return results


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = run_layers("of a CPU", rank)
    for dtype, split in NETWORKS:
        images, labels = network_inputs(dtype)
        torch.manual_seed(3)
        model = DistributedDataParallel(synchronize(PSPNet(SMALL).to(dtype)))
        scale = 2 / (labels != 255).sum().item()
        images, labels = part(images, split, rank), part(labels, split, rank)
        results["network", dtype, split] = run_network(model, images, labels, scale)

    x, weights = (part(t, (4, 4), rank) for t in layer_inputs(torch.float32))
    layer = synchronize(make_layer(torch.float32, {}))
    channels_last = x.to(memory_format=torch.channels_last)
    results["channels last"] = run_layer(layer, channels_last, weights)
    assert layer(channels_last).is_contiguous(memory_format=torch.channels_last)
    layer = synchronize(make_layer(torch.float32, {}))
    with torch.autocast("cpu", torch.bfloat16):
        results["bfloat16"] = run_layer(layer, x.bfloat16(), weights)

    # Bin 1 with one image per worker: two values per channel in all.
    head = synchronize(PyramidHead(8, 3, Pyramid(bins=(1, 2)), dropout=0.0)).train()
    results["processes"] = synchronized_processes(head.bn)
    head(torch.randn(1, 8, 5, 5)).sum().backward()

    layer = synchronize(make_layer(torch.float32, {}))
    calls = count_collectives()
    out = layer(x.requires_grad_())
    results["forward collectives"] = dict(calls)
    out.sum().backward()
    results["all collectives"] = dict(calls)

    pretend_kernels()
    results |= run_layers("of a GPU", rank)
    x, weights = (part(t, (4, 4), rank) for t in layer_inputs(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        results["bfloat16 of a GPU"] = run_layer(synchronize(make_layer(torch.float32, {})), x.bfloat16(), weights)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Return the results of two gloo processes for every case of this file, because starting them takes long."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    run_processes(worker, folder, 2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str, floor: float = 1e-6) -> None:
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=floor)
    assert error.item() < tolerance, f"{what}: relative error {error.item():.1e}"


def assert_layers_agree(parts: list[dict[str, Tensor]], whole: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in whole.items():
        if name in ("out", "dx"):
            assert_close(torch.cat([p[name] for p in parts]), expected, tolerance, name)
        elif name.startswith("grad"):
            assert_close(sum(p[name] for p in parts), expected, tolerance, name)  # type: ignore[arg-type]
        else:
            assert all(torch.equal(parts[0][name], p[name]) for p in parts), f"{name} differs between the processes"
            assert_close(parts[0][name], expected, tolerance, name)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kernels", ["of a CPU", "of a GPU"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_over_two_processes_is_plain_batch_norm_of_both_batches(
    two_processes, name: str, kernels: str, dtype: torch.dtype, tolerance: float, split: tuple[int, int]
) -> None:
    parts = [results["layer", kernels, name, dtype, split] for results in two_processes]
    whole = run_layer(make_layer(dtype, LAYERS[name]), *layer_inputs(dtype))
    assert_layers_agree(parts, whole, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "split"), NETWORKS, ids=str)
def test_the_network_under_ddp_over_two_processes_is_the_network_in_one(two_processes, dtype, split) -> None:
    torch.manual_seed(3)
    model = PSPNet(SMALL).to(dtype)
    images, labels = network_inputs(dtype)
    whole = run_network(model, images, labels, 1 / (labels != 255).sum().item())
    gradients = [name for name in whole if name.startswith("grad")]
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    parts = [results["network", dtype, split] for results in two_processes]
    assert_close(torch.cat([p["out"] for p in parts]), whole["out"], tolerance, "logits")
    for name in whole.keys() - {"out", "dx", *gradients}:
        assert_close(parts[0][name], whole[name], tolerance, name)
        assert torch.equal(parts[0][name], parts[1][name]), f"{name} differs between the processes"
    actual, expected = (torch.cat([r[name].view(-1) for name in gradients]) for r in (parts[0], whole))
    if dtype == torch.float64:
        assert_close(torch.cat([p["dx"] for p in parts]), whole["dx"], tolerance, "input gradient")
        for name in gradients:
            assert_close(parts[0][name], whole[name], tolerance, name)
    # Rounding flips a ReLU here and there, which float32 gradients of one process show as much (4e-3).
    assert (actual - expected).norm() < 0.02 * expected.norm()


@pytest.mark.slow
def test_layout_and_bfloat16_input_are_handled_as_by_plain_batch_norm(two_processes) -> None:
    x, weights = layer_inputs(torch.float32)
    whole = run_layer(make_layer(torch.float32, {}), x, weights)
    assert_layers_agree([results["channels last"] for results in two_processes], whole, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        whole = run_layer(make_layer(torch.float32, {}), x.bfloat16(), weights)
    for name in ("bfloat16", "bfloat16 of a GPU"):
        parts = [results[name] for results in two_processes]
        assert {name: t.dtype for name, t in parts[0].items()} == {name: t.dtype for name, t in whole.items()}
        assert_layers_agree(parts, whole, 0.02)


@pytest.mark.slow
def test_a_step_costs_one_collective_forward_and_one_backward(two_processes) -> None:
    for results in two_processes:
        assert results["forward collectives"] == {"all_gather_single": 1, "all_reduce": 0}
        assert results["all collectives"] == {"all_gather_single": 1, "all_reduce": 1}


def worker_of_five(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=5)
    x, weights = (part(tensor, (2, 2, 2, 1, 1), rank) for tensor in layer_inputs(torch.float64))
    layer = synchronize(make_layer(torch.float64, {}), neighbours(2))
    results = {"processes": synchronized_processes(layer), "layer": run_layer(layer, x, weights)}
    results["alone"] = [neighbours(size) for size in (None, 3, 5, 8)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_groups_of_processes_are_plain_batch_norm_of_each_groups_batches(tmp_path: Path) -> None:
    run_processes(worker_of_five, tmp_path, 5)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(5)]
    assert [result["processes"] for result in results] == [2, 2, 3, 3, 3]
    assert all(group is None for result in results for group in result["alone"])
    x, weights = layer_inputs(torch.float64)
    for images, ranks in ((slice(0, 4), [0, 1]), (slice(4, 8), [2, 3, 4])):
        whole = run_layer(make_layer(torch.float64, {}), x[images], weights[images])
        assert_layers_agree([results[rank]["layer"] for rank in ranks], whole, 1e-11)


@pytest.mark.slow
def test_one_image_per_worker_trains_with_bin_1_when_synchronized(two_processes) -> None:
    assert [results["processes"] for results in two_processes] == [2, 2]


def test_one_process_keeps_plain_batch_norm() -> None:
    model = PSPNet(SMALL)
    assert synchronize(model) is model
    assert not any(isinstance(module, SyncBatchNorm2d) for module in model.modules())
    assert synchronized_processes(model.head.bn) == 1


def test_without_other_processes_and_in_evaluation_it_is_batch_norm() -> None:
    plain, synced = make_layer(torch.float32, {}), SyncBatchNorm2d(6)
    synced.load_state_dict(plain.state_dict())
    x, _ = layer_inputs(torch.float32)
    for train in (True, False):
        assert torch.equal(synced.train(train)(x), plain.train(train)(x))
    assert torch.equal(synced.running_var, plain.running_var)


def randomize(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights that a fold can get wrong."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("stem", ["plain", "deep"])
def test_folding_removes_every_batch_norm_and_changes_nothing_else(stem) -> None:
    model = randomize(PSPNet(Architecture("resnet18", 5, stem=stem))).double()
    folded = fold_batch_norm(copy.deepcopy(model))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    images = torch.randn(1, 3, 65, 72, dtype=torch.float64)
    assert_close(folded(images), model(images), 1e-12, "logits")
    res4 = torch.randn(1, 256, 9, 9, dtype=torch.float64)
    assert_close(folded.auxiliary(res4), model.auxiliary(res4), 1e-12, "auxiliary logits")


@torch.no_grad()
def test_folding_respects_a_convolutions_bias_and_a_batch_norm_without_weights() -> None:
    batch_norms = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), batch_norms[0], nn.ReLU(), batch_norms[1]).eval()
    nn.init.normal_(batch_norms[0].running_mean)
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    folded = fold_batch_norm(model)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(folded[3], nn.BatchNorm2d), "it follows no convolution"
    torch.testing.assert_close(folded(x), expected)


def test_folding_a_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone\.bn1 is in training mode"):
        fold_batch_norm(PSPNet(SMALL))
