"""Records of the runs and repairs of an output, compared with the rows that it has."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, NonNegativeInt, ValidationError

from pipeline import storage
from pipeline.verify.findings import OutputFinding


class Run(BaseModel):
    """Fields of runs/RUN_ID.json, the record of a run that ended."""

    run_id: str
    model_id: str
    finished_at: AwareDatetime
    images: NonNegativeInt  # in its input
    done_before: NonNegativeInt  # of these, completed before the run
    outcomes: dict[str, NonNegativeInt]  # 'ok' or error type -> images that the run labeled

    @property
    def num_with_row(self) -> int:
        """Return the number of images of the input that had a row when the run ended."""
        return self.done_before + sum(self.outcomes.values())


class Repair(BaseModel):
    """Content of repairs/TIME.json."""

    repaired_at: datetime
    deleted: list[str]  # names of parts
    images: NonNegativeInt  # lower bound of the images that have a row after the repair


class RunFiles:
    """Records of the runs and repairs of an output."""

    def __init__(self, output: str) -> None:
        self._runs: dict[str, Run] = {}
        self._findings: list[OutputFinding] = []
        for name, content in _contents(output, "runs"):
            try:
                self._runs[name] = Run.model_validate_json(content)
            except ValidationError as error:
                self._findings.append(OutputFinding("wrong run file", name, _first_problem(error)))
        self._repairs = []
        for name, content in _contents(output, "repairs"):
            try:
                self._repairs.append(Repair.model_validate_json(content))
            except ValidationError as error:
                self._findings.append(OutputFinding("wrong run file", name, _first_problem(error)))

    def check(self, outcomes: Counter[tuple[str, str]], model_id: str | None) -> Iterator[OutputFinding]:
        """Yield the findings in the records, and for runs that have more rows than their records account for.

        Fewer rows are correct: a later run may have replaced some.

        Args:
            outcomes: (run, 'ok' or error type) -> images with such a row.
        """
        yield from self._findings
        for name, run in self._runs.items():
            if posixpath.basename(name) != f"{run.run_id}.json":
                yield OutputFinding("wrong run file", name, f"belongs to run {run.run_id}")
            elif model_id is not None and run.model_id != model_id:
                yield OutputFinding(
                    "wrong run file", name, f"belongs to model {run.model_id}, but classes.parquet to {model_id}"
                )
            if run.num_with_row > run.images:
                message = f"counts {run.num_with_row:,} images with a row, but its input has {run.images:,}"
                yield OutputFinding("wrong counts", name, message)
            for outcome in sorted({outcome for other, outcome in outcomes if other == run.run_id}):
                there, counted = outcomes[run.run_id, outcome], run.outcomes.get(outcome, 0)
                if there > counted:
                    message = f"counts {counted:,} images as {outcome}, but the parts of that run have {there:,}"
                    yield OutputFinding("wrong counts", name, message)

    def check_number(self, num_images: int) -> Iterator[OutputFinding]:
        """Yield a finding if the output once held more images than now: runs replace rows, but never lose any.

        Records from before the latest repair do not count.
        """
        last = max(self._repairs, key=lambda repair: repair.repaired_at, default=None)
        since = {name: run for name, run in self._runs.items() if last is None or run.finished_at > last.repaired_at}
        if since:
            name, run = max(since.items(), key=lambda item: item[1].num_with_row)
            if run.num_with_row > num_images:
                message = f"{run.num_with_row:,} images had a row when the run ended, but {num_images:,} have one now"
                yield OutputFinding("lost images", name, message)


def write_repair(output: str, repaired_at: datetime, deleted: list[str], num_images: int) -> str:
    """Record a repair, and return the name of the file. Raises: UserError."""
    name = f"repairs/{repaired_at:%Y%m%dT%H%M%S%f}.json"
    record = Repair(repaired_at=repaired_at, deleted=deleted, images=num_images)
    storage.write_bytes(storage.join(output, name), record.model_dump_json(indent=1).encode())
    return name


def _contents(output: str, folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name, relative to the output, and the content of every record in a folder."""
    for uri in storage.find(storage.join(output, folder)):
        name = posixpath.basename(uri)
        if name.endswith(".json"):
            yield f"{folder}/{name}", storage.read_bytes(uri)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return ": ".join(part for part in (".".join(map(str, problem["loc"])), problem["msg"]) if part)
