"""Check a cluster before running jobs on it: `python jobs/doctor.py --storage s3://bucket/prefix`."""

from pipeline.config.jobs import DoctorConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/doctor.py") -> int:
    config = load_settings(DoctorConfig, argv, prog)
    log("Loading Ray")
    from pipeline.doctor.run import examine

    return examine(config)


if __name__ == "__main__":
    run_job(main)
