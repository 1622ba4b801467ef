"""Check a cluster before work goes to it: `python jobs/doctor.py --storage s3://bucket/prefix`."""

from pipeline.config import DoctorConfig
from pipeline.entry import run_job
from pipeline.settings import load_settings


def main(argv: list[str]) -> int:
    config = load_settings(DoctorConfig, argv, prog="jobs/doctor.py")
    from pipeline.doctor.examination import examine

    return examine(config)


if __name__ == "__main__":
    run_job(main)
