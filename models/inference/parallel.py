"""Images side by side on a CPU: each thread, or a few of them, with images of its own.

All threads on one image wait for each other at the end of every layer; side by side they wait at the end of the batch
alone. And the network sees batches of few sizes, for which oneDNN's choices can be relied on.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


def map_images_in_parallel(function: Callable[[int], Result], count: int, most: int) -> list[Result]:
    """Return [function(0), ..., function(count - 1)], of which at most `most` run at the same time.

    They share torch's threads evenly; what is left over in the end has more of them. `function` is called in inference
    mode. An exception of one is raised when none runs any more.
    """
    num_threads = torch.get_num_threads()
    results: list[Result] = []
    while len(results) < count:
        left = count - len(results)
        num_streams = max(n for n in range(1, min(num_threads, left, max(1, most)) + 1) if num_threads % n == 0)
        if num_streams == 1:
            with torch.inference_mode():
                results.append(function(len(results)))
            continue
        submit = _pool(num_streams, num_threads // num_streams).submit
        together = range(len(results), count - left % num_streams)
        running: list[Future[Result]] = [submit(_in_inference_mode, function, n) for n in together]
        wait(running)
        torch.set_num_threads(num_threads)  # for threads to come: the streams have set it to their own number
        results += [future.result() for future in running]
    return results


def _in_inference_mode(function: Callable[[int], Result], n: int) -> Result:
    with torch.inference_mode():
        return function(n)


@functools.cache
def _pool(num_streams: int, num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_streams, "stream", torch.set_num_threads, (num_threads,))
