"""README's queries, and the cluster file."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import query
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)


def test_readme_has_five_queries() -> None:
    assert len(QUERIES) == 5


@pytest.mark.parametrize("sql", QUERIES)
def test_readme_query_runs(sql: str, small_output: Path) -> None:
    relation = query.run(query.connect(str(small_output)), sql)
    assert relation is not None
    assert len(relation.fetchall()) > 0


def test_readme_names_every_column() -> None:
    from pipeline.tables import CLASS_STATS, MASKS

    tables = README[README.index("## The tables") :]
    for name in {*MASKS.names, *CLASS_STATS.names}:
        assert f"`{name}`" in tables, name


def test_cluster_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())))
