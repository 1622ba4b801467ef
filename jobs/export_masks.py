"""Export masks to other formats: `python jobs/export_masks.py OUTPUT --to FOLDER --format coco-rle`."""

import sys

from pipeline.config.jobs import ExportMasksConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job, when_interrupted


@when_interrupted("Exported images stay; run the same command again to export the rest.")
def main(argv: list[str], prog: str = "jobs/export_masks.py") -> int:
    config = load_settings(ExportMasksConfig, argv, prog)
    log(f"Exporting   {config.output}")
    from pipeline.export_masks.run import export_masks

    summary = export_masks(config)
    for line in summary.notes:
        log(f"note: {line}", sys.stderr)
    print(f"Export      {summary.target} ({config.format}; names are relative to {summary.folder})")
    print(
        f"Images      {summary.exported:,} exported, {summary.done_before:,} already exported, "
        f"{summary.failed:,} failed"
    )
    for line in summary.failures:
        log(f"  {line}")
    if summary.failed > len(summary.failures):
        print(f"  ... and {summary.failed - len(summary.failures):,} more")
    if summary.failed:
        print("Run the same command again to retry the failed images")
    return 1 if summary.failed else 0


if __name__ == "__main__":
    run_job(main)
