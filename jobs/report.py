"""A page about an output: `python jobs/report.py OUTPUT` writes OUTPUT/report.html."""

import argparse
import sys

from pipeline.console import log, run_job

PICTURES = 60
MAX_BYTES = 20_000_000
MAX_PARTS = 500  # of 256 MB each some ten million images


def main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    # Only now, since the libraries take seconds to import and the options may be wrong.
    from pipeline.report.run import build_report

    report = build_report(arguments.output, arguments.to, arguments.gallery, arguments.max_bytes, arguments.max_parts)
    for note in report.notes:
        log(f"note: {note}", sys.stderr)
    print(f"{report.uri}  {report.bytes / 1e6:.1f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/report.py",
        description="Write one page about an output: totals, classes, failures, charts, and pictures of some images.",
    )
    parser.add_argument("output", help="folder or URI that jobs/segment_bucket.py wrote (its --output)")
    parser.add_argument("--to", metavar="FILE", help="file or URI of the page (default: OUTPUT/report.html)")
    parser.add_argument(
        "--gallery",
        type=_count,
        default=PICTURES,
        metavar="N",
        help="images in the gallery, at the most (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_positive,
        default=MAX_BYTES,
        metavar="BYTES",
        help="size of the page: pictures are left out beyond it (default: %(default)s)",
    )
    parser.add_argument(
        "--max-parts",
        type=_positive,
        default=MAX_PARTS,
        metavar="N",
        help="parts of the tables to read; of more, a random sample of so many (default: %(default)s)",
    )
    return parser


def _count(text: str) -> int:
    """A number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _positive(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


if __name__ == "__main__":
    run_job(main)
