"""Queries of a report on an output's tables: on all parts, or on a random sample of very many."""

import math
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.config.bands import Rendering
from pipeline.errors import UserError
from pipeline.output.parts import PART
from pipeline.query import engine

Row = dict[str, Any]

PRESENT = 0.01  # minimum fraction of an image for a class to count as present in co-occurrence
PAIRED_IMAGES = 200_000  # maximum sample for co-occurrence; its percentages are accurate to about 0.3%
COMMON_SIZES = 8
STORAGE_ERRORS = 40
CONFIDENCE_BINS = 50
CLASS_CONFIDENCE_BINS = 20
BINS_PER_DOUBLING = 4  # of the logarithmic histograms


@dataclass(frozen=True)
class Totals:
    """Totals over the parts that are read."""

    images: int
    labelled: int
    pixels: int  # with a class
    mean_confidence: float | None  # mean over the images
    low_confidence: float | None  # fraction of an image's pixels, mean over the images
    num_sizes: int

    @property
    def failed(self) -> int:
        return self.images - self.labelled


class OutputTables:
    """DuckDB connection to an output's parts, or to a random sample of `max_parts` if there are more.

    Uses only completed parts; statistics whose masks are not written yet are ignored.

    Raises: UserError if the output is missing, empty, not a segmentation output, or if its schema has no such columns.
    """

    def __init__(self, output: str, max_parts: int) -> None:
        self.output = output
        self.connection = engine.connect(output)
        self.warnings = engine.warnings(output)
        sizes = _parts(output, "masks")
        whole = sorted(sizes.keys() & _parts(output, "class_stats").keys())
        if not whole:
            raise UserError(f"output {output}: has no completed part yet; try again when a run has written one")
        self.num_parts = len(whole)
        # Names end with a hash of the content, so the lowest hashes are a random but deterministic sample.
        self.names = sorted(whole, key=lambda name: name[-len("0123456789abcdef.parquet") :])[:max_parts]
        self.share = sum(sizes[name] for name in self.names) / sum(sizes[name] for name in whole)
        for table in ("masks", "class_stats"):
            self._replace_view(table)
        self.totals = Totals(
            **self.rows(
                """SELECT count(*) AS images, count(*) FILTER (status = 'ok') AS labelled,
                    coalesce((SELECT sum(pixel_count) FROM class_stats), 0)::BIGINT AS pixels,
                    avg(mean_confidence) AS mean_confidence, avg(low_confidence_fraction) AS low_confidence,
                    count(DISTINCT (width, height)) FILTER (status = 'ok') AS num_sizes
                FROM masks"""
            )[0]
        )

    @property
    def is_sampled(self) -> bool:
        return len(self.names) < self.num_parts

    def estimated(self, count: int) -> int:
        """Extrapolate a count to the whole output, rounded to three digits if only a sample is read."""
        if not self.is_sampled or not count:
            return count
        whole = count / self.share
        digits = 2 - math.floor(math.log10(whole))
        return round(round(whole, digits))

    def rows(self, sql: str) -> list[Row]:
        """Return the rows of a SELECT. Raises UserError."""
        relation = engine.run(self.connection, sql)
        assert relation is not None
        return relation.to_arrow_table().to_pylist()

    def rows_of(self, image_ids: list[bytes]) -> list[Row]:
        """Return the masks rows of labeled images, without the mask, but with file name and row number of the part."""
        self.connection.register("chosen", pa.table({"image_id": pa.array(image_ids, pa.binary())}))
        return self.rows(
            """SELECT image_id, image_uri, etag, size_bytes, width, height, mean_confidence,
                low_confidence_fraction, filename, file_row_number AS row
            FROM masks WHERE status = 'ok' AND image_id IN (SELECT image_id FROM chosen)"""
        )

    def classes_of(self, image_ids: list[bytes]) -> list[Row]:
        """Return the classes in images, largest area first."""
        self.connection.register("chosen", pa.table({"image_id": pa.array(image_ids, pa.binary())}))
        return self.rows(
            """SELECT image_id, class_id, pixel_fraction, mean_confidence
            FROM class_stats WHERE image_id IN (SELECT image_id FROM chosen)
            ORDER BY pixel_fraction DESC, class_id"""
        )

    def classes(self) -> list[Row]:
        """Return id, name, color (red, green, blue), pixels, images and confidence of each class, most pixels first."""
        found = self.rows(
            """SELECT class_id AS id, classes.class_name AS name, red, green, blue,
                coalesce(pixels, 0)::BIGINT AS pixels, coalesce(images, 0) AS images, confidence
            FROM classes LEFT JOIN (
                SELECT class_id, sum(pixel_count) AS pixels, count(*) AS images,
                    sum(pixel_count * mean_confidence) / sum(pixel_count) AS confidence
                FROM class_stats GROUP BY class_id
            ) USING (class_id)
            ORDER BY pixels DESC, id"""
        )
        for row in found:
            row["color"] = tuple(row.pop(name) for name in ("red", "green", "blue"))
        return found

    def failures(self) -> list[Row]:
        """Return stage, kind, images, example and its message of the most frequent kinds of failures."""
        return self.rows(
            f"""SELECT error_stage AS stage, error_type AS kind, count(*) AS images,
                min(image_uri) AS example, arg_min(error_message, image_uri) AS message
            FROM masks WHERE status = 'error' GROUP BY ALL ORDER BY images DESC, kind LIMIT {STORAGE_ERRORS}"""
        )

    def confidences(self) -> list[Row]:
        """Return a histogram of the images' mean confidence: bin (of CONFIDENCE_BINS from 0 to 1) and images."""
        return self.rows(
            f"""SELECT least(floor(mean_confidence * {CONFIDENCE_BINS}), {CONFIDENCE_BINS - 1})::INTEGER AS bin,
                count(*) AS images
            FROM masks WHERE mean_confidence BETWEEN 0 AND 1 GROUP BY bin ORDER BY bin"""
        )

    def class_confidences(self, class_ids: list[int]) -> list[Row]:
        """Return a histogram per class of its mean confidence in an image.

        Rows have class_id, bin (of CLASS_CONFIDENCE_BINS) and images.
        """
        last = CLASS_CONFIDENCE_BINS - 1
        return self.rows(
            f"""SELECT class_id, least(floor(mean_confidence * {CLASS_CONFIDENCE_BINS}), {last})::INTEGER AS bin,
                count(*) AS images
            FROM class_stats WHERE mean_confidence BETWEEN 0 AND 1 AND class_id IN ({_list(class_ids)})
            GROUP BY ALL"""
        )

    def pairs(self, class_ids: list[int]) -> list[Row]:
        """Return the co-occurrence of classes, from a sample of at most about PAIRED_IMAGES images.

        Rows have class_id, other, and images in which both cover at least PRESENT. A class paired with itself counts
        all images that contain it.
        """
        among = ""
        if self.totals.labelled > PAIRED_IMAGES:
            # Image ids are hashes, so the lowest ones are a random sample.
            limit = int(2**64 * PAIRED_IMAGES / self.totals.labelled)
            among = f"AND image_id < unhex('{limit:016x}')"
        return self.rows(
            f"""WITH present AS (
                SELECT image_id, class_id FROM class_stats
                WHERE pixel_fraction >= {PRESENT} AND class_id IN ({_list(class_ids)}) {among}
            )
            SELECT a.class_id, b.class_id AS other, count(*) AS images
            FROM present a JOIN present b ON a.image_id = b.image_id GROUP BY ALL"""
        )

    def long_sides(self) -> list[Row]:
        """Return a histogram of the images' longer sides: bin (BINS_PER_DOUBLING per power of two) and images."""
        return self._doublings("greatest(width, height)")

    def seconds(self) -> list[Row]:
        """Return a histogram, with the same bins, of the seconds to decode and predict an image."""
        return self._doublings("greatest(seconds, 1e-4)")

    def sizes(self) -> list[Row]:
        """Return width, height and images of the most frequent sizes."""
        return self.rows(
            f"""SELECT width, height, count(*) AS images FROM masks WHERE status = 'ok'
            GROUP BY ALL ORDER BY images DESC, width, height LIMIT {COMMON_SIZES}"""
        )

    def runs(self) -> list[Row]:
        """Return the finished runs, latest first, with the columns of the view `runs`."""
        return self.rows("SELECT * FROM runs ORDER BY finished_at DESC, run_id")

    def rendering(self) -> Rendering:
        """Return the bands and the value range with which the last run decoded TIFFs."""
        return engine.rendering_of(engine.last_configuration(self.output))

    def _doublings(self, value: str) -> list[Row]:
        return self.rows(
            f"""SELECT floor({BINS_PER_DOUBLING} * log2({value}))::INTEGER AS bin, count(*) AS images
            FROM masks WHERE status = 'ok' AND {value} > 0 GROUP BY bin ORDER BY bin"""
        )

    def _replace_view(self, table: str) -> None:
        files = ", ".join(engine.files(self.output, f"{table}/{name}") for name in self.names)
        options = "hive_partitioning = false, filename = true, file_row_number = true"
        self.connection.execute(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM read_parquet([{files}], {options})")


def _parts(output: str, table: str) -> dict[str, int]:
    """Return the name -> size in bytes of the parts of a table."""
    found = storage.find(storage.join(output, table))
    return {name: info["size"] for uri, info in found.items() if PART.fullmatch(name := posixpath.basename(uri))}


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "NULL"
