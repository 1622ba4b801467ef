"""Evaluate a checkpoint: `python jobs/evaluate.py --checkpoint URI --data.root URI --output URI`."""

from pipeline.config import EvaluateConfig
from pipeline.entry import run_job
from pipeline.settings import load_settings


def main(argv: list[str]) -> None:
    config = load_settings(EvaluateConfig, argv, prog="jobs/evaluate.py")
    from pipeline.evaluation_run import evaluate_checkpoint, summary_lines
    from pipeline.terminal import say

    outcome = evaluate_checkpoint(config)
    for line in summary_lines(outcome):
        say(line)
    if config.fit_temperature:
        say(f"Checkpoint             {config.fit_temperature}; {config.checkpoint} is as it was")
    if config.output:
        say(f"Output                 {config.output} (evaluation.html, metrics.json, pictures and tables)")


if __name__ == "__main__":
    run_job(main)
