"""Compiled C sources: found again, never trusted blindly, and done without where there is no compiler."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from models.kernels import compiled
from tests.requirements import C_COMPILER

pytestmark = C_COMPILER.mark
ROOT = Path(compiled.__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of our own and an empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCENEPARSE_CACHE", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    write_source(tmp_path, 42)
    return folder


def write_source(folder: Path, answer: int) -> None:
    (folder / "answer.c").write_text(f"int answer(void) {{ return {answer}; }}\n")


def the_answer() -> int:
    library = compiled.library("answer")
    assert library is not None
    return library.answer()


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_a_library_is_compiled_once_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert the_answer() == 42
    (made,) = libraries(cache)
    assert made.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    assert the_answer() == 42


def test_another_source_is_another_library(cache: Path, tmp_path: Path) -> None:
    assert the_answer() == 42
    write_source(tmp_path, 43)
    assert the_answer() == 43
    assert len(libraries(cache)) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF garbage"])
def test_a_damaged_library_is_made_again(cache: Path, content: bytes) -> None:
    compiled.library("answer")
    (made,) = libraries(cache)
    good = made.read_bytes()
    made.unlink()  # Loaded libraries must not change under their users.
    made.write_bytes(content)
    made.chmod(0o700)
    assert the_answer() == 42
    assert made.read_bytes() == good


def test_a_library_that_others_can_write_is_made_again(cache: Path) -> None:
    compiled.library("answer")
    (made,) = libraries(cache)
    made.chmod(0o722)
    assert the_answer() == 42
    (made,) = libraries(cache)
    assert made.stat().st_mode & 0o077 == 0


def test_a_library_of_another_owner_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.library("answer")
    (made,) = libraries(cache)
    monkeypatch.setattr(compiled.os, "getuid", lambda: made.stat().st_uid + 1)
    assert compiled._is_private(made) == (made.stat().st_uid == 0)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_left_alone(cache: Path, tmp_path: Path, mode: int) -> None:
    cache.mkdir()
    cache.chmod(mode)
    assert the_answer() == 42
    assert not libraries(cache)
    assert len(list(tmp_path.glob("sceneparse-*/answer-*.so"))) == 1


def test_where_no_folder_can_be_written_the_warning_says_so(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file")
    tmp_path.joinpath(f"sceneparse-{compiled.os.getuid()}").write_text("a file")
    with pytest.warns(RuntimeWarning, match="SCENEPARSE_CACHE"):
        assert compiled.library("answer") is None


def test_a_source_that_does_not_compile_is_a_warning_with_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "answer.c").write_text("int answer(void) { return a_misspelt_name; }\n")
    with pytest.warns(RuntimeWarning, match="a_misspelt_name"):
        assert compiled.library("answer") is None


def test_a_compiler_that_knows_no_native_target_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "plain cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *native*) echo "unknown" >&2; exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", f"'{compiler}' -DX")
    assert the_answer() == 42


def test_processes_that_start_at_once_agree(cache: Path, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from models.kernels import compiled;"
        "compiled.SOURCES = pathlib.Path(sys.argv[2]); print(compiled.library('answer').answer())"
    )
    command = [sys.executable, "-c", program, str(ROOT), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["42", "42"]
    assert all(path.suffix == ".so" for path in libraries(cache))
