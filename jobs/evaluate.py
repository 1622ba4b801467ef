"""Evaluate a checkpoint: `python jobs/evaluate.py --checkpoint URI --data.root URI --output URI`."""

from pipeline.config.jobs import EvaluateConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/evaluate.py") -> None:
    config = load_settings(EvaluateConfig, argv, prog)
    log("Loading PyTorch and Ray")
    # Before torch is imported, which takes seconds.
    from pipeline import storage
    from pipeline.checkpoints.checkpoint import check_is_checkpoint

    check_is_checkpoint(config.checkpoint)
    storage.require(config.data.root, "data.root")
    from pipeline.evaluate.run import evaluate_checkpoint, summary_lines

    outcome = evaluate_checkpoint(config)
    for line in summary_lines(outcome):
        log(line)
    if config.fit_temperature:
        log(f"Checkpoint             {config.fit_temperature} ({config.checkpoint} is unchanged)")
    if config.output:
        log(f"Output                 {config.output} (evaluation.html, metrics.json, pictures and tables)")


if __name__ == "__main__":
    run_job(main)
