"""Interactive SQL prompt for an output."""

import re
import shlex
import sys
from contextlib import suppress

import duckdb

from pipeline.errors import UserError
from pipeline.query import engine, results
from pipeline.query.known_values import run_named
from pipeline.query.named_queries import named_queries, named_query

HELP = """\
SELECT ... ;       a DuckDB SQL statement, over one or more lines, ending with a semicolon
NAME VALUES ...    a named query, as on the command line; quote values with spaces
.queries           list the named queries         .sql NAME    show the SQL of one
.tables            list tables and their columns  .help        show this help
.exit              exit (or press Ctrl-D)"""


def shell(connection: duckdb.DuckDBPyConnection) -> None:
    """Read and run statements until the end of the input. Print errors and continue."""
    _remember_lines()
    print("Tables: masks, class_stats, classes, runs. End each statement with a semicolon. Type .help for help.")
    statement = ""
    while True:
        try:
            line = input("    -> " if statement else "sql> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            statement = ""
            print()
            continue
        if not statement and line.strip() in (".exit", ".quit", "exit", "quit"):
            return
        statement = f"{statement}\n{line}".strip()
        if not statement or not (_is_whole(statement)):
            continue
        try:
            answer(connection, statement)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
        statement = ""


def answer(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Answer one statement, command or named query. Raises UserError."""
    word, *rest = statement.rstrip(";").split() or [""]
    if word == ".help":
        print(HELP)
    elif word == ".queries":
        print("\n".join(list_of_queries()))
    elif word == ".sql" and len(rest) == 1:
        print(named_query(rest[0]).sql)
    elif word == ".tables":
        columns = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
        _show(engine.run(connection, columns))
    elif word.startswith("."):
        raise UserError(f"{statement}: unknown command; type .help for a list")
    elif _is_name(word):
        named = named_query(word)
        _show(run_named(connection, named, named.values(_values(statement))))
    else:
        _show(engine.run(connection, statement))


def list_of_queries() -> list[str]:
    """Return the lines that describe each named query and its parameters."""
    lines = []
    for named in named_queries().values():
        lines += [named.usage, f"    {named.title}."]
        for parameter in named.parameters:
            default = f" (default {parameter.default})" if parameter.default else ""
            lines.append(f"    {parameter.name.upper()}: {parameter.description}{default}")
    return lines


def _is_whole(statement: str) -> bool:
    if statement.endswith(";"):
        return True
    return "\n" not in statement and (statement.startswith(".") or _is_name(statement.split()[0]))


def _is_name(word: str) -> bool:
    """Return whether the first word of a statement names a query, even misspelled: SQL begins with a keyword."""
    tokens = [kind for _, kind in duckdb.tokenize(word)]
    return re.fullmatch(r"[A-Za-z]\w*(-\w+)*", word) is not None and tokens != [duckdb.token_type.keyword]


def _values(statement: str) -> list[str]:
    """Return the words after the first one, of which some may be in quotes. Raises UserError."""
    try:
        return shlex.split(statement.rstrip(";"))[1:]
    except ValueError as error:
        raise UserError(f"{statement}: {error}; close the quotes around the value") from None


def _show(relation: duckdb.DuckDBPyRelation | None) -> None:
    if relation is not None:
        results.show(relation)


def _remember_lines() -> None:
    with suppress(ImportError):  # not available on Windows
        import readline  # noqa: F401  # gives input() its history and editing
