"""The benchmark of the network counts the operations of a batch without running the whole batch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import textbook
from benchmarks.model import count_gflop
from benchmarks.variants import Case


@pytest.mark.parametrize("task", ["forward", "training"])
def test_operations_are_counted_on_two_images_and_multiplied(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, sizes = Case("resnet18", 5, 65, 3, "cpu"), []
    function = "training_logits" if task == "training" else "logits"
    original = getattr(textbook, function)

    def recorded(model: torch.nn.Module, images_N3HW: torch.Tensor) -> object:
        sizes.append(len(images_N3HW))
        return original(model, images_N3HW)

    monkeypatch.setattr(textbook, function, recorded)
    counts = count_gflop(case, task)
    assert sizes == [2]
    if task == "forward":
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            case.model(case.normalised())
        assert counts["ours"] == pytest.approx(counter.get_total_flops() / 1e9)
