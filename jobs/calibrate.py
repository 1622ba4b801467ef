"""Calibrate a checkpoint for int8: `python jobs/calibrate.py --checkpoint URI --data.root URI --output URI`."""

from pipeline.config.jobs import CalibrateConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/calibrate.py") -> None:
    config = load_settings(CalibrateConfig, argv, prog)
    log("Loading PyTorch")
    # Before torch is imported, which takes seconds.
    from pipeline import storage
    from pipeline.checkpoints.checkpoint import check_is_checkpoint

    check_is_checkpoint(config.checkpoint)
    storage.require(config.data.root, "data.root")
    from pipeline.checkpoints.int8_calibration import calibrate
    from pipeline.errors import UserError

    calibration = calibrate(config)
    log(f"Ranges       cover {calibration.share:.2%} of the activations of {calibration.num_images:,} images")
    log(f"Validation   {calibration.num_validated:,} images")
    log("  precision  float32 agreement      mIoU  images/s at batch size 1")
    for precision, result in calibration.results.items():
        log(f"  {precision:<9}  {result.agreement:>17.2%}  {result.miou:>8.4f}  {result.images_per_second:>8.2f}")
    if calibration.problem is not None:
        raise UserError(calibration.problem)
    log(f"Checkpoint   {config.output}")
    log(
        f"Next         python jobs/segment_bucket.py --input URI --output URI --checkpoint {config.output} "
        "--precision int8"
    )


if __name__ == "__main__":
    run_job(main)
