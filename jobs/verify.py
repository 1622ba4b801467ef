"""Verify an output's integrity: `python jobs/verify.py OUTPUT [--deep] [--repair]`."""

from pipeline.config.jobs import VerifyConfig
from pipeline.config.loading import load_settings
from pipeline.console import run_job


def main(argv: list[str], prog: str = "jobs/verify.py") -> int:
    config = load_settings(VerifyConfig, argv, prog)
    from pipeline.verify.run import verify

    return 1 if verify(config) else 0


if __name__ == "__main__":
    run_job(main)
