"""One training step in one process: schedule, groups, options, states, and what it refuses."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models.batch_norm
import models.training.step
from models.batch_norm import FrozenBatchNorm2d, freeze, synchronized_processes
from models.pspnet import Architecture, PSPNet
from models.training.step import LossOptions, StepOptions, TrainingStep, learning_rate_at, sgd
from tests.models.training_samples import CPU, images_and_labels, make_step, small_network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors, and a machine that may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_states(actual: Any, expected: Any, where: str = "state") -> None:
    """Bit by bit."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same_states(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected), where
    else:
        assert actual == expected, where


def test_the_learning_rate_falls_from_the_base_to_nothing() -> None:
    assert learning_rate_at(0, 100, 0.01, 0.9) == 0.01
    assert learning_rate_at(50, 100, 0.01, 0.9) == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < learning_rate_at(99, 100, 0.01, 0.9) < 0.01 * 0.02


def test_the_learning_rate_rises_in_equal_steps_to_the_schedule() -> None:
    poly, warm = ([learning_rate_at(step, 100, 0.01, 0.9, warmup) for step in range(100)] for warmup in (0, 4))
    assert [w / p for w, p in zip(warm[:5], poly[:5], strict=True)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert warm[4:] == poly[4:]


def test_new_layers_learn_ten_times_as_fast() -> None:
    step = make_step()
    step(*images_and_labels(2), 0.003)
    backbone, head = step.optimizer.param_groups
    assert (backbone["lr"], head["lr"]) == (0.003, pytest.approx(0.03))
    assert {id(p) for group in (backbone, head) for p in group["params"]} == {id(p) for p in step.network.parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "float32"},
        {"precision": "bfloat16"},
        {"loss": LossOptions(ohem_threshold=0.9, dice_weight=1.0, lovasz_weight=1.0, label_smoothing=0.05)},
    ],
    ids=["float32", "bfloat16", "losses"],
)
@pytest.mark.slow
def test_steps_lower_the_loss(options: dict[str, Any]) -> None:
    step = make_step(**options)
    images, labels = images_and_labels(2)
    losses = [float(step(images, labels * 0, 0.01).main) for _ in range(5)]
    assert losses[-1] < losses[0] * 0.7


def test_a_batch_without_labelled_pixels_has_no_loss_and_keeps_weights_finite() -> None:
    step = make_step()
    images, labels = images_and_labels(2)
    result = step(images, torch.full_like(labels, 255), 0.01)
    assert (result.main, result.auxiliary) == (0, 0)
    assert all(p.isfinite().all() for p in step.network.parameters())


def test_a_network_without_auxiliary_head_trains_without_its_loss() -> None:
    step = make_step(network=PSPNet(Architecture("resnet18", 5, auxiliary=False)))
    assert step(*images_and_labels(2), 0.01).auxiliary is None


