"""CPU and wall time to fetch one small object: pipeline.storage and obstore versus s3fs and pyarrow.

    python benchmarks/fetch.py --json benchmarks/results/fetch-cpu.json

All read the same objects from one S3 server on this machine, with the same concurrency, in turn in every round. Times
are medians over the rounds, and ratios are relative to s3fs in the same round. CPU time does not include the server.
Wall time is mostly spent in the server, which shares the CPUs with this process, so compare it with care.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import obstore
import pyarrow.fs
from obstore.store import S3Store

from benchmarks import machine
from pipeline import storage
from pipeline.demo.local_s3 import LocalS3, local_s3

BASELINE = "s3fs"
AT_ONCE = storage.FETCHES
BLOCK = 64  # files that one task of a run fetches together
BUCKET = "benchmark"


def main() -> None:
    options = parse()
    with local_s3() as server:
        os.environ.update(server.environment)
        names = fill(options.objects, options.bytes)
        rows = measure(ways(server), names, options)
    for row in rows:
        print(
            f"{row['way']:18} {row['cpu_ms']:7.2f} ms CPU {row['wall_ms']:7.2f} ms wall "
            f"{row['cpu_ratio']:6.2f} x less CPU time than {BASELINE}"
        )
    if options.json:
        report = {
            **machine.about(),
            "versions": {name: version(name) for name in ("s3fs", "obstore", "pyarrow", "aiobotocore", "moto")},
            "options": {key: value for key, value in vars(options).items() if key != "json"},
            "at_once": AT_ONCE,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def fill(count: int, size: int) -> list[str]:
    """Write objects of random bytes and return their keys."""
    filesystem, _ = storage.open_filesystem(f"s3://{BUCKET}")
    filesystem.mkdir(BUCKET)
    names = [f"photos/{index:05d}.jpg" for index in range(count)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"s3://{BUCKET}/{name}", os.urandom(size)), names))
    return names


Way = Callable[[list[str]], list[bytes]]


def ways(server: LocalS3) -> dict[str, Way]:
    """Return the functions that fetch a block of keys."""
    s3fs, _ = storage.open_filesystem(f"s3://{BUCKET}")
    address, key, secret = server.endpoint, *(server.environment[f"AWS_{name}_KEY{end}"] for name, end in KEYS)
    store = S3Store(
        BUCKET,
        endpoint=address,
        access_key_id=key,
        secret_access_key=secret,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    arrow = pyarrow.fs.S3FileSystem(access_key=key, secret_key=secret, endpoint_override=address, region="us-east-1")

    def by_arrow(name: str) -> bytes:
        with arrow.open_input_file(f"{BUCKET}/{name}") as file:
            return file.read()

    def together(read: Callable[[str], bytes]) -> Way:
        def read_all(names: list[str]) -> list[bytes]:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(read, names))

        return read_all

    return {
        BASELINE: together(lambda name: s3fs.cat_file(f"{BUCKET}/{name}")),
        "pipeline.storage": lambda names: storage.fetch([f"s3://{BUCKET}/{name}" for name in names]),  # type: ignore[return-value]
        "obstore": together(lambda name: obstore.get(store, name).bytes().to_bytes()),
        "pyarrow": together(by_arrow),
    }


KEYS = (("ACCESS", "_ID"), ("SECRET_ACCESS", ""))


def measure(ways: dict[str, Way], names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way; the first round, in which all of them connect, is not counted."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):
        for way, fetch in ways.items():
            with timed() as spent:
                for start in range(0, len(names), BLOCK):
                    contents = fetch(names[start : start + BLOCK])
                    if any(not isinstance(content, bytes) or len(content) != options.bytes for content in contents):
                        raise RuntimeError(f"{way} returned other content than was written")
            if number > 0:
                times[way].append((spent[0] / len(names) * 1e3, spent[1] / len(names) * 1e3))
    rows = []
    for way, own in times.items():
        ratios = [base[0] / mine[0] for base, mine in zip(times[BASELINE], own, strict=True)]
        rows.append(
            {
                "way": way,
                "cpu_ms": statistics.median(cpu for cpu, _ in own),
                "wall_ms": statistics.median(wall for _, wall in own),
                "cpu_ratio": statistics.median(ratios),
                "cpu_ratios": [min(ratios), max(ratios)],
            }
        )
    return rows


@contextmanager
def timed() -> Iterator[list[float]]:
    """Yield a list that receives the CPU and wall seconds of the block when the block ends."""

    def now() -> tuple[float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime, time.perf_counter()

    begin, spent = now(), []
    yield spent
    spent += [after - before for before, after in zip(begin, now(), strict=True)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=256, help="number of objects (256)")
    parser.add_argument("--bytes", type=int, default=60_000, help="size of each object in bytes (60,000)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (5)")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
