"""Train a PSPNet: `python jobs/train.py --config configs/NAME.yaml --output URI`."""

from pipeline.config.jobs import TrainConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job, when_interrupted


@when_interrupted(
    "Run the same command again: training resumes from its last checkpoint, or starts over if it has none yet."
)
def main(argv: list[str], prog: str = "jobs/train.py") -> None:
    config = load_settings(TrainConfig, argv, prog)
    log("Loading PyTorch and Ray")
    # Before torch is imported, which takes seconds.
    from pipeline import storage
    from pipeline.checkpoints.checkpoint import check_is_checkpoint

    storage.require(config.data.root, "data.root")
    if config.weights:
        check_is_checkpoint(config.weights)
    from pipeline.train.run import train
    from pipeline.train.verdict import verdict_lines

    summary = train(config, argv)
    log(f"Best checkpoint  {summary.best}")
    log(f"Last checkpoint  {summary.last}")
    log(f"Report           {summary.report}")
    log(f"Validation mIoU  {summary.metrics['miou']:.4f}, pixel accuracy {summary.metrics['pixel_accuracy']:.4f}")
    for name, iou in summary.metrics["iou"].items():
        log(f"  {iou:.4f}  {name}")
    if summary.images_per_second:
        log(f"Training speed   {summary.images_per_second:.1f} images/s")
    for line in verdict_lines(summary.findings):
        log(line)


if __name__ == "__main__":
    run_job(main)
