"""Query an output: `python jobs/query.py OUTPUT class-areas`, or SQL instead of the name, or nothing for a prompt."""

from typing import get_args

from pipeline.config.command_line import Parser, uri
from pipeline.console import run_job
from pipeline.errors import UserError
from pipeline.query.results import Format


def main(argv: list[str], prog: str = "jobs/query.py") -> None:
    arguments = _parser(prog).parse_args(argv)
    from pipeline.query import run, shell

    if arguments.list:
        print("\n".join(shell.list_of_queries()))
        return
    if arguments.output is None:
        raise UserError(
            "OUTPUT is missing; give the folder or URI that jobs/segment_bucket.py wrote, or --list to list the "
            "named queries"
        )
    query = run.Query(arguments.output, arguments.question, tuple(arguments.values), arguments.format, arguments.to)
    (run.explain if arguments.explain else run.answer)(query)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Query an output with a named query or with SQL over the tables masks, class_stats, classes and "
        "runs. Without a query, start an interactive SQL prompt.",
        (
            "s3://bucket/labels class-areas",
            'labels "SELECT status, count(*) FROM masks GROUP BY status" --to counts.csv',
        ),
    )
    parser.add_argument(
        "output",
        nargs="?",
        type=uri,
        metavar="OUTPUT",
        help="output of jobs/segment_bucket.py",
    )
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
    parser.add_argument(
        "--to", type=uri, metavar="FILE", help="file or URI to write the result to (default: standard output)"
    )
    return parser


if __name__ == "__main__":
    run_job(main)
