"""Images side by side: each once and in order, whatever the numbers; threads as they were; the labels of one by one."""

import threading

import numpy as np
import pytest
import torch

from models import Architecture, Predictor, PSPNet
from models.inference import predictor
from models.inference.parallel import map_images_in_parallel


@pytest.fixture
def torch_threads():
    """Sets torch's number of threads, which is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("most", [0, 1, 3, 99])
def test_every_one_is_done_once_with_a_fair_share_of_the_threads(torch_threads, num_threads, count, most) -> None:
    torch_threads(num_threads)
    lock, running, seen = threading.Lock(), set(), []

    def work(n: int) -> int:
        with lock:
            running.add(n)
            seen.append((n, len(running), torch.get_num_threads()))
        assert torch.is_inference_mode_enabled()
        with lock:
            running.remove(n)
        return n * n

    assert map_images_in_parallel(work, count, most) == [n * n for n in range(count)]
    assert sorted(n for n, _, _ in seen) == list(range(count))
    assert all(together <= max(1, most) for _, together, _ in seen)
    assert all(share * together <= num_threads for _, together, share in seen)
    assert torch.get_num_threads() == num_threads


def test_as_many_run_together_as_there_are_threads(torch_threads) -> None:
    torch_threads(2)
    both = threading.Barrier(2, timeout=30)
    assert map_images_in_parallel(lambda n: both.wait() >= 0, 4, 99) == [True] * 4


def test_an_error_is_raised_when_all_have_ended(torch_threads) -> None:
    torch_threads(2)
    ended = []

    def work(n: int) -> None:
        if n == 0:
            raise MemoryError("no memory")
        ended.append(n)

    with pytest.raises(MemoryError, match="no memory"):
        map_images_in_parallel(work, 6, 99)
    assert sorted(ended) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("pass_pixels", [0, 2 * 72 * 80, 10**9])
def test_a_batch_has_the_labels_of_its_images_one_by_one(torch_threads, monkeypatch, num_threads, pass_pixels) -> None:
    torch_threads(num_threads)
    monkeypatch.setattr(predictor, "PASS_PIXELS_CPU", pass_pixels)
    torch.manual_seed(0)
    model = PSPNet(Architecture("resnet18", 7, auxiliary=False)).eval()
    ready = Predictor(model, [123.0, 116.0, 103.0], [58.0, 57.0, 57.0])
    images = np.random.default_rng(0).integers(0, 256, (7, 72, 80, 3), dtype=np.uint8)
    sizes = [(72, 80), (30, 40), (72, 80), (90, 91), (30, 40), (72, 80), (1, 1)]
    together = ready.predict(images)
    each = ready.predict_each(images, sizes)
    logits = ready.logits(torch.from_numpy(images))
    for n, (image, size) in enumerate(zip(images, sizes, strict=True)):
        alone = ready.predict(image[None])
        # Layers may add up in another order in a pass of several images.
        assert (together.class_ids_NHW[n] == alone.class_ids_NHW[0]).mean() > 0.999
        torch.testing.assert_close(logits[n], ready.logits(torch.from_numpy(image[None]))[0], rtol=1e-4, atol=1e-4)
        assert each[n].class_ids_NHW.shape == (1, *size)
        resized = ready.predict(image[None], size)
        assert (each[n].class_ids_NHW == resized.class_ids_NHW).mean() > 0.999
