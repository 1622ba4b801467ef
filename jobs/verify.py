"""Verify an output's integrity: `python jobs/verify.py OUTPUT [--deep] [--repair]`."""

from contextlib import nullcontext

from pipeline.config.jobs import VerifyConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job, when_interrupted


def main(argv: list[str], prog: str = "jobs/verify.py") -> int:
    config = load_settings(VerifyConfig, argv, prog)
    log(f"Verifying   {config.output}")
    from pipeline.verify.run import verify

    repair = "Run the same command again; a repair may be incomplete until then."
    with when_interrupted(repair) if config.repair else nullcontext():
        return 1 if verify(config) else 0


if __name__ == "__main__":
    run_job(main)
