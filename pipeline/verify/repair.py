"""Mending an output by what its verification has found, so that the next run completes it."""

from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import parts
from pipeline.output.reconcile import remove_superseded
from pipeline.verify.findings import FINDING_KINDS, Tally
from pipeline.verify.run import Verification
from pipeline.verify.run_files import write_repair

# Findings that may as well come from a wrong classes.parquet or from another version of this program.
BY_COMPARISON = {"wrong columns", "another model", "unknown class", "wrong class name"}


def repair(verification: Verification, tally: Tally) -> Iterator[str]:
    """Mend what can be mended; yields a line for each thing done. Whoever calls it holds the lease.

    What no run wrote is never deleted. Interrupted, it can simply be run again, after another verification.

    Raises: UserError, before anything is done, where deleting could be wrong.
    """
    output, damaged = verification.output, verification.damaged
    foreign = [finding.file for finding in tally.examples.get("not a part", []) if finding.file.endswith(".parquet")]
    if foreign:
        raise UserError(f"{storage.join(output, foreign[0])}: is not a part, but would be taken for one; move it away")
    apart = [name for name, kinds in damaged.items() if kinds & BY_COMPARISON]
    if apart and len(apart) == len(verification.parts):
        raise UserError(
            f"output {output}: not one of its {len(apart):,} part(s) goes with classes.parquet and this version of the "
            "program, so these may be what is wrong; put them right, or delete the parts yourself"
        )
    deleted = []
    for name in verification.leftovers:
        storage.remove(storage.join(output, name))
        yield f"deleted {name}"
    for name, kinds in sorted(damaged.items()):
        parts.remove_part(output, name)
        deleted.append(name)
        yield f"deleted part {name}: {', '.join(sorted(kinds, key=list(FINDING_KINDS).index))}"
    if tally.totals["image in two parts"] and verification.parts - damaged.keys():
        yield from remove_superseded(output)
    if deleted or tally.totals["lost images"]:
        name = write_repair(output, datetime.now(UTC), deleted, verification.num_sound_images)
        yield f"noted in {name}"
