"""Verify an output's integrity: `python jobs/verify.py --output URI [--deep] [--repair]`."""

from pipeline.config.jobs import VerifyConfig
from pipeline.config.loading import load_settings
from pipeline.console import run_job


def main(argv: list[str], prog: str = "jobs/verify.py") -> int:
    config = load_settings(VerifyConfig, argv, prog)
    if not config.repair:
        return _verify(config)
    from pipeline import storage
    from pipeline.output.lease import hold
    from pipeline.verify.run import require_output

    require_output(config.output)
    with hold(storage.absolute(config.output)):
        return _verify(config)


def _verify(config: VerifyConfig) -> int:
    from pipeline.console import log
    from pipeline.inputs import list_images
    from pipeline.verify.findings import Tally
    from pipeline.verify.repair import repair
    from pipeline.verify.run import Verification

    verification = Verification(config.output, config.deep, list_images(config) if config.has_inputs else ())
    tally = Tally()
    for finding in verification.findings():
        tally.add(finding)
    for line in tally.lines():
        log(line)
    found = tally.totals.total()
    log(f"Verified    {verification.summary()}")
    log(
        f"Result      {found:,} finding(s), {tally.repairable:,} of which --repair can fix"
        if found
        else "Result      no problems found"
    )
    if config.repair:
        for line in repair(verification, tally):
            log(f"Repair      {line}")
        found -= tally.repairable
    return 1 if found else 0


if __name__ == "__main__":
    run_job(main)
