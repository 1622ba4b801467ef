"""Functions run uncompiled where torch cannot compile, after one warning."""

import warnings

import pytest
import torch

from models.inference import fallback
from models.inference.fallback import or_uncompiled


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_can_compile", True)


def test_after_one_failure_every_function_runs_uncompiled_without_another_warning() -> None:
    calls = []

    def fails(x: int) -> int:
        calls.append(x)
        raise FileNotFoundError("gcc failed:\nPython.h: No such file\n\nTraceback")

    double, triple = or_uncompiled(fails, lambda x: 2 * x), or_uncompiled(fails, lambda x: 3 * x)
    with pytest.warns(RuntimeWarning, match=r"\(gcc failed: Python\.h: No such file\); install Triton, .* python3-dev"):
        assert double(1) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [double(2), triple(2)] == [4, 6]
    assert calls == [1]


def test_a_batch_that_does_not_fit_is_no_reason_to_run_uncompiled() -> None:
    full = True

    def compiled(x: int) -> int:
        if full:
            raise torch.OutOfMemoryError("no room")
        return x

    call = or_uncompiled(compiled, lambda _: -1)
    with pytest.raises(torch.OutOfMemoryError):
        call(8)
    full = False
    assert call(4) == 4
