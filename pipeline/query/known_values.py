"""Checks of the values given to a named query against the classes, runs and images of an output."""

from collections.abc import Callable

import duckdb

from pipeline.errors import UserError
from pipeline.query import engine
from pipeline.query.named_queries import Kind, NamedQuery, suggestion


def run_named(
    connection: duckdb.DuckDBPyConnection, named: NamedQuery, values: dict[str, str]
) -> duckdb.DuckDBPyRelation | None:
    """Run a named query. Raises UserError, with close matches, for values that the output does not know.

    Without this check, a misspelled class gives an empty result, which reads as "no such images".
    """
    for parameter in named.parameters:
        value = values[parameter.name]
        problem = None if value == parameter.default else _PROBLEMS[parameter.kind](connection, value)
        if problem is not None:
            raise UserError(f"query {named.name}: {parameter.name} {value!r}: {problem}")
    return engine.run(connection, named.sql, values)


def _number_problem(connection: duckdb.DuckDBPyConnection, value: str) -> str | None:
    try:
        float(value)
    except ValueError:
        return "not a number; give one, such as 20"
    return None


def _class_problem(connection: duckdb.DuckDBPyConnection, value: str) -> str | None:
    names = _column(connection, "SELECT class_name FROM classes ORDER BY class_id")
    if value in names:
        return None
    return f"not a class of the output; {suggestion(value, names, 'its classes are')}"


def _prefix_problem(connection: duckdb.DuckDBPyConnection, value: str) -> str | None:
    if _column(connection, "SELECT image_uri FROM masks WHERE starts_with(image_uri, $value) LIMIT 1", value):
        return None
    return f"no image URI begins with it; {_example(connection)}"


def _run_or_prefix_problem(connection: duckdb.DuckDBPyConnection, value: str) -> str | None:
    runs = _column(connection, "SELECT DISTINCT run_id FROM class_stats ORDER BY run_id")
    if value in runs:
        return None
    # Not in masks: a prefix of failed images alone has no pixels to compare.
    if _column(connection, "SELECT image_uri FROM class_stats WHERE starts_with(image_uri, $value) LIMIT 1", value):
        return None
    hint = _example(connection) if "://" in value else suggestion(value, runs, "the runs are")
    return f"neither a run with labeled images nor the beginning of their URIs; {hint}"


_PROBLEMS: dict[Kind, Callable[[duckdb.DuckDBPyConnection, str], str | None]] = {
    "number": _number_problem,
    "class": _class_problem,
    "prefix": _prefix_problem,
    "run or prefix": _run_or_prefix_problem,
}


def _column(connection: duckdb.DuckDBPyConnection, sql: str, value: str | None = None) -> list[str]:
    """Return the first column of a result as a list. The statement refers to the value as $value."""
    relation = engine.run(connection, sql, None if value is None else {"value": value})
    assert relation is not None
    return [row[0] for row in relation.fetchall()]


def _example(connection: duckdb.DuckDBPyConnection) -> str:
    return f"the output has URIs such as {''.join(_column(connection, 'SELECT image_uri FROM masks LIMIT 1'))}"
