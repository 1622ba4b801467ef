"""Export masks to other formats: `python jobs/export_masks.py --labels OUTPUT --target TARGET --format coco-rle`."""

import sys

from pipeline.config.jobs import ExportMasksConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job


def main(argv: list[str]) -> int:
    config = load_settings(ExportMasksConfig, argv, prog="jobs/export_masks.py")
    from pipeline.export_masks.run import export_masks

    summary = export_masks(config)
    for line in summary.notes:
        log(f"note: {line}", sys.stderr)
    print(f"Export      {summary.target} ({config.format}; names begin below {summary.folder})")
    print(f"Images      {summary.exported:,} exported, {summary.done_before:,} done before, {summary.failed:,} failed")
    for line in summary.failures:
        log(f"  {line}")
    if summary.failed > len(summary.failures):
        print(f"  ... and {summary.failed - len(summary.failures):,} more")
    if summary.failed:
        print("The same command tries these again")
    return 1 if summary.failed else 0


if __name__ == "__main__":
    run_job(main)
