"""Run the whole workflow on this machine in a few minutes: `make demo`."""

import argparse
import time
from pathlib import Path

from pipeline.config.command_line import Parser, closest
from pipeline.config.fields import annotation_of
from pipeline.config.jobs import TrainConfig
from pipeline.console import START_OVER, duration, log, run_job, warn_deprecated, when_interrupted

OPTIONS = ("--to", "--num-train", "--num-val", "--num-photos")


def main(argv: list[str], prog: str = "jobs/demo.py") -> None:
    parser = Parser(
        prog,
        "Write the built-in scenes to a local S3 bucket, train a small PSPNet on them, label photos, then query "
        "the results and write reports. Options that are not listed here are passed on to jobs/train.py.",
        ("", "--num-train 120 --epochs 4"),
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("build/demo"),
        metavar="FOLDER",
        help="folder for the results; overwrites an earlier demo (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--num-train", type=int, default=480, help="number of training scenes (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=24, help="number of validation scenes (default: %(default)s)")
    parser.add_argument(
        "--num-photos", type=int, default=48, help="photos to label, at least 12 (default: %(default)s)"
    )
    arguments, train_options = parser.parse_known_args(argv)
    for option in filter(_is_misspelled, train_options):
        parser.error(f"unrecognized arguments: {option}")
    if arguments.folder is not None:
        warn_deprecated("option --folder", "--to")
    log("Loading PyTorch and Ray")
    from jobs import make_scenes, query, report, segment_bucket, train
    from pipeline.demo.run import Jobs, run_demo

    start = time.monotonic()
    # The bucket ends with the process, so a training in it cannot be resumed.
    with when_interrupted(START_OVER):
        run_demo(
            arguments.folder or arguments.to,
            arguments.num_train,
            arguments.num_val,
            arguments.num_photos,
            train_options,
            Jobs(make_scenes.main, train.main, segment_bucket.main, query.main, report.main),
        )
    log(f"Finished in {duration(time.monotonic() - start)}")


def _is_misspelled(option: str) -> bool:
    """Return True for an option that training does not have, but the demo has one that is spelled almost alike."""
    name = option.lstrip("-").partition("=")[0]
    is_of_training = name in TrainConfig.short_names or annotation_of(TrainConfig, name.replace("-", "_")) is not None
    return option.startswith("--") and not is_of_training and closest(f"--{name}", OPTIONS) is not None


if __name__ == "__main__":
    run_job(main)
