"""The version is the last tag's; where git does not tell it, that of the images which deploy/ names."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
FALLBACK = PROJECT["tool"]["setuptools_scm"]["fallback_version"]
PERSON = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def git(folder: Path, *arguments: str) -> None:
    # Nothing of the settings of whoever runs the tests, such as signed tags.
    alone = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "-C", str(folder), *PERSON, *arguments], check=True, env=alone, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--allow-empty", "--message", "a change")


def version_of(tree: Path) -> str:
    """Return the version in the name of a wheel built from the tree."""
    program = "import setuptools.build_meta as build; print(build.prepare_metadata_for_build_wheel('.'))"
    out = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    made = tree / out.stdout.splitlines()[-1]
    found = re.search(r"^Version: (.*)$", (made / "METADATA").read_text(), re.MULTILINE)
    assert found
    shutil.rmtree(made)
    return found[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder without .git that holds what a version is made of."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture
def repository(tree: Path) -> Path:
    """The same with .git, one commit and no tag."""
    git(tree, "init")
    commit(tree)
    return tree


def test_the_version_is_that_of_the_tag(repository: Path) -> None:
    git(repository, "tag", "v3.4.0")
    assert version_of(repository) == "3.4.0"
    commit(repository)
    assert re.fullmatch(r"3\.4\.1\.dev1\+g[0-9a-f]+", version_of(repository)), "on the way to the next one"


def test_a_tree_without_git_has_the_fallback(tree: Path) -> None:
    """As in a source archive, in the image of deploy/Dockerfile, and on the nodes of cluster.yaml."""
    assert version_of(tree) == FALLBACK


def test_a_copy_in_another_repository_does_not_take_the_version_of_that(tree: Path) -> None:
    git(tree.parent, "init")
    commit(tree.parent)
    git(tree.parent, "tag", "v7.0.0")
    assert version_of(tree) == FALLBACK


def test_a_repository_without_tags_has_a_version(repository: Path) -> None:
    assert re.fullmatch(r"[0-9.]+\.dev1\+g[0-9a-f]+", version_of(repository))


def test_a_shallow_clone_without_its_tag_has_a_version(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "v3.4.0")
    commit(repository)
    git(tmp_path, "clone", "--depth", "1", repository.as_uri(), "shallow")
    assert re.fullmatch(r"[0-9.]+\.dev1\+g[0-9a-f]+", version_of(tmp_path / "shallow"))


def test_images_are_named_by_the_fallback() -> None:
    """deploy/Dockerfile copies no .git, so that is the version of the code in them."""
    named = [
        (path.name, version)
        for path in (*(REPOSITORY / "deploy").rglob("*.yaml"), *(REPOSITORY / "docs").glob("*.md"))
        for version in re.findall(r"/sceneparse:([\w.]+)", path.read_text())
    ]
    assert {name for name, _ in named} >= {"cluster.yaml", "train.yaml", "segment.yaml", "cluster.md"}
    assert {version for _, version in named} == {FALLBACK}
