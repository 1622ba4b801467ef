"""Ask an output in SQL: `python jobs/query.py OUTPUT "SELECT status, count(*) FROM masks GROUP BY status"`."""

import argparse

from pipeline.entry import run_job


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jobs/query.py", description="Run SQL over an output's tables: masks, class_stats, classes."
    )
    parser.add_argument("output", help="folder or URI that jobs/segment_bucket.py wrote (its --output)")
    parser.add_argument("sql", help="a statement in DuckDB's SQL")
    arguments = parser.parse_args(argv)
    from pipeline import query

    print(query.run(query.connect(arguments.output), arguments.sql))


if __name__ == "__main__":
    run_job(main)
