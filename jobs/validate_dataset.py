"""Read a whole dataset and report what is wrong: `python jobs/validate_dataset.py --config RECIPE --data.root URI`."""

from pipeline.config import ValidateDatasetConfig
from pipeline.entry import run_job
from pipeline.settings import load_settings


def main(argv: list[str]) -> int:
    config = load_settings(ValidateDatasetConfig, argv, prog="jobs/validate_dataset.py")
    from pipeline.dataset_check import check_dataset
    from pipeline.dataset_report import summary, write_report
    from pipeline.terminal import say

    check, pairs = check_dataset(config)
    for line in summary(check):
        say(line)
    if config.output:
        write_report(check, pairs, config.output)
        say(f"Report      {config.output}/dataset.html, dataset.json")
    return 1 if check.errors else 0


if __name__ == "__main__":
    run_job(main)
