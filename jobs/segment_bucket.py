"""Label a bucket: `python jobs/segment_bucket.py --input URI --output URI --checkpoint URI`."""

from pipeline.config.jobs import SegmentConfig
from pipeline.config.loading import load_settings
from pipeline.console import START_OVER, duration, log, run_job, when_interrupted

SAVED = "Labeled images are saved part by part; run the same command again to label the rest."


def main(argv: list[str], prog: str = "jobs/segment_bucket.py") -> int:
    config = load_settings(SegmentConfig, argv, prog)
    with when_interrupted(f"{START_OVER} The output is unchanged." if config.plan else SAVED):
        log("Loading PyTorch and Ray")
        # Before torch is imported, which takes seconds.
        from pipeline.checkpoints.checkpoint import check_is_checkpoint
        from pipeline.inputs import check_inputs_exist

        check_inputs_exist(config)
        check_is_checkpoint(config.checkpoint)
        from pipeline.images.pixels import MIN_LEVELS
        from pipeline.segment.run import segment

        if config.plan:
            from pipeline.plan.run import make_plan
            from pipeline.plan.text import plan_lines

            for line in plan_lines(make_plan(config)):
                log(line)
            return 0
        summary = segment(config)
    images = sum(summary.outcomes.values())
    log(f"Output      {summary.output} (masks/, class_stats/, classes.parquet, runs/{summary.run_id}.json)")
    listed = summary.listed
    log(f"Images      {listed.images:,} in the input, {listed.done_before:,} already completed, {images:,} in this run")
    if summary.num_hidden:
        log(f"Hidden      {summary.num_hidden:,} hidden files skipped; --hidden includes them")
    if images:
        rate = images / summary.seconds
        log(f"Time        {duration(summary.seconds)}, {rate:.1f} images/s including startup and shutdown")
    failed = images - summary.outcomes.get("ok", 0)
    log(f"Failed      {failed:,}{' (each has a row with the reason)' if failed else ''}")
    for failure in summary.failures:
        log(f"  {failure.image_uri}: {failure.error_type} at {failure.error_stage}: {failure.error_message}")
    if failed > len(summary.failures):
        log(f"  ... and {failed - len(summary.failures):,} more: SELECT * FROM masks WHERE status = 'error'")
    if summary.num_with_nodata:
        num_images = f"{summary.num_with_nodata:,} of {images:,} images"
        log(f"No data     {num_images} have pixels without data; these have no class")
    if summary.num_few_levels:
        log(
            f"Warning     {summary.num_few_levels:,} of {images:,} images have fewer than {MIN_LEVELS} different "
            "pixel values; unless they are empty, set --value-range, such as 2%,98%"
        )
    if not summary.is_exact:
        log("The output is incomplete: images have missing or duplicate rows. Run the same command again")
    return 0 if summary.is_exact else 1


if __name__ == "__main__":
    run_job(main)
