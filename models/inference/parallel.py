"""Parallel prediction of images on a CPU: each thread, or small group of threads, has its own images.

If all threads work on one image, they wait for each other after every layer; in parallel, they wait only at the end
of the batch. The network also sees few batch sizes, for which oneDNN's choices are known to be fast.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


def map_images_in_parallel(function: Callable[[int], Result], count: int, most: int) -> list[Result]:
    """Return [function(0), ..., function(count - 1)], with at most `most` running at the same time.

    The calls share torch's threads evenly; the remaining ones at the end get more threads each. `function` is called in
    inference mode. If a call raises an exception, it is re-raised after all running calls have ended.
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
        torch.set_num_threads(num_threads)  # for new threads: the streams have changed the number
        results += [future.result() for future in running]
    return results


def _in_inference_mode(function: Callable[[int], Result], n: int) -> Result:
    with torch.inference_mode():
        return function(n)


@functools.cache
def _pool(num_streams: int, num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_streams, "stream", torch.set_num_threads, (num_threads,))
