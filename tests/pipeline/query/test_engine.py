"""SQL over an output, for someone who has never heard of Ray."""

from pathlib import Path

import duckdb
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.codec import decode_label
from pipeline.query import engine
from tests.pipeline.samples import CLASS_IDS_HW, write_classes, write_part


def write_output(output: str) -> str:
    """Three images labelled by two runs, and a failure."""
    write_classes(output)
    write_part(output, ["a", "b"], failures=["broken"])
    write_part(output, ["c"], run_id="run2")
    return output


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_output(f"{tmp_path}/output")


@pytest.fixture(params=["path", "uri", "relative", "slash", pytest.param("swift", marks=pytest.mark.slow)])
def any_output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same output on each kind of storage, and in each spelling."""
    monkeypatch.chdir(tmp_path)
    if request.param == "swift":
        return write_output(f"{request.getfixturevalue('bucket')}/out put")
    output = write_output(f"{tmp_path}/out put")
    return {"path": output, "uri": f"file://{output}", "relative": "out put", "slash": output + "/"}[request.param]


def rows(output: str, sql: str) -> list[tuple[object, ...]]:
    relation = engine.run(engine.connect(output), sql)
    assert relation is not None
    return relation.fetchall()


def test_the_three_tables_can_be_queried_and_joined_wherever_they_lie(any_output: str) -> None:
    connection = engine.connect(any_output)

    def ask(sql: str) -> list[tuple[object, ...]]:
        relation = engine.run(connection, sql)
        assert relation is not None
        return relation.fetchall()

    assert ask("SELECT status, count(*) FROM masks GROUP BY status ORDER BY status") == [("error", 1), ("ok", 3)]
    assert ask("SELECT class_name, sum(pixel_count) FROM class_stats GROUP BY ALL ORDER BY 1") == [
        ("road", 6),
        ("sky", 18),
    ]
    assert ask(
        "SELECT m.image_uri, c.class_name, c.red FROM masks m JOIN class_stats s USING (image_id) "
        "JOIN classes c USING (class_id) WHERE s.pixel_fraction < 0.5 ORDER BY 1"
    ) == [("a", "road", 10), ("b", "road", 10), ("c", "road", 10)]


def test_a_mask_comes_out_of_sql_as_a_png(output: str) -> None:
    ((content,),) = rows(output, "SELECT mask.bytes FROM masks WHERE image_uri = 'a'")
    assert isinstance(content, bytes)
    assert decode_label(content).tolist() == CLASS_IDS_HW.tolist()


def test_lists_times_and_nulls_have_their_types(output: str) -> None:
    sql = "SELECT class_ids, year(segmented_at), error_type FROM masks WHERE image_uri IN ('a', 'broken')"
    assert rows(output, sql + " ORDER BY image_uri") == [([0, 1], 2024, None), (None, 2024, "Empty")]


def test_a_result_prints_as_a_table(output: str) -> None:
    printed = str(engine.run(engine.connect(output), "SELECT count(*) AS images FROM masks"))
    assert "images" in printed
    assert "4" in printed


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELCT 1", 'Parser Error: syntax error at or near "SELCT"'),
        ("SELECT colour FROM classes", 'Binder Error: Referenced column "colour" not found'),
        ("SELECT * FROM images", "Catalog Error: Table with name images does not exist"),
    ],
)
def test_a_wrong_statement_is_answered_in_duckdbs_words(output: str, sql: str, words: str) -> None:
    with pytest.raises(UserError, match="SQL: ") as caught:
        rows(output, sql)
    assert words in str(caught.value)


def test_an_error_that_only_the_data_bring_out_is_answered_in_duckdbs_words(output: str) -> None:
    """DuckDB computes a result when it is printed, which is after `run` has returned."""
    with pytest.raises(UserError, match=r"SQL: Conversion Error: Could not convert string '\w+' to INT32"):
        str(engine.run(engine.connect(output), "SELECT CAST(image_uri AS INTEGER) FROM masks"))


def test_a_statement_without_a_result_is_fine(output: str) -> None:
    connection = engine.connect(output)
    engine.run(connection, "CREATE TABLE kept AS SELECT * FROM masks WHERE status = 'ok'")
    relation = engine.run(connection, "SELECT count(*) FROM kept")
    assert relation is not None
    assert relation.fetchall() == [(3,)]


def test_new_parts_show_in_the_next_connection_and_half_written_ones_never(output: str) -> None:
    write_part(output, ["d"], run_id="run3")
    storage.write_bytes(f"{output}/masks/.partial-abc", b"PAR1 half")
    assert rows(output, "SELECT count(*) FROM masks") == [(5,)]


def test_statistics_of_a_part_that_is_not_committed_do_not_count(any_output: str) -> None:
    """A run writes them first; and a run that was killed between the two files leaves them."""
    before = rows(any_output, "SELECT sum(pixel_count), count(*) FROM class_stats")
    name = write_part(any_output, ["d"], run_id="run3")
    storage.remove(f"{any_output}/masks/{name}")
    assert rows(any_output, "SELECT sum(pixel_count), count(*) FROM class_stats") == before
    write_part(any_output, ["d"], run_id="run3")
    assert rows(any_output, "SELECT count(DISTINCT image_id) FROM class_stats") == [(4,)]


@pytest.mark.parametrize("name", ["it's", "a[1]", "a*b", "a?b", "100%", "ü猫"])
def test_an_outputs_name_may_hold_any_character(tmp_path: Path, name: str) -> None:
    output = write_output(f"{tmp_path}/{name}")
    assert rows(output, "SELECT count(*) FROM masks") == [(4,)]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    output = write_output(f"{tmp_path}/status=all/day=1")
    assert rows(output, "SELECT DISTINCT status FROM masks ORDER BY 1") == [("error",), ("ok",)]
    assert rows(output, "SELECT * FROM classes ORDER BY 1")[0] == (0, "sky", 0, 20, 30)


@pytest.mark.parametrize("missing", ["masks", "class_stats", "classes.parquet"])
def test_a_folder_that_is_no_output_is_named_with_what_it_lacks(output: str, missing: str) -> None:
    for uri in storage.find(f"{output}/{missing}"):
        storage.remove(uri)
    with pytest.raises(UserError, match=f"output {output}: has no {missing}") as caught:
        engine.connect(output)
    begun = missing == "masks"  # classes.parquet is a run's first sign
    assert ("a run has started" if begun else "use the --output of a jobs/segment_bucket.py run") in str(caught.value)


def test_an_output_that_does_not_exist_is_named(tmp_path: Path, bucket: str) -> None:
    for output in (f"{tmp_path}/nowhere", f"{bucket}/nowhere"):
        with pytest.raises(UserError, match=f"output {output}: has no masks"):
            engine.connect(output)
    with pytest.raises(UserError, match="bucket 'no-such-store' does not exist"):
        engine.connect("s3://no-such-store/output")


def test_the_connection_is_duckdbs_own(output: str) -> None:
    """So that anything DuckDB can do is at hand, such as a data frame."""
    connection = engine.connect(output)
    assert isinstance(connection, duckdb.DuckDBPyConnection)
    assert connection.execute("SELECT count(*) FROM class_stats").fetchone() == (6,)
