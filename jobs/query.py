"""Query an output: `python jobs/query.py OUTPUT class-areas`, or SQL instead of the name, or nothing for a prompt."""

import argparse
import sys
from typing import get_args

from pipeline.console import log, run_job
from pipeline.errors import UserError
from pipeline.query.results import Format


def main(argv: list[str], prog: str = "jobs/query.py") -> None:
    arguments = _parser(prog).parse_args(argv)
    from pipeline.query import engine, results, shell
    from pipeline.query.named_queries import NamedQuery, named_query

    if arguments.list:
        print("\n".join(shell.list_of_queries()))
        return
    if arguments.output is None:
        raise UserError(
            "OUTPUT is missing; give the folder or URI that jobs/segment_bucket.py wrote, or --list to list the "
            "named queries"
        )
    named: NamedQuery | None = None
    values: dict[str, str] = {}
    if arguments.question is not None and len(arguments.question.split()) == 1:
        named = named_query(arguments.question)
        values = named.values(arguments.values)
    elif arguments.values:
        raise UserError(f"{arguments.values[0]!r}: SQL takes no values; write them into the statement")
    sql = named.sql if named else arguments.question
    if arguments.explain:
        if sql is None:
            raise UserError("--explain: needs a named query (see --list) or a SQL statement")
        for name, value in values.items():
            print(f"-- ${name} is '{value}'")
        print(sql)
        return
    kind: Format = arguments.format or _format_of(arguments.to)
    if kind == "table" and arguments.to:
        raise UserError(f"--to {arguments.to}: format table is for terminals only; add --format csv, json or parquet")
    if kind == "parquet" and not arguments.to and sys.stdout.isatty():
        raise UserError("--format parquet: cannot print binary data to a terminal; add --to FILE")
    connection = engine.connect(arguments.output)
    for line in engine.warnings(arguments.output):
        log(f"note: {line}", sys.stderr)
    if sql is None:
        shell.shell(connection)
        return
    relation = engine.run(connection, sql, values)
    if relation is not None:
        results.write(connection, relation, kind, arguments.to)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Query an output with a named query or with SQL over the tables masks, class_stats, classes and "
        "runs. Without a query, start an interactive SQL prompt.",
    )
    parser.add_argument("output", nargs="?", help="folder or URI that jobs/segment_bucket.py wrote (its --output)")
    parser.add_argument(
        "question", nargs="?", metavar="NAME|SQL", help="named query (see --list) or a statement in DuckDB's SQL"
    )
    parser.add_argument(
        "values", nargs="*", metavar="VALUE", help="parameters of the named query, in order or as NAME=VALUE"
    )
    parser.add_argument("--list", action="store_true", help="list the named queries and their parameters")
    parser.add_argument("--explain", action="store_true", help="print the SQL without running it")
    parser.add_argument(
        "--format",
        choices=get_args(Format),
        help="format of the result (default: from the extension of --to, otherwise table)",
    )
    parser.add_argument("--to", metavar="FILE", help="file or URI to write the result to (default: standard output)")
    return parser


def _format_of(target: str | None) -> Format:
    """Return the format that a file's extension names; table if none does."""
    return next((kind for kind in get_args(Format) if (target or "").lower().endswith(f".{kind}")), "table")


if __name__ == "__main__":
    run_job(main)
