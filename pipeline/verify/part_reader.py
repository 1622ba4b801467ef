"""Reader of parts for verification: reads only what is needed, and separates damage from storage failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output.schema import CLASS_STATS, MASKS
from pipeline.storage.parquet_files import ParquetFile, open_parquet
from pipeline.verify.findings import OutputFinding
from pipeline.verify.mask_checks import check_mask
from pipeline.verify.part_checks import Reference, Statistics, check_masks, check_name, schema_problem

# All columns except the PNGs, which are most of an output's bytes and are only read to decode them.
LIGHT_COLUMNS = ["mask.path" if name == "mask" else name for name in MASKS.names]
MASKS_AT_ONCE = 32  # PNGs in memory at a time


@dataclass
class PartReport:
    """Images of one part, and the findings about it."""

    name: str
    findings: list[OutputFinding] = field(default_factory=list)
    images: pa.Table | None = None  # image_id, image_uri, outcome ('ok' or error type); None if unknown
    run_id: str = ""


class Unusable(Exception):
    """Error for a file that cannot be checked; `finding` gives the reason."""

    def __init__(self, finding: OutputFinding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def check_part(output: str, name: str, reference: Reference, deep: bool) -> PartReport:
    """Check one part by itself; if `deep`, decode its masks, too. Raises: UserError."""
    report = PartReport(name)
    masks_name, class_stats_name = f"masks/{name}", f"class_stats/{name}"
    try:
        with _opened(output, masks_name) as file:
            masks = _read(file, masks_name, MASKS, LIGHT_COLUMNS)
            with _opened(output, class_stats_name) as beside:
                class_stats = _read(beside, class_stats_name, CLASS_STATS)
            outcome = pc.if_else(pc.equal(masks["status"], "ok"), "ok", pc.fill_null(masks["error_type"], "unknown"))
            report.images = masks.select(["image_id", "image_uri"]).append_column("outcome", outcome)
            if not len(masks):
                raise Unusable(OutputFinding("empty part", masks_name, "has no rows"))
            report.run_id = masks["run_id"][0].as_py()
            report.findings += check_masks(masks_name, masks, reference)
            statistics = Statistics(class_stats_name, class_stats, masks_name, masks)
            report.findings += statistics.check(reference)
            if deep:
                report.findings += _check_contents(masks_name, file, masks, statistics, reference)
            else:
                report.findings += _check_number(masks_name, file, masks)
            if not report.findings:
                report.findings += check_name(masks_name, masks)
    except Unusable as error:
        report.findings.append(error.finding)
    return report


def read_classes(output: str) -> pa.Table:
    """Read classes.parquet, whatever its columns are. Raises: UserError; Unusable if it is not a whole Parquet file."""
    with _opened(output, "classes.parquet") as file:
        return file.read()


def _read(file: ParquetFile, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    problem = schema_problem(file.schema_arrow, schema)
    if problem:
        raise Unusable(OutputFinding("wrong columns", name, problem))
    table = file.read(columns)
    table.validate(full=True)  # finds text that is not UTF-8, for example
    return table.select(schema.names)


def _check_number(name: str, file: ParquetFile, masks: pa.Table) -> Iterator[OutputFinding]:
    """Compare the number of masks, from the Parquet statistics, with the number of ok rows."""
    there = 0
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for column in map(row_group.column, range(row_group.num_columns)):
            if column.path_in_schema == "mask.bytes":
                if column.statistics is None or not column.statistics.has_null_count:
                    return
                there += column.num_values - column.statistics.null_count
    wanted = pc.sum(pc.equal(masks["status"], "ok")).as_py()
    if there != wanted:
        yield OutputFinding("no mask", name, f"{wanted} rows have status 'ok', but {there} rows have mask.bytes")


def _check_contents(
    name: str, file: ParquetFile, masks: pa.Table, statistics: Statistics, reference: Reference
) -> Iterator[OutputFinding]:
    rows = masks.select(["image_uri", "status", "width", "height"]).to_pylist()
    num_classes = len(reference.class_names) if reference.class_names is not None else None
    batches = file.iter_batches(MASKS_AT_ONCE, columns=["mask.bytes"])
    contents = (content.as_py() for batch in batches for content in pc.struct_field(batch.column(0), "bytes"))
    for n, (row, content) in enumerate(zip(rows, contents, strict=True)):
        if row["status"] == "ok":
            for kind, message in check_mask(content, row["width"], row["height"], statistics.of_image(n), num_classes):
                yield OutputFinding(kind, name, message, row["image_uri"])


@contextmanager
def _opened(output: str, name: str) -> Iterator[ParquetFile]:
    """Open a Parquet file of an output. Raises: UserError; Unusable if the file turns out to be damaged."""
    uri = storage.join(output, name)
    source = storage.open_file(uri)
    try:
        with source:
            yield open_parquet(source, pre_buffer=True)
    except MemoryError as error:
        raise UserError(f"{uri}: not enough memory to read it: {error}; verify on a larger machine") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if source.failure is not None:
            with storage.explained(uri):
                raise source.failure from None
        raise Unusable(OutputFinding("unreadable part", name, f"the file is damaged or truncated: {error}")) from error
