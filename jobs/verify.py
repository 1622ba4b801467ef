"""Check everything that must be true of an output: `python jobs/verify.py --output URI [--deep] [--repair]`."""

from pipeline.config import VerifyConfig
from pipeline.entry import run_job
from pipeline.settings import load_settings


def main(argv: list[str]) -> int:
    config = load_settings(VerifyConfig, argv, prog="jobs/verify.py")
    if not config.repair:
        return _verify(config)
    from pipeline import storage
    from pipeline.lease import hold
    from pipeline.verification import require_output

    require_output(config.output)
    with hold(storage.absolute(config.output)):
        return _verify(config)


def _verify(config: VerifyConfig) -> int:
    from pipeline.findings import Tally
    from pipeline.inputs import list_images
    from pipeline.repair import repair
    from pipeline.terminal import say
    from pipeline.verification import Verification

    verification = Verification(config.output, config.deep, list_images(config) if config.has_inputs else ())
    tally = Tally()
    for finding in verification.findings():
        tally.add(finding)
    for line in tally.lines():
        say(line)
    found = tally.totals.total()
    say(f"Verified    {verification.summary()}")
    say(
        f"Result      {found:,} finding(s), {tally.mendable:,} of which --repair can mend"
        if found
        else "Result      all is well"
    )
    if config.repair:
        for line in repair(verification, tally):
            say(f"Repair      {line}")
        found -= tally.mendable
    return 1 if found else 0


if __name__ == "__main__":
    run_job(main)
