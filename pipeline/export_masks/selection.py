"""Selection of the images to export, by part, and of their file names. Uses a DuckDB database on disk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.export_masks.target_names import cleaned, common_folder
from pipeline.query import engine
from pipeline.storage.places import place_prefix

ROWS = 100_000  # per batch of names
SHOWN = 5  # collisions per error message
NAMED = pa.schema([("part", pa.string()), ("image_uri", pa.string()), ("name", pa.string())])
CHOSEN = NAMED.append(pa.field("fragment", pa.string()))  # input of a task


class SelectedPart(NamedTuple):
    """Part of an output with selected images."""

    name: str
    digest: str  # of its selected images and their names
    images: int

    @property
    def fragment(self) -> str:
        """Name of the part's fragment in the target, without its extension."""
        return f"{self.name.removesuffix('.parquet')}-{self.digest}"


class MaskSelection:
    """Selected images of an output, in a temporary database; use it as a context manager.

    All methods raise UserError.
    """

    def __init__(self, output: str, where: str | None) -> None:
        self.output = output
        self._where = where

    def __enter__(self) -> "MaskSelection":
        with self._explained():
            self._connection = engine.connect(self.output)
        self._folder = tempfile.TemporaryDirectory(prefix="sceneparse-")
        place = str(Path(self._folder.name)).replace("'", "''")
        self._connection.execute(f"SET temp_directory = '{place}'")
        self._connection.execute(f"ATTACH '{place}/chosen.duckdb' AS work")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def require_apart(self, target: str) -> None:
        """Raise UserError if an image of the output is inside the target, where the export could overwrite it."""
        found = self._ask(
            "SELECT image_uri FROM masks WHERE starts_with(image_uri, $place) LIMIT 1", place=place_prefix(target)
        )
        if found:
            raise UserError(
                f"target {target}: contains {found[0][0]}, an image of the output that the export could overwrite; "
                "choose a folder without such images"
            )

    def choose(self, target: str, strip: str | None, folder_before: str | None) -> str:
        """Select and name the images. Return the folder that is stripped from their names.

        Args:
            target: of the export.
            strip: the folder to strip; None: the longest folder that contains all images.
            folder_before: the folder that was stripped by an earlier export that this one resumes.
        """
        where = f"status = 'ok' AND (\n{self._where}\n)" if self._where else "status = 'ok'"
        engine.run(
            self._connection,
            f"CREATE TABLE work.images AS SELECT parse_filename(filename) AS part, image_uri "
            f"FROM (SELECT *, filename FROM {self._masks()}) AS masks WHERE {where}",
        )
        (count, first, last) = self._ask("SELECT count(*), min(image_uri), max(image_uri) FROM work.images")[0]
        if not count:
            labelled = self._ask("SELECT count(*) FROM masks WHERE status = 'ok'")[0][0]
            raise UserError(f"output {self.output}: {_nothing(labelled, self._where)}")
        folder = place_prefix(strip) if strip else common_folder(first, last)
        if not strip and folder_before is not None and folder != folder_before:
            if not folder.startswith(folder_before):
                raise UserError(
                    f"target {target}: its names are relative to {folder_before}, but now some images are not in it; "
                    "choose another target, and set --strip if more images will be added"
                )
            folder = folder_before
        self._require_inside(folder)
        self._name(folder)
        self._require_distinct()
        return folder

    def parts(self) -> list[SelectedPart]:
        """Return the parts with selected images, in name order."""
        rows = self._ask(
            "SELECT part, printf('%016x', bit_xor(md5_number_lower(image_uri || chr(10) || name))), count(*) "
            "FROM work.chosen GROUP BY part ORDER BY part"
        )
        return [SelectedPart(*row) for row in rows]

    def tables(self, parts: list[SelectedPart]) -> list[pa.Table]:
        """Return a table of CHOSEN images for each of the parts."""
        found = self._connection.sql(
            "SELECT part, image_uri, name FROM work.chosen WHERE part IN (SELECT unnest($parts)) ORDER BY part",
            params={"parts": [part.name for part in parts]},
        ).to_arrow_table()
        ends = accumulate(part.images for part in parts)
        return [
            found.slice(end - part.images, part.images)
            .append_column("fragment", pa.array([part.fragment] * part.images))
            .cast(CHOSEN)
            .combine_chunks()
            for part, end in zip(parts, ends, strict=True)
        ]

    def model_ids(self) -> list[str]:
        """Return the models that the images were labeled with."""
        rows = self._ask("SELECT DISTINCT model_id FROM masks WHERE status = 'ok' ORDER BY ALL")
        return [model_id for (model_id,) in rows]

    def _masks(self) -> str:
        """Return SQL that reads the files of the view `masks` directly, because a view does not expose file names."""
        source = engine.files(self.output, engine.VIEWS["masks"])
        return f"read_parquet({source}, hive_partitioning = false, filename = true)"

    def _require_inside(self, folder: str) -> None:
        outside = self._ask(
            "SELECT image_uri FROM work.images WHERE NOT starts_with(image_uri, $folder) ORDER BY ALL LIMIT 1",
            folder=folder,
        )
        if outside:
            raise UserError(
                f"strip {folder}: {outside[0][0]} is outside of it; use a folder that contains all selected images, or "
                "select images with --where"
            )

    def _name(self, folder: str) -> None:
        """Fill work.chosen with names, batch by batch."""
        self._connection.execute("CREATE TABLE work.chosen (part VARCHAR, image_uri VARCHAR, name VARCHAR)")
        beside = self._connection.cursor()
        for batch in self._connection.sql("SELECT part, image_uri FROM work.images").to_arrow_reader(ROWS):
            uris = batch["image_uri"].cast(pa.string())
            columns = [batch["part"].cast(pa.string()), uris, cleaned(uris, folder)]
            beside.register("named", pa.Table.from_arrays(columns, schema=NAMED))
            beside.execute("INSERT INTO work.chosen SELECT * FROM named")
            beside.unregister("named")
        beside.close()

    def _require_distinct(self) -> None:
        found = self._ask(
            "SELECT name, min(image_uri), max(image_uri) FROM work.chosen GROUP BY name HAVING count(*) > 1 "
            "ORDER BY name LIMIT $shown",
            shown=SHOWN + 1,
        )
        if not found:
            return
        twice = next((first for _, first, last in found if first == last), None)
        if twice is not None:
            raise UserError(
                f"output {self.output}: {twice} has two rows; run python jobs/verify.py --repair to keep the newer one"
            )
        lines = [f"  {name}: {first} and {last}" for name, first, last in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append("  ...")
        raise UserError(
            "images that would be exported under the same name, because extensions are removed and special characters "
            "replaced; export some of them to another target with --where:\n" + "\n".join(lines)
        )

    def _ask(self, sql: str, **values: Any) -> list[tuple]:
        with self._explained():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn DuckDB errors into a UserError."""
        try:
            yield
        except duckdb.Error as error:
            raise UserError(f"output {self.output}: {error}\nrun python jobs/verify.py to check it") from error


def _nothing(labelled: int, where: str | None) -> str:
    if not labelled:
        return "has no labeled images; run python jobs/query.py OUTPUT failures to see why"
    return f"--where {where}: matches none of its {labelled:,} labeled images"
