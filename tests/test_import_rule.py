"""The import rule between folders, which CONTRIBUTING.md explains."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Each may import those before it.
NOUNS = (
    *("errors", "url_credentials", "console", "config", "storage", "images", "metrics", "cluster", "html"),
    *("datasets", "checkpoints", "output", "inputs", "query"),
)
# And of the verbs these.
VERBS: dict[str, set[str]] = {
    "segment": set(),
    "plan": {"segment"},
    "evaluate": set(),
    "train": {"evaluate"},
    "ablate": {"train", "evaluate"},
    "verify": set(),
    "report": set(),
    "export_masks": set(),
    "doctor": set(),
    "demo": set(),
}
MODELS_NEED = {"torch", "numpy", "safetensors", "onnxruntime"}  # the last to check an exported network


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", [*NOUNS, *VERBS])
def test_a_folder_of_the_pipeline_imports_what_it_may(folder: str) -> None:
    may = {*NOUNS, *VERBS[folder]} if folder in VERBS else {*NOUNS[: NOUNS.index(folder)]}
    paths = [REPOSITORY / "pipeline" / f"{folder}.py", *files(f"pipeline/{folder}")]
    found = {name.split(".")[1] for path in paths if path.exists() for name in imported(path) if "pipeline." in name}
    assert any(path.exists() for path in paths)
    assert found <= {folder, *may}


def test_every_folder_of_the_pipeline_is_known() -> None:
    there = {path.stem for path in (REPOSITORY / "pipeline").iterdir() if not path.stem.startswith("_")}
    assert there == {*NOUNS, *VERBS}


def test_models_stand_on_torch_alone() -> None:
    packages = {name.split(".")[0] for path in files("models") for name in imported(path)}
    assert packages - {*sys.stdlib_module_names} <= {"models", *MODELS_NEED}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_face_has_a_docstring_only(verb: str) -> None:
    """So that decode tasks, which import a module of it, never load torch."""
    body = ast.parse((REPOSITORY / "pipeline" / verb / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
