"""Write the built-in scenes as a dataset: `python jobs/make_scenes.py --to build/scenes --num-train 1200`."""

import argparse
import math

from pipeline.config.command_line import Parser, add_to_option, given_to
from pipeline.console import log, run_job
from pipeline.datasets.scenes import CUES_RIGHT


def main(argv: list[str], prog: str = "jobs/make_scenes.py") -> None:
    parser = Parser(
        prog,
        "Write the built-in scenes and their annotations as a dataset for configs/scenes_pspnet18.yaml.",
        ("--to build/scenes", "--to s3://bucket/scenes --num-train 1200 --num-val 60"),
    )
    add_to_option(parser, metavar="FOLDER", help="folder or URI to write to, the later --data.root")
    parser.add_argument(
        "--num-train",
        type=_count,
        default=480,
        help="training scenes, at most 100,000 (default: %(default)s)",
    )
    parser.add_argument(
        "--num-val", type=_count, default=24, help="validation scenes, at most 100,000 (default: %(default)s)"
    )
    parser.add_argument("--height", type=_side, default=129, help="height in pixels, 64 to 4096 (default: %(default)s)")
    parser.add_argument("--width", type=_side, default=129, help="width in pixels, 64 to 4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the scenes (default: %(default)s)")
    parser.add_argument(
        "--cues-right",
        type=_share,
        default=CUES_RIGHT,
        metavar="SHARE",
        help="share of the cues that indicate the right class, 0 to 1; higher is easier to learn, and jobs/demo.py "
        "uses 0.9 (default: %(default)s)",
    )
    options = parser.parse_intermixed_args(argv)
    root = given_to(parser, options)
    count = f"{options.num_train:,} training and {options.num_val:,} validation scenes"
    log(f"Writing {count} to {root}")
    from pipeline.datasets.scene_files import SceneSet, write_scenes

    write_scenes(
        root,
        SceneSet(options.num_train, options.num_val, options.seed, options.height, options.width, options.cues_right),
    )
    log(f"Wrote {count}")


def _count(text: str) -> int:
    return _whole(text, 1, 100_000)


def _side(text: str) -> int:
    return _whole(text, 64, 4096)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isdecimal() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    run_job(main)
