"""The wheel has all that the jobs need: they run from it, outside the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PACKAGED = ("models", "pipeline", "jobs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing of its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy, since setuptools leaves its files where it builds.
    for name in PACKAGED:
        path = REPOSITORY / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "installed"), str(wheel)], check=True)
    return folder / "installed"


def run(installed: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *command], cwd=installed.parent, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_packages_are_those_of_the_wheel(installed: Path) -> None:
    found = run(
        installed, "-c", "import jobs, models, pipeline; print(jobs.__file__, models.__file__, pipeline.__file__)"
    )
    assert all(path.startswith(str(installed)) for path in found.split())


def test_the_version_of_a_tree_without_git_is_the_one_that_the_code_tells(installed: Path) -> None:
    fallback = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    program = "from pipeline.cluster.packages import packages; print(packages()['sceneparse'])"
    assert run(installed, "-c", program) == f"{fallback}\n"


def test_an_editable_install_is_built_of_a_tree_without_git(installed: Path) -> None:
    program = "import setuptools.build_meta as build; build.build_editable('..')"
    subprocess.run([sys.executable, "-c", program], cwd=installed.parent / "source", check=True, capture_output=True)
    assert len(list(installed.parent.glob("*editable*.whl"))) == 1


def test_an_output_is_asked_and_reported_from_the_wheel(installed: Path, small_output: Path, tmp_path: Path) -> None:
    assert "percent_of_pixels" in run(installed, "-m", "jobs.query", str(small_output), "class-areas")
    run(installed, "-m", "jobs.report", str(small_output), "--to", str(tmp_path / "labels.html"))
    assert "<html" in (tmp_path / "labels.html").read_text()


# In one process, which imports Ray and torch once.
EVERY_HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"jobs.{name}", run_name="__main__")
    except SystemExit as end:
        print("the end of", name, end.code)
"""


def test_every_job_starts_from_the_wheel(installed: Path) -> None:
    names = sorted(path.stem for path in (installed / "jobs").glob("[!_]*.py"))
    assert len(names) > 10
    printed = run(installed, "-c", EVERY_HELP, *names)
    for name in names:
        shown, _, printed = printed.partition(f"the end of {name} 0\n")
        assert "usage" in shown.lower(), name
    assert printed == ""


def test_c_sources_and_class_tables_are_there(installed: Path) -> None:
    program = "from pipeline.config.dataset_formats import classes_of; from models.kernels import compiled; "
    assert run(installed, "-c", program + "print(len(classes_of('ade20k')))") == "150\n"
    assert {path.name for path in (installed / "models" / "kernels").glob("*.[ch]")} == {
        path.name for path in (REPOSITORY / "models" / "kernels").glob("*.[ch]")
    }
