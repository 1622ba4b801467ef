"""jobs/segment_bucket.py on a disk that runs full: it says so, leaves nothing half written, and goes on later."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from tests.conftest import run_process
from tests.output_checks import check_invariants
from tests.ray_head import RayHead
from tests.requirements import ROOT
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint

# Without what earlier jobs in this process may have left on the head.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unconnected")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(ROOT.reason)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_ends_clearly_and_goes_on_when_there_is_room(head: RayHead, small_disk: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint")
    uris = write_photos(f"{tmp_path}/photos", 96)
    places = ["--input", f"{tmp_path}/photos", "--output", str(small_disk / "labels")]
    command = ["jobs/segment_bucket.py", *places, "--checkpoint", f"{tmp_path}/checkpoint", "--rows-per-part", "2"]

    # In processes of their own: predictors of a run that fails live until its process ends, and keep their CPUs.
    full = run_process(*command, **head.environment)
    assert full.returncode == 2, full.stdout + full.stderr
    assert "the disk or its quota is full" in full.stderr
    assert "free some space and run the same command again to resume" in full.stderr
    left = [Path(uri).name for uri in storage.find(str(small_disk))]
    assert not [name for name in left if name.startswith(".partial-")]
    assert any(name.startswith("part-") for name in left), f"full before anything was done: {left}"

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = run_process(*command, **head.environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "96 in the input, 0 already completed" not in again.stdout
    check_invariants(str(small_disk / "labels"), [storage.absolute(uri) for uri in uris])
