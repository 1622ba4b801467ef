"""Repair of an output according to the findings of its verification, so that the next run completes it."""

from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import parts
from pipeline.output.reconcile import remove_superseded
from pipeline.verify.findings import FINDING_KINDS, Tally
from pipeline.verify.run_files import write_repair
from pipeline.verify.verification import Verification

# Kinds of findings that a wrong classes.parquet or another version of this program would explain as well.
BY_COMPARISON = {"wrong columns", "another model", "unknown class", "wrong class name"}


def repair(verification: Verification, tally: Tally) -> Iterator[str]:
    """Repair what can be repaired, and yield a line for each repair. The caller must hold the lease.

    Never deletes a file that no run wrote. After an interruption, verify and repair the output again.

    Raises: UserError, before anything is changed, if deleting could be wrong.
    """
    output, damaged = verification.output, verification.damaged
    if verification.foreign_parts:
        foreign = storage.join(output, verification.foreign_parts[0])
        raise UserError(f"{foreign}: not a part, but runs would treat it as one; move it away")
    apart = [name for name, kinds in damaged.items() if kinds & BY_COMPARISON]
    if apart and len(apart) == len(verification.parts):
        raise UserError(
            f"output {output}: none of its {len(apart):,} part(s) matches classes.parquet and this version of the "
            "program, so one of these two is probably wrong. Restore classes.parquet or use the version that wrote the "
            "parts; if the parts are wrong, delete them yourself"
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
        yield f"recorded in {name}"
