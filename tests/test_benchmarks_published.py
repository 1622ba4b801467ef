"""The tables of measurements in docs/ are those of the committed results, and `make bench` can make them anew."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import measure, published
from benchmarks.published import PUBLISHED
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("path", sorted(published.documents()), ids=lambda path: path.name)
def test_the_tables_are_those_of_the_results(path: Path) -> None:
    assert path.read_text() == published.documents()[path], "run python -m benchmarks.published"


def test_every_mark_has_its_table() -> None:
    marks = [
        (path.name, mark)
        for path in sorted((REPOSITORY / "docs").glob("*.md"))
        for mark in re.findall("<!-- benchmark: (.+?) -->", path.read_text())
    ]
    assert sorted(marks) == sorted((one.page, one.mark) for one in PUBLISHED)


def test_a_published_result_and_every_benchmark_with_results_is_run_by_make_bench() -> None:
    assert {one.result for one in PUBLISHED} <= set(measure.COMMANDS)
    scripts = {path.name for path in (REPOSITORY / "benchmarks").glob("*.py") if '"--json", help' in path.read_text()}
    assert {command.split()[0] for command in measure.COMMANDS.values()} == scripts


def test_benchmarks_are_chosen_by_how_their_names_begin() -> None:
    assert measure.chosen([]) == list(measure.COMMANDS)
    assert measure.chosen(["model", "plan"]) == ["model-cpu-inference", "model-cpu-training", "plan-cpu"]
    with pytest.raises(SystemExit, match="no result starts with modle; choose from model-cpu-inference, "):
        measure.chosen(["modle"])


SUCCEEDS = "import sys; open(sys.argv[-1], 'w').write('{}')"
FAILS = "import sys; open(sys.argv[-1], 'w').write('half of it'); sys.exit(1)"


def test_a_benchmark_that_fails_leaves_the_last_result_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    for name, program in (("a", FAILS), ("b", SUCCEEDS)):
        (tmp_path / "benchmarks" / f"{name}.py").write_text(program)
        (tmp_path / f"{name}-cpu.json").write_text("before")
    published_after = []
    monkeypatch.setattr(published, "ROOT", tmp_path)
    monkeypatch.setattr(published, "RESULTS", tmp_path)
    monkeypatch.setattr(published, "main", lambda: published_after.append((tmp_path / "b-cpu.json").read_text()))
    monkeypatch.setattr(measure, "MADE", tmp_path / "build")
    monkeypatch.setattr(measure, "COMMANDS", {"a-cpu": "a.py", "b-cpu": "b.py", "c-cpu": "c.py --data {camvid}"})
    monkeypatch.setattr(sys, "argv", ["measure.py"])
    with pytest.raises(SystemExit, match="failed: a-cpu; retry with make bench ONLY='a-cpu'"):
        measure.main()
    assert (tmp_path / "a-cpu.json").read_text() == "before"
    assert published_after == ["{}"]
