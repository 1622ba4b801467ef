"""Run all benchmarks that publish results, one after the other, and update the tables in docs/. Takes hours.

    python -m benchmarks.measure                   all: `make bench`
    python -m benchmarks.measure model pipeline    names that start with these: `make bench ONLY="model pipeline"`
    python -m benchmarks.measure --camvid FOLDER   also those that need CamVid's images/ and annotations/

A result is moved to benchmarks/results when its benchmark succeeds, so a benchmark that is killed or fails keeps the
previous result there. A failure does not stop the other benchmarks.
"""

import argparse
import shlex
import subprocess
import sys

from benchmarks import published

MADE = published.ROOT / "build" / "bench"
# Name of the result -> script and options. {camvid} is the folder of --camvid.
COMMANDS = {
    "model-cpu-inference": "model.py --tasks forward labels --rounds 7",
    "model-cpu-training": "model.py --tasks training",
    "batches-cpu": "batches.py --backbone resnet50",
    "decode-cpu": "decode.py --data {camvid}/images/train --rounds 5",
    "ingest-cpu": "ingest.py --data {camvid} --stride 36 --images 10 --draws 40 --rounds 5",
    "camvid-cpu": "camvid.py --data {camvid} --device cpu --minutes 34 --backbone resnet18 --stem plain --batch 8"
    " --crop 241 321 --scale 0.5 1.5 --ema 0.99 --warmup 40 --jitter 0.3 --balance 0.3"
    " --protocol-scales 0.75 1 1.25 1.5",
    "fetch-cpu": "fetch.py --objects 64 --rounds 3",
    "listing-cpu": "listing.py --rows 1000000 10000000",
    "first-image-cpu": "first_image.py --rows 1000000 10000000",
    "nothing-new-cpu": "nothing_new.py --rows 1000000 10000000",
    "scale-cpu": "scale.py --images 100000 1000000 10000000 --chart docs/scale.png",
    "tables-cpu": "tables.py",
    "memory-cpu": "memory.py --chart docs/memory.png",
    "pipeline-cpu": "pipeline.py --images 2000 --rounds 3",
    "pipeline-resnet50-cpu": "pipeline.py --backbone resnet50 --variants textbook ours --images 100",
    "plan-cpu": "plan.py --images 2000",
    "next-to-label-cpu": "next_to_label.py --seeds 3",
    "traffic-cpu": "traffic.py",
    "gigapixel-cpu": "gigapixel.py",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="run the benchmarks whose names start with these (all)")
    parser.add_argument("--camvid", help="folder with CamVid's images/ and annotations/")
    options = parser.parse_args()
    names = chosen(options.names)
    without_data = [name for name in names if "{camvid}" in COMMANDS[name] and not options.camvid]
    if without_data:
        print(f"skipped without --camvid: {', '.join(without_data)}")
    names = [name for name in names if name not in without_data]
    failed = [name for number, name in enumerate(names, 1) if not measured(name, options, f"{number} of {len(names)}")]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; retry with make bench ONLY='{' '.join(failed)}'")


def chosen(beginnings: list[str]) -> list[str]:
    """Return the results whose names start with one of these, or all if none is given. Exits if one does not match."""
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in COMMANDS):
            sys.exit(f"no result starts with {beginning}; choose from {', '.join(COMMANDS)}")
    return [name for name in COMMANDS if not beginnings or name.startswith(tuple(beginnings))]


def measured(name: str, options: argparse.Namespace, place: str) -> bool:
    """Run a benchmark and publish its result; return False if it fails."""
    MADE.mkdir(parents=True, exist_ok=True)
    made = MADE / f"{name}.json"
    script, *arguments = (part.replace("{camvid}", options.camvid or "") for part in shlex.split(COMMANDS[name]))
    command = [sys.executable, f"benchmarks/{script}", *arguments, "--json", str(made)]
    print(f"== {name}, {place}: {shlex.join(command[1:])}", flush=True)
    if subprocess.run(command, cwd=published.ROOT).returncode:
        return False
    made.replace(published.RESULTS / made.name)
    published.main()
    return True


if __name__ == "__main__":
    main()
