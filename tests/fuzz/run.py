"""Fuzzes a parser of what comes from outside.

python -m tests.fuzz.run decoder --seconds 600     or manifest, inventory, configuration, checkpoint
python -m tests.fuzz.run decoder --case FILE       one case again, with whatever it raises

Cases that break the contract are written to build/fuzz/TARGET, one for each place where they break it, with what
happened beside them. Exit code 1: there are some. A second process runs the cases, so that crashes and hangs are
finds, too.
"""

import argparse
import faulthandler
import subprocess
import sys
import time
from pathlib import Path

import cv2

from tests.fuzz.cases import Cases, Find
from tests.fuzz.targets import NAMES, target

HANG = 120  # seconds after which a case is given up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="other cases for every number")
    parser.add_argument("--finds", type=Path, default=Path("build/fuzz"), help="folder that finds are written to")
    parser.add_argument("--case", type=Path, help="a find to be run again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(target(options.target).check(options.case.read_bytes()))
        return 0
    folder = options.finds / options.target
    folder.mkdir(parents=True, exist_ok=True)
    if options.worker:
        work(options.target, options.seconds, options.seed, folder)
        return 0
    return supervise(options.target, options.seconds, options.seed, options.finds)


def work(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Run cases until the time is over, each noted before it begins."""
    faulthandler.enable()
    cv2.setNumThreads(1)
    cases, end, told = Cases(target(name), seed), time.monotonic() + seconds, 0.0
    current = folder / "current"
    while time.monotonic() < end:
        content = cases.next()
        current.write_bytes(content)
        try:
            cases.check(content)
        except Find as find:
            path = folder / f"{find.name}.case"
            if not path.exists() or path.stat().st_size > len(content):
                print(f"{name}: case {cases.run}: {find.name}", flush=True)
                path.write_bytes(content)
                path.with_suffix(".txt").write_text(str(find), errors="backslashreplace")
        if time.monotonic() > told + 60:
            told = time.monotonic()
            print(f"{name}: {cases.run} cases, {cases.num_outcomes} different outcomes", flush=True)
    print(f"{name}: {cases.run} cases, {cases.num_outcomes} different outcomes", flush=True)
    current.unlink()


def supervise(name: str, seconds: float, seed: int, finds: Path) -> int:
    """Keep a worker at work; one that dies or hangs has found something. Returns the exit code."""
    folder, end = finds / name, time.monotonic() + seconds
    current = folder / "current"
    current.unlink(missing_ok=True)
    while (left := end - time.monotonic()) > 0:
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--worker", f"--seconds={left}", f"--seed={seed}"]
        worker = subprocess.Popen([*command, f"--finds={finds}"])
        while worker.poll() is None:
            time.sleep(0.5)
            if current.exists() and time.time() - current.stat().st_mtime > HANG:
                worker.kill()
        if worker.returncode > 0:
            return 2  # a fault of ours
        if worker.returncode and current.exists():
            current.replace(folder / f"{'hang' if worker.returncode == -9 else 'crash'}-{seed}.case")
        seed += 1_000_003  # not the same cases again
    found = sorted(path.name for path in folder.glob("*.case"))
    print(f"{name}: {len(found)} finds in {folder}", *found, sep="\n  ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
