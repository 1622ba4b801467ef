"""Read a whole dataset and report its errors: `python jobs/validate_dataset.py --config RECIPE --data.root URI`."""

from pipeline.config.jobs import ValidateDatasetConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/validate_dataset.py") -> int:
    config = load_settings(ValidateDatasetConfig, argv, prog)
    log("Loading Ray")
    from pipeline import storage

    storage.require(config.data.root, "data.root")
    from pipeline.datasets.validation import check_dataset
    from pipeline.datasets.validation_report import summary, write_report

    check, pairs = check_dataset(config)
    for line in summary(check):
        log(line)
    if config.output:
        write_report(check, pairs, config.output)
        log(f"Report      {config.output}/dataset.html, dataset.json")
    return 1 if check.errors else 0


if __name__ == "__main__":
    run_job(main)
