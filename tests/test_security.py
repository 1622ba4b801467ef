"""Claims of SECURITY.md about the code as a whole, and that the tests which it names are there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCES = sorted(path for folder in ("models", "pipeline", "jobs") for path in (REPOSITORY / folder).rglob("*.py"))
# Between processes of one run alone, which Ray pickles for anyway.
WITHIN_A_RUN = {
    "pipeline/datasets/validation.py",
    "pipeline/evaluate/stages.py",
    "pipeline/train/batches.py",
    "pipeline/train/rare_classes.py",
}
UNPICKLERS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "torch.jit.load",
}
EVALUATORS = {"eval", "exec", "os.system", "marshal.loads"}


def calls(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call, by its dotted name, and its keywords' values as they are written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}


def all_calls() -> Iterator[tuple[str, str, dict[str, str]]]:
    for path in SOURCES:
        for name, keywords in calls(path.read_text()):
            yield path.relative_to(REPOSITORY).as_posix(), name, keywords


def test_nothing_unpickles_what_it_did_not_pickle_itself() -> None:
    assert {place for place, name, _ in all_calls() if name in UNPICKLERS} == WITHIN_A_RUN
    restricted = [keywords.get("weights_only") for _, name, keywords in all_calls() if name == "torch.load"]
    assert len(restricted) >= 2
    assert set(restricted) == {"True"}
    allowing = [name for _, name, keywords in all_calls() if keywords.get("allow_pickle", "False") != "False"]
    assert allowing == []


def imports(source: str) -> Iterator[str]:
    """The name of every module that is imported, and of what is imported from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# What turns files into Arrow tables, and with them values of any type that a library has registered.
ARROW_READERS = ("pyarrow.parquet", "pyarrow.dataset", "pyarrow.ipc", "pyarrow.feather", "pyarrow.orc")


def test_one_module_reads_arrow_tables_from_files() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for path in SOURCES
        for name in imports(path.read_text())
        if name.startswith(ARROW_READERS)
    }
    assert found == {"pipeline/storage/parquet_files.py"}
    by_name = {
        (place, name)
        for place, name, _ in all_calls()
        if re.match(r"(pa|pyarrow)\.(parquet|dataset|ipc|feather|orc)\.", name)
    }
    assert by_name == {("pipeline/storage/parquet_files.py", "pa.ipc.read_schema")}  # in which no type is made
    # A data source of our own, which reads no files.
    assert {name for _, name, _ in all_calls() if name.startswith("ray.data.read_")} == {"ray.data.read_datasource"}


def test_yaml_is_read_safely_everywhere() -> None:
    used = {name for _, name, _ in all_calls() if name.startswith("yaml.")}
    assert "yaml.safe_load" in used
    assert {name for name in used if "load" in name} == {"yaml.safe_load"}


def test_nothing_evaluates_text_or_passes_it_to_a_shell() -> None:
    assert [(place, name) for place, name, _ in all_calls() if name in EVALUATORS] == []
    assert [place for place, _, keywords in all_calls() if keywords.get("shell", "False") != "False"] == []


def test_whatever_is_installed_has_a_version_and_hashes() -> None:
    """uv compares them wherever the project is installed, those of what builds it, too."""
    pins = re.split(r"\n(?=\S)", (REPOSITORY / "constraints.txt").read_text().strip())
    assert len(pins) > 200
    assert [
        pin for pin in pins if not re.fullmatch(r"[\w.-]+==\S+( ; [^\\]+)?( \\\n +--hash=sha256:[0-9a-f]{64})+", pin)
    ] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    versions = {pin.split(" ")[0] for pin in pins}
    assert {*project["build-system"]["requires"]} <= versions
    assert any(one.startswith("uv==") for one in versions)


@pytest.mark.parametrize("source", ["import pickle\npickle.loads(x)", "torch.load(x)", "eval(x)"])
def test_calls_are_seen(source: str) -> None:
    assert next(iter(calls(source)))[0] in {"pickle.loads", "torch.load", "eval"}


def test_the_tests_of_every_claim_are_there() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", (REPOSITORY / "SECURITY.md").read_text())
    assert len(named) > 15
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in Path(REPOSITORY, path).read_text()] == []
