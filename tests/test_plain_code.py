"""The code has no idioms that a reader would have to decode, and no docstring that begins like a question."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CODE = [path for folder in ("models", "pipeline", "jobs") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
QUESTION = re.compile(r"(What|Which|Whether|How|When|Where|Who|Why)\b")


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def nodes(paths: list[Path]) -> Iterator[tuple[str, ast.AST]]:
    """Yield (file and line, node) of all nodes of these modules."""
    for path in paths:
        for node in nodes_of(path):
            yield f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}", node


def is_truth_value(node: ast.AST) -> bool:
    """Return True for an expression that is always a bool: `and` and `or` return one of their operands."""
    return isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def test_no_arithmetic_is_done_on_truth_values() -> None:
    found = [
        where
        for where, node in nodes(CODE)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow)
        if is_truth_value(node.left) or is_truth_value(node.right)
    ]
    assert found == []


def test_no_text_is_multiplied_by_a_condition() -> None:
    """A line of dashes is multiplied by its width, which is a number."""
    conditions = re.compile(r"(is|has|may|can)_\w+$")
    found = [
        where
        for where, node in nodes(CODE)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        for one, other in ((node.left, node.right), (node.right, node.left))
        if isinstance(one, ast.JoinedStr | ast.List) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        if conditions.search(ast.unparse(other).removesuffix("()"))
    ]
    assert found == []


def test_no_comprehension_assigns_a_name_or_is_run_for_its_side_effects() -> None:
    found = []
    for where, node in nodes(CODE):
        if isinstance(node, ast.comprehension) and isinstance(node.iter, ast.List | ast.Tuple):
            found += [where + ast.unparse(node.iter)] if len(node.iter.elts) == 1 else []
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.ListComp | ast.SetComp | ast.DictComp):
            found.append(where)
    assert found == []


@pytest.mark.parametrize("folder", ["models", "pipeline", "jobs", "benchmarks", "scripts", "tests"])
def test_no_docstring_begins_like_a_question(folder: str) -> None:
    found = [
        where
        for where, node in nodes(sorted((REPOSITORY / folder).rglob("*.py")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if QUESTION.match(ast.get_docstring(node) or "")
    ]
    assert found == []
