"""The doctor's measurements, on this machine and a real object store, without a cluster."""

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.demo.server_process import LOOPBACK, free_ports
from pipeline.doctor import all_reduce, clock, nodes, transfers, versions
from pipeline.doctor.findings import FAIL
from pipeline.errors import UserError


def test_versions_are_told_without_importing_what_they_are_of() -> None:
    found = versions.versions()
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found[name] for name in ("ray", "torch", "torchvision", "pyarrow"))
    assert len(found["code"] or "") == 8


@pytest.mark.parametrize("place", ["local", "swift"])
def test_a_round_trip_leaves_nothing_but_the_marker(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("bucket") if place == "swift" else f"file://{tmp_path}"
    marker = transfers.write_marker(folder)
    transfers.round_trip(folder, "node-a", marker)
    rates = transfers.transfer(folder, "node-a", megabytes=3)
    assert rates.up > 0
    assert rates.down > 0
    assert Counter(map(Path, storage.find(folder))) == Counter([Path(f"{folder}/marker")])


def test_a_folder_that_the_nodes_do_not_share_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not found, so this is not the same storage; use a bucket"):
        transfers.round_trip(str(tmp_path), "node-a", b"what the driver wrote elsewhere")


def test_what_the_driver_wrote_is_to_be_deleted_though_no_node_has_access(tmp_path: Path) -> None:
    access = transfers.check_access(nodes.Roll([]), f"{tmp_path}/new")
    assert access.nodes == []
    assert access.wrote
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["marker"]


def test_what_may_be_written_but_not_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise UserError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "remove", refuse)
    with pytest.raises(UserError, match=r"writing and reading work, but deleting fails: .*/node-a: access denied"):
        transfers.round_trip(str(tmp_path), "node-a", None)


def test_nothing_is_deleted_where_nobody_could_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    access = transfers.check_access(nodes.Roll([]), f"{tmp_path}/file/new")
    assert not access.wrote
    (finding,) = access.findings
    assert (finding.level, finding.node) == (FAIL, "the driver")


def test_a_folder_that_has_another_marker_is_told(tmp_path: Path) -> None:
    transfers.write_marker(str(tmp_path))
    with pytest.raises(UserError, match="differs from what was written"):
        transfers.round_trip(str(tmp_path), "node-a", b"what the driver wrote elsewhere")


def test_the_clock_of_an_object_store_on_this_machine_is_this_machine_s(bucket: str) -> None:
    skew = clock.storage_skew(f"{bucket}/any/key")
    assert skew is not None
    assert abs(skew.ahead) <= skew.uncertainty + 0.1
    assert skew.uncertainty < 60
    refused = clock.storage_skew("s3://no-such-bucket")
    assert refused is not None, "a refusal has the date, too"


def test_what_hangs_here_is_left_behind_in_time() -> None:
    start = time.monotonic()
    reply = nodes.here(time.sleep, 300, limit=0.2)
    assert reply == nodes.Silence("no answer within 0 s", timed_out=True)
    assert time.monotonic() - start < 100


def test_what_fails_here_is_a_sentence(tmp_path: Path) -> None:
    reply = nodes.here(storage.read_bytes, f"{tmp_path}/missing", limit=10)
    assert isinstance(reply, nodes.Silence)
    assert reply.sentence == f"{tmp_path}/missing: not found; check the path"


@pytest.mark.slow
def test_a_closed_port_is_told_as_one_in_bounded_time() -> None:
    (closed,) = free_ports(1)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"gloo cannot reach rank 0 at {LOOPBACK}:{closed} .* open all TCP ports"):
        all_reduce.reduce_with("gloo", LOOPBACK, closed, meet_timeout=3)
    assert time.monotonic() - start < 200, "torch's own limit is 300 s"


@pytest.mark.slow
def test_a_partner_that_never_comes_is_told_in_bounded_time() -> None:
    host = all_reduce.Host()
    host.open(meet_timeout=3)
    with pytest.raises(UserError, match="gloo cannot connect to rank 1, which should connect to this node"):
        host.reduce("gloo", meet_timeout=3)
