"""The main job on this machine alone, in a few minutes: `make demo`."""

import argparse
import time
from pathlib import Path

from pipeline.console import run_job


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jobs/demo.py",
        description="Write built-in scenes into a local bucket, train a small PSPNet on them, label photos, ask and "
        "report what came out.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/demo"), help="for the results, in place of an earlier demo's"
    )
    parser.add_argument("--num-train", type=int, default=480, help="scenes to train on")
    parser.add_argument("--num-val", type=int, default=24, help="scenes to validate on")
    parser.add_argument("--num-photos", type=int, default=48, help="photos to label, at least 12")
    arguments, train_options = parser.parse_known_args(argv)
    from jobs import query, report, segment_bucket, train
    from pipeline.console import duration, log
    from pipeline.demo.run import Jobs, run_demo

    start = time.monotonic()
    run_demo(
        arguments.folder,
        arguments.num_train,
        arguments.num_val,
        arguments.num_photos,
        train_options,
        Jobs(train.main, segment_bucket.main, query.main, report.main),
    )
    log(f"Finished in {duration(time.monotonic() - start)}")


if __name__ == "__main__":
    run_job(main)