@pytest.mark.slow
def test_micro_batches_make_the_update_of_the_whole_batch() -> None:
    """Exactly, with statistics that do not depend on the batch; each loss option is in test_losses.py."""
    results = []
    for micro_batch in (None, 2):
        step = make_step(dtype=torch.float64, frozen=True, micro_batch=micro_batch, clip_norm=0.1, ema_decay=0.5)
        outcomes = [step(*images_and_labels(5), 0.01) for _ in range(2)]
        results.append((outcomes[-1], step.averaged.state_dict()))
    (whole, weights), (parts, other_weights) = results
    for expected, actual in zip(whole, parts, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    for name, expected in weights.items():
        torch.testing.assert_close(other_weights[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_are_clipped_to_the_norm_and_keep_their_direction() -> None:
    free, clipped = make_step(frozen=True), make_step(frozen=True, clip_norm=0.01)
    norms = []
    for step in (free, clipped):
        result = step(*images_and_labels(2), 0.01)
        norms.append(result.gradient_norm)
    gradients = [
        torch.cat([p.grad.flatten() for p in s.network.parameters() if p.requires_grad]).double()
        for s in (free, clipped)
    ]
    assert norms[0] is None
    torch.testing.assert_close(norms[1].double(), gradients[0].norm(), rtol=1e-5, atol=0)
    assert norms[1] > 0.02, "or there is nothing to clip"
    # An overflow guard of 1e-6 is added to the norm.
    torch.testing.assert_close(gradients[1] / 0.01, gradients[0] / gradients[0].norm(), rtol=1e-5, atol=1e-9)


def test_overflowing_float16_gradients_change_no_weight_and_halve_the_scale() -> None:
    step = make_step(precision="float16", ema_decay=0.9)
    state = step.state_dict()
    state["scaler"]["scale"] = 2.0**120
    step.load_state_dict(state)
    before = {name: p.detach().clone() for name, p in step.network.named_parameters()}
    step(*images_and_labels(2), 0.01)
    assert_same_states(dict(step.network.named_parameters()), before)
    assert step.state_dict()["scaler"]["scale"] == 2.0**119


@pytest.mark.slow
def test_the_average_is_an_exponential_one_of_weights_and_statistics() -> None:
    step = make_step(ema_decay=0.75)
    states = []
    for _ in range(3):
        step(*images_and_labels(2), 0.01)
        states.append({name: tensor.clone() for name, tensor in step.network.state_dict().items()})
    averaged = step.averaged.state_dict()
    for name, newest in states[-1].items():
        if name.endswith("num_batches_tracked"):
            assert averaged[name] == newest == 3
            continue
        expected = 0.75 * (0.75 * states[0][name] + 0.25 * states[1][name]) + 0.25 * newest
        torch.testing.assert_close(averaged[name], expected, msg=name)
    assert averaged.keys() == states[-1].keys()
    assert make_step().averaged is not step.averaged


def test_groups_of_processes_and_an_average_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group cannot be copied, and the average is a copy of the network."""
    group = torch.distributed.ProcessGroup(torch.distributed.HashStore(), 0, 2)
    with pytest.raises(TypeError, match="cannot pickle"):
        copy.deepcopy(group)
    monkeypatch.setattr(models.training.step, "neighbours", lambda _: group)
    monkeypatch.setattr(models.batch_norm, "_world_size", lambda _: 2)
    step = make_step(ema_decay=0.5, batch_norm_processes=2)
    assert synchronized_processes(step.network.head.bn) == 2
    assert step.averaged.state_dict().keys() == step.network.state_dict().keys()


def test_without_an_average_the_network_itself_is_validated() -> None:
    step = make_step()
    assert step.averaged is step.network


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_that_goes_on_from_a_saved_state_computes_the_same_bits(precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "ema_decay": 0.9, "clip_norm": 1.0}
    step = make_step(**options)
    step(*images_and_labels(2), 0.02)
    file = io.BytesIO()
    torch.save(step.state_dict(), file)
    resumed = make_step(**options, seed=7)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for one in (step, resumed):
        one(*images_and_labels(2, seed=2), 0.01)
    assert_same_states(resumed.state_dict(), step.state_dict())


def test_a_state_of_other_options_is_refused() -> None:
    state = make_step().state_dict()
    with pytest.raises(ValueError, match="saved without average"):
        make_step(ema_decay=0.9).load_state_dict(state)
    with pytest.raises(ValueError, match="saved without scaler"):
        make_step(precision="float16").load_state_dict(state)
    state = make_step(ema_decay=0.9).state_dict()
    with pytest.raises(ValueError, match="saved with average"):
        make_step().load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["plain", "frozen"])
def test_activations_computed_again_change_nothing(batch_norm: str) -> None:
    steps = [make_step(batch_norm=batch_norm, activation_checkpointing=again) for again in (False, True)]
    for step in steps:
        for _ in range(2):
            step(*images_and_labels(2), 0.01)
    kept, again = (step.state_dict() for step in steps)
    assert_same_states(again, kept)
    for (name, p), (_, q) in zip(*(step.network.named_parameters() for step in steps), strict=True):
        assert p.grad is None or torch.equal(p.grad, q.grad), name


def test_activations_are_computed_again_and_not_kept() -> None:
    """Counted at a block's first convolution: it runs twice in a step, and in evaluation once."""
    step = make_step(activation_checkpointing=True)
    calls = []
    block = step.network.backbone.layer4[1]
    assert isinstance(block, nn.Module)
    block.conv1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    images, labels = images_and_labels(2)
    step(images, labels, 0.01)
    assert len(calls) == 2
    step.network.eval()(torch.zeros(1, 3, 64, 64))
    assert len(calls) == 3


def test_a_frozen_backbone_keeps_its_batch_norm_and_learns_the_rest() -> None:
    step = make_step(batch_norm="frozen", frozen=False)
    backbone = step.network.backbone
    before = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
    step(*images_and_labels(2), 0.01)
    changed = {name for name, tensor in step.network.state_dict().items() if not torch.equal(tensor, before[name])}
    layers = {f"backbone.{name}." for name, layer in backbone.named_modules() if isinstance(layer, FrozenBatchNorm2d)}
    assert len(layers) == 20
    assert not [name for name in changed if any(name.startswith(layer) for layer in layers)]
    assert {"backbone.conv1.weight", "head.conv.weight", "head.bn.weight", "head.bn.running_mean"} <= changed


def test_freezing_keeps_the_evaluation_function_and_the_parameter_objects() -> None:
    network = small_network().eval()
    parameters = list(map(id, network.parameters()))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        assert torch.equal(freeze(network).train().eval()(images), before)
    assert list(map(id, network.parameters())) == parameters
    assert network.backbone.bn1.train().training is False


@pytest.mark.slow
@pytest.mark.exhaustive  # as test_processes.py does, without the minute of generating code
def test_a_compiled_network_trains_alike_and_is_saved_under_the_plain_names() -> None:
    plain, compiled = make_step(ema_decay=0.5), make_step(ema_decay=0.5, compile=True)
    for _ in range(2):
        expected, result = (step(*images_and_labels(2), 0.01) for step in (plain, compiled))
    torch.testing.assert_close(result.main, expected.main, rtol=1e-4, atol=0)
    assert compiled.state_dict()["network"].keys() == plain.network.state_dict().keys()
    for name, tensor in plain.averaged.state_dict().items():
        torch.testing.assert_close(compiled.averaged.state_dict()[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_labels_that_are_no_classes_change_nothing() -> None:
    step = make_step()
    images, labels = images_and_labels(2)
    labels[0, 0, 0] = 9
    before = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"\[9\] are neither one of 5 classes"):
        step(images, labels, 0.01)
    assert_same_states(step.network.state_dict(), before)


@pytest.mark.parametrize("batch_norm", ["synchronized", "plain", "frozen"])
@pytest.mark.parametrize(("num_images", "micro_batch"), [(1, None), (4, 1), (5, 2)])
def test_an_image_alone_under_bin_1_is_refused(num_images: int, micro_batch: int | None, batch_norm: str) -> None:
    step = make_step(batch_norm=batch_norm, micro_batch=micro_batch)
    with pytest.raises(ValueError, match=rf"{num_images} image\(s\) and micro_batch {micro_batch} .* single value"):
        step(*images_and_labels(num_images), 0.01)


def test_an_image_alone_trains_without_bin_1() -> None:
    step = make_step(network=PSPNet(Architecture("resnet18", 5, bins=(2, 3))), micro_batch=1)
    assert step(*images_and_labels(2), 0.01).main > 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    step = make_step()
    images, labels = images_and_labels(2)
    for wrong in ((images[:1], labels), (images[..., 0], labels), (images[:0], labels[:0])):
        with pytest.raises(ValueError, match=r"must be \(N, H, W, 3\) and \(N, H, W\)"):
            step(*wrong, 0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_norm": "ghost"},
        {"precision": "float8"},
        {"micro_batch": 0},
        {"clip_norm": 0.0},
        {"ema_decay": 1.0},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is .*; it must be"):
        StepOptions(**wrong)


def test_compiling_and_computing_again_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="compile and activation_checkpointing cannot be combined"):
        StepOptions(compile=True, activation_checkpointing=True)


def test_class_weights_of_another_length_are_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match="class_weights has 2 values for 5 classes"):
        TrainingStep(
            network := small_network(),
            sgd(network, 0.01, 10, 0.9, 1e-4),
            (120,) * 3,
            (60,) * 3,
            CPU,
            StepOptions(loss=LossOptions(class_weights=(1.0, 2.0))),
        )
