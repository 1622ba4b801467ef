"""Bound on the parameters of a function: values that travel together are a frozen dataclass."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAX_PARAMETERS = 6


@pytest.mark.parametrize("folder", ["models", "pipeline", "jobs"])
def test_no_function_takes_more_than_six_parameters(folder: str) -> None:
    found = {
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}": names
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if len(names := parameters(node)) > MAX_PARAMETERS
    }
    assert found == {}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of the parameters but for the object or the class itself."""
    taken = function.args
    names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names
