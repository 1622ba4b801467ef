"""GitHub shows a form or a heading only if its file has the keys that GitHub reads."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

FORMS = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"))
TYPES = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def required(form: dict[str, Any]) -> set[str]:
    return {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_asks_of_it(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    assert {part["type"] for part in form["body"]} <= TYPES
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)


def test_a_bug_is_told_with_what_it_takes_to_see_it_again() -> None:
    form = read(REPOSITORY / ".github/ISSUE_TEMPLATE/bug.yml")
    assert required(form) == {"command", "output", "expected", "versions"}
    assert "jobs/doctor.py" in str(form["body"])


def test_headings_of_a_release_cover_every_label() -> None:
    categories = read(REPOSITORY / ".github/release.yml")["changelog"]["categories"]
    assert all(one["title"] and one["labels"] for one in categories)
    assert categories[-1]["labels"] == ["*"]
    labels = {label for path in FORMS for label in read(path)["labels"]}
    assert labels <= {label for one in categories for label in one["labels"]}, "a form's label has a heading"


def test_workflows_pass_actionlint() -> None:
    workflows = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
    assert workflows
    actionlint = Path(sys.executable).parent / "actionlint"
    found = subprocess.run([actionlint, *workflows], text=True, capture_output=True)
    assert found.returncode == 0, found.stdout


def test_every_python_that_the_project_supports_is_tested() -> None:
    jobs = read(REPOSITORY / ".github/workflows/ci.yml")["jobs"]
    least = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={jobs['test']['strategy']['matrix']['python'][0]}" == least
    assert "${{ secrets" not in (REPOSITORY / ".github/workflows/ci.yml").read_text()
