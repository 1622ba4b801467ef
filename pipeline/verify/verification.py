"""Verification of an output from its files alone: every invariant, part by part.

Memory: the parts that are being read, and 16 bytes per image.
"""

import posixpath
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import lease, parts
from pipeline.output.id_set import IdSet
from pipeline.output.schema import CLASSES, SCHEMA_VERSION
from pipeline.verify.findings import SHOWN, OutputFinding
from pipeline.verify.part_checks import Reference
from pipeline.verify.part_reader import PartReport, Unusable, check_part, read_classes
from pipeline.verify.run_files import RunFiles

READERS = 8  # parts read at once; on object stores reading is mostly waiting


class Verification:
    """Verification of one output. The attributes are complete once all `findings` have been consumed.

    Args:
        deep: decode every mask, too.
        listed: LISTED tables of images that must have a row.
    """

    def __init__(self, output: str, deep: bool = False, listed: Iterable[pa.Table] = ()) -> None:
        self.output = output
        self.parts: set[str] = set()  # names of parts that have masks or class_stats
        self.damaged: dict[str, set[str]] = {}  # part -> kinds of findings about this part alone
        self.foreign_parts: list[str] = []  # Parquet files without the name of a part, relative to the output
        self.leftovers: list[str] = []  # half-written files, relative to the output
        self.num_images = 0
        self.num_sound_images = 0  # images with a row in an undamaged part
        self.outcomes: Counter[tuple[str, str]] = Counter()  # (run, 'ok' or error type) -> images
        self._deep, self._listed = deep, listed
        self._images = IdSet()

    def findings(self) -> Iterator[OutputFinding]:
        """Yield everything that is wrong. Raises: UserError if it is not an output of ours, or cannot be read."""
        files = {table: self._files(table) for table in ("masks", "class_stats")}
        reference, problems = self._reference(any(files.values()))
        yield from problems
        yield from self._leftovers()
        for table, found in files.items():
            yield from self._foreign(table, found)
        masks, class_stats = ({*filter(parts.PART.fullmatch, found)} for found in files.values())
        self.parts = {*masks, *class_stats}
        for name in sorted(class_stats - masks):
            yield self._of_part(
                name, OutputFinding("statistics without masks", f"class_stats/{name}", "the part was not committed")
            )
        for name in sorted(masks - class_stats):
            message = f"class_stats/{name} is missing"
            yield self._of_part(name, OutputFinding("masks without statistics", f"masks/{name}", message))
        whole = sorted(masks & class_stats)
        every_part_counted = len(whole) == len(self.parts)
        for report in self._reports(whole, reference):
            for finding in report.findings:
                yield self._of_part(report.name, finding)
            every_part_counted &= report.images is not None
            if report.images is not None:
                yield from self._counted(report)
        runs = RunFiles(self.output)
        yield from runs.check(self.outcomes, reference.model_id)
        if every_part_counted:
            yield from runs.check_number(self.num_images)
        for table in self._listed:
            yield from self._without_row(table)

    def summary(self) -> str:
        """Return a line that summarizes what was checked."""
        ok = sum(count for (_, outcome), count in self.outcomes.items() if outcome == "ok")
        masks = "every mask decoded" if self._deep else "masks not decoded (use --deep)"
        images = f"{self.num_images:,} images, {ok:,} ok and {self.num_images - ok:,} failed"
        return f"{self.output}: {len(self.parts):,} part(s), {images}; {masks}"

    def _files(self, table: str) -> list[str]:
        """Return the names of all files in a table's folder."""
        folder = storage.join(self.output, table)
        return [uri.removeprefix(folder + "/") for uri in storage.find(folder) if not uri.endswith("/")]

    def _leftovers(self) -> Iterator[OutputFinding]:
        filesystem, path = storage.open_filesystem(self.output)
        with storage.explained(self.output):
            beside = [posixpath.basename(name) for name in filesystem.ls(path, detail=False)]
        folders = [table for table in ("masks", "class_stats", "runs", "repairs", lease.FOLDER) if table in beside]
        found = [f"{table}/{name}" for table in folders for name in self._files(table)]
        for name in [*beside, *found]:
            if posixpath.basename(name).startswith(storage.PARTIAL):
                self.leftovers.append(name)
                yield OutputFinding("half-written file", name, "left by an interrupted run")

    def _reference(self, has_parts: bool) -> tuple[Reference, list[OutputFinding]]:
        """Read classes.parquet and check it. Raises: UserError if this is not an output of this program."""
        unknown = Reference(None, None)
        if not storage.exists(storage.join(self.output, "classes.parquet")):
            if not has_parts:
                raise _no_output(self.output)
            return unknown, [OutputFinding("no classes.parquet", "classes.parquet", "classes and model are unknown")]
        try:
            classes = read_classes(self.output)
        except Unusable as error:
            return unknown, [OutputFinding("wrong classes.parquet", "classes.parquet", error.finding.message)]
        about = {key.decode(): value.decode() for key, value in (classes.schema.metadata or {}).items()}
        version, model_id = (about.get(f"sceneparse.{key}") for key in ("schema_version", "model_id"))
        if version is None:
            raise UserError(
                f"output {self.output}: its classes.parquet was not written by segment_bucket.py; check the path"
            )
        if version != SCHEMA_VERSION:
            raise UserError(
                f"output {self.output}: has table schema version {version}, but this program uses {SCHEMA_VERSION}; "
                "verify it with the version that wrote it"
            )
        if not classes.schema.equals(CLASSES):
            return Reference(model_id, None), [_wrong_classes(f"has the columns {', '.join(classes.column_names)}")]
        if classes["class_id"].to_pylist() != list(range(len(classes))) or not len(classes):
            return Reference(model_id, None), [_wrong_classes("the class ids do not count up from 0")]
        problems = [_wrong_classes("the metadata names no model")] if model_id is None else []
        return Reference(model_id, classes["class_name"].to_pylist()), problems

    def _foreign(self, table: str, names: Iterable[str]) -> Iterator[OutputFinding]:
        for name in names:
            # Readers skip names that start with _ or a dot.
            is_hidden = any(part.startswith((".", "_")) for part in name.split("/"))
            if not parts.PART.fullmatch(name) and not is_hidden:
                if name.endswith(".parquet"):
                    self.foreign_parts.append(f"{table}/{name}")
                yield OutputFinding("not a part", f"{table}/{name}", "not the name of a part")

    def _reports(self, names: list[str], reference: Reference) -> Iterator[PartReport]:
        """Yield the report of each part, in order; a few threads read a little ahead."""
        waiting: deque[Future[PartReport]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            try:
                for name in names:
                    waiting.append(pool.submit(check_part, self.output, name, reference, self._deep))
                    if len(waiting) > READERS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _of_part(self, name: str, finding: OutputFinding) -> OutputFinding:
        self.damaged.setdefault(name, set()).add(finding.kind)
        return finding

    def _counted(self, report: PartReport) -> Iterator[OutputFinding]:
        """Count a part's images, and yield a finding for each that has a row in an earlier part."""
        images = report.images
        assert images is not None
        is_new = self._images.add(images["image_id"])
        new = images.filter(is_new)
        self.num_images += len(new)
        if report.name not in self.damaged:
            self.num_sound_images += len(new)
        for entry in new["outcome"].value_counts().to_pylist():
            self.outcomes[report.run_id, entry["values"]] += entry["counts"]
        if "image twice in a part" in self.damaged.get(report.name, ()):
            return
        yield from _first(
            "image in two parts",
            f"masks/{report.name}",
            images.filter(pc.invert(is_new))["image_uri"],
            "the image has another row in an earlier part",
        )

    def _without_row(self, listed: pa.Table) -> Iterator[OutputFinding]:
        missing = listed.filter(pc.invert(self._images.contains(listed["image_id"])))["image_uri"]
        yield from _first("no row", "masks", missing, "is in the input, but has no row")


def require_output(output: str) -> None:
    """Raise UserError if there is no output at this location."""
    tables = ("masks", "class_stats")
    has_parts = any(storage.find(storage.join(output, table)) for table in tables)
    if not has_parts and not storage.exists(storage.join(output, "classes.parquet")):
        raise _no_output(output)


def _no_output(output: str) -> UserError:
    return UserError(f"output {output}: no masks and no classes.parquet; pass the --output of a segment_bucket.py run")


def _wrong_classes(message: str) -> OutputFinding:
    return OutputFinding("wrong classes.parquet", "classes.parquet", message)


def _first(kind: str, file: str, uris: pa.ChunkedArray, message: str) -> Iterator[OutputFinding]:
    """Yield a finding for each of the first SHOWN images; the last of these counts the rest."""
    for place, uri in enumerate(uris[:SHOWN].to_pylist(), 1):
        yield OutputFinding(kind, file, message, uri, max(0, len(uris) - SHOWN) if place == SHOWN else 0)
