"""jobs/query.py as it is used: named queries, SQL, files, a prompt, and what is wrong with an output."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.output.parquet import read_table, write_table
from pipeline.output.schema import CLASSES, table
from tests.in_process import run_script
from tests.small_output import write_small_output

Ask = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_small_output(folder)
    record = {"run_id": "run", "outcomes": {"ok": 2, "Empty": 1}, "seconds": 3.0, "images": 3, "done_before": 0}
    storage.write_bytes(f"{folder}/runs/run.json", json.dumps(record).encode())
    return folder


def ask(*arguments: object, typed: str = "", code: int = 0) -> subprocess.CompletedProcess:
    done = run_script("jobs/query.py", *map(str, arguments), typed=typed)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_a_named_query_prints_a_table_with_numbers_on_the_right(output: Path) -> None:
    done = ask(output, "least-confident", 1)
    assert "│ s3://photos/b.jpg │             0.4 │" in done.stdout
    assert done.stderr == ""


def test_a_table_that_does_not_go_to_a_terminal_is_whole(output: Path) -> None:
    done = ask(output, "SELECT i, repeat('x', 300) AS long FROM range(1000) t(i)")
    assert done.stdout.count("x" * 300) == 1000


def test_sql_and_its_errors_are_duckdbs_own(output: Path) -> None:
    assert "3" in ask(output, "SELECT count(*) FROM masks").stdout
    done = ask(output, "SELECT colour FROM classes", code=2)
    assert 'error: SQL: Binder Error: Referenced column "colour" not found' in done.stderr
    assert 'Candidate bindings: "blue", "class_id", "class_name"' in done.stderr


def test_results_go_to_files_in_the_format_that_their_names_say(output: Path, tmp_path: Path) -> None:
    sql = "SELECT image_uri, class_ids, error_type, image_id FROM masks ORDER BY image_uri"
    for name in ("found.csv", "found.json", "found.parquet"):
        done = ask(output, sql, "--to", tmp_path / name)
        assert done.stdout == f"3 rows written to {(tmp_path / name).as_uri()}\n"
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [row["image_uri"] for row in rows] == [f"s3://photos/{name}.jpg" for name in "abc"]
    assert rows[2]["error_type"] == "Empty"
    assert json.loads((tmp_path / "found.json").read_text())[0]["class_ids"] == json.loads(rows[0]["class_ids"])
    read = pq.read_table(tmp_path / "found.parquet")
    assert read["class_ids"].to_pylist()[0] == json.loads(rows[0]["class_ids"])


def test_a_statement_without_a_result_cannot_go_to_a_file(output: Path, tmp_path: Path) -> None:
    done = ask(output, "-- nothing to do", "--to", tmp_path / "kept.csv", code=2)
    assert "kept.csv: the statement has no result to write; remove --to" in done.stderr


@pytest.mark.slow
def test_results_go_to_a_bucket(output: Path, bucket: str) -> None:
    ask(output, "class-areas", "--to", f"{bucket}/areas.csv")
    assert storage.read_bytes(f"{bucket}/areas.csv").startswith(b"class,percent_of_pixels,")


def test_csv_and_json_go_to_the_next_program(output: Path) -> None:
    rows = list(csv.reader(io.StringIO(ask(output, "failures", "--format", "csv").stdout)))
    assert rows[1][:3] == ["decode", "Empty", "1"]
    (row,) = json.loads(ask(output, "failures", "--format", "json").stdout)
    assert row["message"] == "the file has no bytes"


def test_explain_prints_sql_that_can_be_run_elsewhere(output: Path) -> None:
    done = ask(output, "images-with", "boat", "percent=2", "--explain")
    assert "-- $class is 'boat'" in done.stdout
    assert "-- $percent is '2'" in done.stdout
    assert "FROM class_stats" in done.stdout


def test_the_list_says_what_each_query_takes() -> None:
    done = ask("--list")
    assert "images-with CLASS [WITHOUT] [PERCENT] [LIMIT]" in done.stdout
    assert "    LIMIT: maximum number of images, largest area of the class first (default 100)" in done.stdout


def test_a_prompt_answers_until_the_input_ends(output: Path) -> None:
    typed = "SELECT count(*) AS images\nFROM masks;\nleast-confident 1\n.tables\n.queries\n.sql runs\n.help\n"
    done = ask(output, typed=typed)
    for words in ("images", "s3://photos/b.jpg", "mean_entropy", "class-areas-by-prefix", "FULL JOIN", "Ctrl-D"):
        assert words in done.stdout, words


def test_a_mistake_at_the_prompt_does_not_end_it(output: Path) -> None:
    done = ask(
        output, typed="SELECT 1 +;\n;\n.nonsense\nimages-with\nSELECT 40 + 2 AS answer;\n.exit\nSELECT 'not read';\n"
    )
    for words in ("syntax error", ".nonsense: unknown command", "missing class"):
        assert words in done.stderr, words
    assert "42" in done.stdout
    assert "not read" not in done.stdout


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("class-aras", "query 'class-aras': neither a named query nor a SQL statement; did you mean class-areas"),
        ("class-aras;", "query 'class-aras': neither"),
        ("image-with boat", "did you mean images-with?"),
        ("images-with bot", "query images-with: class 'bot': not a class of the output; did you mean boat?"),
        ("images-with 'boat road'", "class 'boat road': not a class of the output; did you mean "),
        ("images-with 'boat", "No closing quotation; close the quotes around the value"),
        (".sql class-aras", "did you mean class-areas"),
    ],
)
def test_an_unknown_name_at_the_prompt_is_answered_at_once(output: Path, line: str, told: str) -> None:
    done = ask(output, typed=f"{line}\nSELECT\n40 + 2 AS answer;\n")
    assert told in done.stderr
    assert "42" in done.stdout, "the next statement is read on its own"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["class-aras"], "did you mean class-areas"),
        (["images-with", "bot"], "query images-with: class 'bot': not a class of the output; did you mean boat?"),
        (["SELECT 1", "2"], "SQL takes no values"),
        (["--explain"], "--explain: needs a named query"),
        (["failures", "--to", "found.txt"], "found.txt: format table is for terminals only; add --format"),
    ],
)
def test_a_wrong_command_says_what_to_do(output: Path, arguments: list[str], told: str) -> None:
    assert told in ask(output, *arguments, code=2).stderr


def test_without_an_output_it_says_what_is_missing() -> None:
    assert "OUTPUT is missing" in ask(code=2).stderr


# Outputs


def test_an_output_without_anything_says_what_to_give(tmp_path: Path) -> None:
    done = ask(tmp_path, "failures", code=2)
    assert (
        f"output {tmp_path.as_uri()}: has no masks/*.parquet; use the --output of a jobs/segment_bucket.py run"
        in done.stderr
    )


def test_an_output_that_a_run_has_only_begun(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    for uri in storage.find(f"{tmp_path}/masks"):
        storage.remove(uri)
    assert "a run has started but not written a part yet" in ask(tmp_path, "failures", code=2).stderr


def test_an_output_whose_run_has_not_ended_is_answered_with_a_note(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    done = ask(tmp_path, "SELECT count(*) FROM masks")
    assert "3" in done.stdout
    assert "no run has finished yet; results cover the images labeled so far" in done.stderr


def test_an_output_of_an_older_schema_is_answered_with_a_note(output: Path, tmp_path: Path) -> None:
    write_small_output(tmp_path)
    classes = read_table(f"{tmp_path}/classes.parquet")
    pq.write_table(classes.replace_schema_metadata({"sceneparse.schema_version": "1"}), tmp_path / "classes.parquet")
    done = ask(tmp_path, "SELECT count(*) FROM masks")
    assert "has table schema version 1, but this Sceneparse uses" in done.stderr
    assert "3" in done.stdout


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    for name in ("masks/a.parquet", "class_stats/a.parquet", "classes.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    assert "its classes.parquet was not written by segment_bucket.py" in ask(tmp_path, "SELECT 1", code=2).stderr


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    (part,) = (tmp_path / "masks").iterdir()
    part.write_bytes(part.read_bytes()[:-100])
    done = ask(tmp_path, "failures", code=2)
    assert part.name in done.stderr
    assert "jobs/verify.py" in done.stderr


def test_a_damaged_record_of_a_run_is_named(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    storage.write_bytes(f"{tmp_path}/runs/run.json", b"{")
    done = ask(tmp_path, "failures", code=2)
    assert "runs/run.json: not a valid record of a run" in done.stderr
    assert "jobs/verify.py" in done.stderr


def test_a_thousand_classes(tmp_path: Path) -> None:
    write_small_output(tmp_path)
    rows = [{"class_id": k, "class_name": f"class {k}", "red": 0, "green": 0, "blue": 0} for k in range(1000)]
    schema = CLASSES.with_metadata({**CLASSES.metadata, "sceneparse.model_id": "model"})
    write_table(f"{tmp_path}/classes.parquet", table(rows, schema))
    assert "1000" in ask(tmp_path, "SELECT count(*) FROM classes").stdout
