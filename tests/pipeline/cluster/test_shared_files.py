"""Local files that nodes of a cluster do not share."""

from pathlib import Path

import pytest
import ray

from pipeline.cluster import shared_files
from pipeline.cluster.shared_files import MissingFile, check_shared, missing_files
from pipeline.errors import UserError

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
