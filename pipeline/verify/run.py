"""Verification of an output, and its repair."""

from contextlib import nullcontext

from pipeline.config.jobs import VerifyConfig
from pipeline.console import log
from pipeline.inputs import list_images
from pipeline.output.lease import hold
from pipeline.verify.findings import Tally
from pipeline.verify.repair import repair
from pipeline.verify.verification import Verification, require_output


def verify(config: VerifyConfig) -> int:
    """Verify an output, repair it if the configuration says so, and print findings and repairs.

    Returns: number of problems left.

    Raises: UserError if it is not an output of ours, or cannot be read or, for a repair, is in use.
    """
    if config.repair:
        require_output(config.output)
    verification = Verification(config.output, config.deep, list_images(config) if config.has_inputs else ())
    with hold(verification.output) if config.repair else nullcontext():
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
        if not config.repair:
            return found
        for line in repair(verification, tally):
            log(f"Repair      {line}")
        return found - tally.repairable
