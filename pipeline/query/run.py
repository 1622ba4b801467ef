"""Answer to one query of an output, or an SQL prompt."""

import sys
from dataclasses import dataclass
from typing import get_args

from pipeline.console import log
from pipeline.errors import UserError
from pipeline.query import engine, results, shell
from pipeline.query.known_values import run_named
from pipeline.query.named_queries import NamedQuery, named_query
from pipeline.query.results import Format


@dataclass(frozen=True)
class Query:
    """Query of an output, and the form of its result.

    Args:
        output: folder or URI of the output.
        text: name of a named query, or a SQL statement; None: start an interactive prompt.
        values: parameters of the named query, in order or as NAME=VALUE.
        format: None: from the extension of `to`, otherwise table.
        to: file or URI for the result; None: standard output.

    Raises: UserError if these do not fit together.
    """

    output: str
    text: str | None = None
    values: tuple[str, ...] = ()
    format: Format | None = None
    to: str | None = None

    def __post_init__(self) -> None:
        if self.values and not self._is_named:
            raise UserError(f"{self.values[0]!r}: SQL takes no values; write them into the statement")

    @property
    def _is_named(self) -> bool:
        return self.text is not None and len(self.text.split()) == 1

    def named(self) -> NamedQuery | None:
        """Return the named query; None for SQL and the prompt. Raises: UserError for an unknown name."""
        return named_query(self.text) if self.text is not None and self._is_named else None

    def result_format(self) -> Format:
        """Return the format of the result. Raises: UserError if it cannot go where it should."""
        target = (self.to or "").lower()
        of_target: Format = next((kind for kind in get_args(Format) if target.endswith(f".{kind}")), "table")
        kind = self.format or of_target
        if kind == "table" and self.to:
            raise UserError(f"--to {self.to}: format table is for terminals only; add --format csv, json or parquet")
        if kind == "parquet" and not self.to and sys.stdout.isatty():
            raise UserError("--format parquet: cannot print binary data to a terminal; add --to FILE")
        return kind


def explain(query: Query) -> None:
    """Print the SQL of a query without running it. Raises: UserError."""
    if query.text is None:
        raise UserError("--explain: needs a named query (see --list) or a SQL statement")
    named = query.named()
    if named is None:
        print(query.text)
        return
    for name, value in named.values(query.values).items():
        print(f"-- ${name} is '{value}'")
    print(named.sql)


def answer(query: Query) -> None:
    """Run a query and print or write its result; without a text, start a SQL prompt. Raises: UserError."""
    named = query.named()
    values = named.values(query.values) if named else {}
    kind = query.result_format()
    connection = engine.connect(query.output)
    for line in engine.warnings(query.output):
        log(f"note: {line}", sys.stderr)
    if query.text is None:
        shell.shell(connection)
        return
    relation = run_named(connection, named, values) if named else engine.run(connection, query.text)
    if relation is not None:
        results.write(connection, relation, kind, query.to)
    elif query.to is not None:
        raise UserError(f"--to {query.to}: the statement has no result to write; remove --to or add a SELECT")
