"""jobs/verify.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import storage
from tests.conftest import REPOSITORY
from tests.in_process import run_script
from tests.pipeline.samples import write_classes, write_part


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("jobs/verify.py", *arguments)


def test_a_right_output_gives_exit_code_0(small_output: Path) -> None:
    done = verify(str(small_output), "--deep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"Verifying   {small_output.as_uri()}\n")
    assert "1 part(s), 3 images, 2 ok and 1 failed; every mask decoded" in done.stdout
    assert "no problems found" in done.stdout


def test_no_output_gives_exit_code_2_and_a_sentence(tmp_path: Path) -> None:
    done = verify(f"{tmp_path}/nowhere")
    assert done.returncode == 2
    assert (
        done.stderr == f"error: output file://{tmp_path}/nowhere: no masks and no classes.parquet; pass "
        "the --output of a segment_bucket.py run\n"
    )


def test_it_needs_no_ray(small_output: Path) -> None:
    """Ray takes seconds to import, and an analyst may not have it."""
    run = f"import sys; from jobs.verify import main; main([{str(small_output)!r}])"
    code = f"{run}; assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "swift"])
def test_findings_are_told_then_mended_and_gone(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue("bucket") if place == "swift" else f"file://{tmp_path}"
    output, photos = f"{root}/out put", f"{root}/photos"
    names = [f"{photos}/{letter}.jpg" for letter in "abcde"]
    for name in names:
        storage.write_bytes(name, b"an image")
    write_classes(output)
    broken = write_part(output, names[:2], failures=names[2:3])
    write_part(output, names[3:], run_id="run2")
    everything = (output, "--input", photos, "--deep")
    assert verify(*everything).returncode == 0
    content = storage.read_bytes(f"{output}/masks/{broken}")
    storage.write_bytes(f"{output}/masks/{broken}", content[:-10])

    found = verify(*everything)
    assert found.returncode == 1
    assert "unreadable part: 1; --repair deletes the part" in found.stdout
    assert f"  masks/{broken}: the file is damaged or truncated: " in found.stdout
    assert "no row: 3; run segment_bucket.py with this input again" in found.stdout
    assert f"{names[0]}: is in the input, but has no row" in found.stdout
    assert "4 finding(s), 1 of which --repair can fix" in found.stdout
    assert storage.read_bytes(f"{output}/masks/{broken}") == content[:-10], "without --repair nothing is changed"

    repaired = verify(output, "--repair")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert f"deleted part {broken}: unreadable part" in repaired.stdout
    assert not storage.exists(f"{output}/class_stats/{broken}")
    assert verify(output).returncode == 0
    assert verify(*everything).returncode == 1
    write_part(output, names[:2], failures=names[2:3], run_id="run3")
    assert verify(*everything).returncode == 0
