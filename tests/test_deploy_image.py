"""deploy/Dockerfile, which no test builds: its lint, and that what it copies is there and installs."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

DOCKERFILE = REPOSITORY / "deploy/Dockerfile"
TEXT = DOCKERFILE.read_text()
STAGES = re.split(r"^FROM .*$", TEXT, flags=re.MULTILINE)[1:]


def test_lint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([hadolint, DOCKERFILE], text=True, capture_output=True)
    assert found.returncode == 0, found.stdout


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE) for name in line.split()]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "models", "jobs", "configs"} <= set(copied)
    ignored = (REPOSITORY / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert all((REPOSITORY / name).exists() for name in copied)


def test_everything_is_installed_by_the_hashes_of_the_constraints() -> None:
    installs = re.findall(r"pip install (.*?)(?:\\|\n|$)", TEXT)
    assert len(installs) == 3
    of_uv, *by_uv = installs
    assert "--require-hashes" in of_uv
    assert len(re.findall(r"\buv pip install", TEXT)) == len(by_uv)
    assert all("constraint constraints.txt" in one for one in by_uv)
    bases = set(re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE))
    assert len(bases) == 1, "an environment runs on the Python that it was made with"
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", bases.pop())


def test_requirements_are_taken_from_the_project() -> None:
    """The command that the image runs gives pip one requirement in each line."""
    (command,) = re.findall(r"RUN python -c '(.*)'", TEXT)
    listed = subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert "ray[data,train,default]==2.60.*" in listed.stdout.splitlines()


def test_the_image_runs_as_an_ordinary_user_with_the_token_required() -> None:
    final = STAGES[-1]
    assert re.findall(r"^USER (\S+)$", final, re.MULTILINE) == ["1000"]
    assert "useradd --uid 1000" in final
    assert "RAY_AUTH_MODE=token" in final
    assert "pip install" not in final, "what builds the environment would stay in the image"
