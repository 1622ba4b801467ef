"""README's queries, and the cluster file."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import query
from pipeline.named_queries import named_query
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)


def test_readme_has_queries() -> None:
    assert len(QUERIES) >= 2


@pytest.mark.parametrize("sql", QUERIES)
def test_readme_query_runs(sql: str, small_output: Path) -> None:
    relation = query.run(query.connect(str(small_output)), sql)
    assert relation is not None
    assert len(relation.fetchall()) > 0


@pytest.mark.parametrize("command", re.findall(r"jobs/query.py build/demo/labels +(\S+.*?) *(?:#.*)?\n", README))
def test_readme_names_queries_that_there_are(command: str, small_output: Path) -> None:
    name, *arguments = command.split(" --")[0].split()
    if not name.startswith("#"):
        assert query.run(query.connect(str(small_output)), named_query(name).sql, named_query(name).values(arguments))


def test_cluster_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())))
