"""Ask an output: `python jobs/query.py OUTPUT class-areas`, or SQL in place of the name, or nothing for a prompt."""

import argparse
import sys
from typing import get_args

from pipeline.console import log, run_job
from pipeline.errors import UserError
from pipeline.query.results import Format


def main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    from pipeline.query import engine, results, shell
    from pipeline.query.named_queries import NamedQuery, named_query

    if arguments.list:
        print("\n".join(shell.list_of_queries()))
        return
    if arguments.output is None:
        raise UserError(
            "which output? give the folder or URI that jobs/segment_bucket.py wrote, or --list for the queries"
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
            raise UserError("--explain: of which query?")
        for name, value in values.items():
            print(f"-- ${name} is '{value}'")
        print(sql)
        return
    kind: Format = arguments.format or _format_of(arguments.to)
    if kind == "table" and arguments.to:
        raise UserError(f"--to {arguments.to}: a table is for the eye; add --format csv, json or parquet")
    if kind == "parquet" and not arguments.to and sys.stdout.isatty():
        raise UserError("--format parquet: not on a terminal; add --to FILE")
    connection = engine.connect(arguments.output)
    for line in engine.warnings(arguments.output):
        log(f"note: {line}", sys.stderr)
    if sql is None:
        shell.shell(connection)
        return
    relation = engine.run(connection, sql, values)
    if relation is not None:
        results.write(connection, relation, kind, arguments.to)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/query.py",
        description="Ask an output: a named query or SQL over masks, class_stats, classes and runs; without either, "
        "a prompt.",
    )
    parser.add_argument("output", nargs="?", help="folder or URI that jobs/segment_bucket.py wrote (its --output)")
    parser.add_argument(
        "question", nargs="?", metavar="NAME|SQL", help="a named query (--list) or a statement in DuckDB's SQL"
    )
    parser.add_argument(
        "values", nargs="*", metavar="VALUE", help="what a named query takes, in order or as NAME=VALUE"
    )
    parser.add_argument("--list", action="store_true", help="the named queries and what they take")
    parser.add_argument("--explain", action="store_true", help="print the SQL and do not run it")
    parser.add_argument(
        "--format", choices=get_args(Format), help="of the result (default: as the name after --to ends, or table)"
    )
    parser.add_argument("--to", metavar="FILE", help="file or URI for the result (default: the terminal)")
    return parser


def _format_of(target: str | None) -> Format:
    """The format that a file's name says."""
    return next((kind for kind in get_args(Format) if (target or "").lower().endswith(f".{kind}")), "table")


if __name__ == "__main__":
    run_job(main)
