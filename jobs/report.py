"""Write an HTML report about an output: `python jobs/report.py OUTPUT` writes OUTPUT/report.html."""

import argparse
import sys

from pipeline.config.command_line import Parser, uri
from pipeline.console import log, run_job

PICTURES = 60
MAX_BYTES = 20_000_000
MAX_PARTS = 500  # about ten million images, at 256 MB per part


def main(argv: list[str], prog: str = "jobs/report.py") -> None:
    arguments = _parser(prog).parse_args(argv)
    log(f"Reading {arguments.output}")
    # Imported after the options are checked, because the libraries take seconds to import.
    from pipeline.report.run import build_report

    report = build_report(arguments.output, arguments.to, arguments.gallery, arguments.max_bytes, arguments.max_parts)
    for note in report.notes:
        log(f"note: {note}", sys.stderr)
    print(f"{report.uri}  {report.bytes / 1e6:.1f} MB")


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Write an HTML report about an output: totals, classes, failures, charts and sample images.",
        ("s3://bucket/labels --to labels.html", "labels --gallery 200"),
    )
    parser.add_argument(
        "output", type=uri, metavar="OUTPUT", help="folder or URI that jobs/segment_bucket.py wrote (its --output)"
    )
    parser.add_argument(
        "--to", type=uri, metavar="FILE", help="file or URI of the report (default: OUTPUT/report.html)"
    )
    parser.add_argument(
        "--gallery",
        type=_count,
        default=PICTURES,
        metavar="N",
        help="maximum number of images in the gallery (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_positive,
        default=MAX_BYTES,
        metavar="BYTES",
        help="maximum size of the report; further pictures are omitted (default: %(default)s)",
    )
    parser.add_argument(
        "--max-parts",
        type=_positive,
        default=MAX_PARTS,
        metavar="N",
        help="maximum number of table parts to read; a larger output is sampled at random (default: %(default)s)",
    )
    return parser


def _count(text: str) -> int:
    """Parse a number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return number


def _positive(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return number


if __name__ == "__main__":
    run_job(main)
