"""Local files that nodes of a cluster do not share."""

from pathlib import Path

import pytest
import ray

from jobs import export_masks, validate_dataset
from pipeline.cluster import shared_files
from pipeline.cluster.shared_files import MissingFile, check_shared, missing_files
from pipeline.errors import UserError
from pipeline.export_masks import run as export_run
from tests.scene_data import TRAIN_OPTIONS, write_training_set
from tests.small_output import write_small_output

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("connected")]


@pytest.fixture
def other_node(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of the head, which passes for a node other than the driver's."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    nodes = {node["NodeID"]: node["NodeManagerAddress"]}
    monkeypatch.setattr(shared_files, "_addresses_of_other_nodes", lambda: nodes)
    return node["NodeManagerAddress"]


@pytest.fixture
def here_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of a file that this process sees and the workers, which run in another folder, do not."""
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert Path("/proc/self/cwd/photo.jpg").exists()
    return "file:///proc/self/cwd/photo.jpg"


def test_a_local_file_that_another_node_lacks_is_an_error(other_node: str, here_only: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_shared({"image": here_only, "checkpoint": tmp_path.as_uri(), "output": "s3://bucket/x", "weights": None})
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [f"  image {here_only}: not on {other_node}"]
    assert lines[-1].startswith("Put them in a bucket")


def test_files_that_all_nodes_see_are_fine(other_node: str, tmp_path: Path) -> None:
    check_shared({"output": tmp_path.as_uri()})


def test_a_single_node_is_not_asked(here_only: str) -> None:
    check_shared({"image": here_only})


def test_a_node_that_is_gone_lacks_nothing(here_only: str) -> None:
    gone = {"ab" * 28: "10.0.0.9"}
    assert missing_files({"image": here_only}, gone) == []


def test_a_missing_file_names_its_nodes(here_only: str) -> None:
    (node,) = (node for node in ray.nodes() if node["Alive"])
    found = missing_files({"image": here_only}, {node["NodeID"]: "10.0.0.2"})
    assert found == [MissingFile("image", here_only, ("10.0.0.2",))]


@pytest.mark.usefixtures("here_only")
def test_a_validation_refuses_a_dataset_that_another_node_lacks(other_node: str, tmp_path: Path) -> None:
    write_training_set(str(tmp_path / "set"), num_train=1, num_val=1)
    with pytest.raises(UserError, match=rf"  image file:///proc/self/cwd/set/images/.*\.jpg: not on {other_node}\n"):
        validate_dataset.main([*TRAIN_OPTIONS[:2], "--root", "/proc/self/cwd/set"])


@pytest.mark.usefixtures("here_only")
def test_an_export_refuses_an_output_that_another_node_lacks(
    other_node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_run, "FEW", 0)  # so that the nodes of the cluster export
    write_small_output(tmp_path / "labels")
    with pytest.raises(UserError, match=rf"  output file:///proc/self/cwd/labels: not on {other_node}\n"):
        export_masks.main(["/proc/self/cwd/labels", "--to", str(tmp_path / "masks")])
