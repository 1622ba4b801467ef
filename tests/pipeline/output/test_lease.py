"""One run writes an output at a time: who may, who is refused, and who is taken over."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import lease
from pipeline.output.lease import Claim, Lease, LeaseLost, Record, hold
from pipeline.output.reconcile import reconcile
from pipeline.output.schema import PREDICTED, table
from pipeline.segment.write_stage import PartSink
from tests.in_process import REPOSITORY
from tests.pipeline.samples import CLASS_NAMES, segmented

HOLD = """
import sys
from pipeline.output.lease import hold
with hold(sys.argv[1]) as lease:
    print(lease.run_id, flush=True)
    input()
"""


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return storage.absolute(f"{place}/labels")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases expire within a second."""
    for name, seconds in {"RENEW_EVERY": 0.1, "EXPIRES_AFTER": 1.0, "LOOK_EVERY": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setattr(lease, "SETTLES_WITHOUT_CONDITIONS", 1.0)


def record(output: str, sequence: int) -> Record:
    return Record.model_validate_json(storage.read_bytes(f"{output}/_leases/{sequence:08d}.json"))


def write(output: str, sequence: int, **changes: Any) -> None:
    """Write a lease as another run would have left it: of another machine, if nothing else is said."""
    fields = {"run_id": f"20261130T090000-r{sequence}", "nonce": "other", "host": "far", "machine": "another", "pid": 7}
    fields |= {"started": "1", "began_at": "2026-11-30T09:00:00Z"}
    content = Record.model_validate(fields | changes).model_dump_json()
    storage.write_bytes(f"{output}/_leases/{sequence:08d}.json", content.encode())


@pytest.fixture
def other_process(output: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the output's lease until it has a line to read."""
    started = subprocess.Popen(
        [sys.executable, "-c", HOLD, output], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline().endswith("-r1\n")
        yield started
        started.kill()


def test_runs_one_after_the_other_have_numbers_in_turn(output: str) -> None:
    for sequence in (1, 2, 3):
        with hold(output) as held:
            assert re.fullmatch(rf"\d{{8}}T\d{{6}}-r{sequence}", held.run_id)
            assert lease.sequence_of(held.run_id) == held.claim.sequence == sequence
            assert record(output, sequence).state == "held"
            held.require()
        assert record(output, sequence).state == "ended"
    assert lease.sequence_of("20261130T090000-0a1b2c") == 0


def test_a_second_run_of_this_process_is_refused_and_disturbs_nothing(output: str) -> None:
    with hold(output) as held:
        with pytest.raises(UserError, match=f"is being written by run {held.run_id} on .*Wait until it ends, stop it"):
            hold(output).__enter__()
        held.require()


def test_a_run_of_another_process_is_refused_while_it_lives_and_taken_over_at_once_when_it_is_killed(
    output: str, other_process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=rf"-r1 on .* \(process {other_process.pid}, since "):
        hold(output).__enter__()
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    with hold(output) as held:
        assert held.claim.sequence == 2
    printed = capsys.readouterr().out
    assert "ended without releasing its lease; this run takes over" in printed
    assert "waiting" not in printed


def test_a_run_of_another_process_that_ends_makes_room(output: str, other_process: subprocess.Popen[str]) -> None:
    other_process.communicate("\n")
    assert record(output, 1).state == "ended"
    with hold(output) as held:
        assert held.claim.sequence == 2


def test_after_a_run_that_failed_the_next_one_begins_at_once(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), hold(output):
        raise ValueError("broken")
    assert record(output, 1).state == "failed"
    with hold(output) as held:
        assert held.claim.sequence == 2
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("hasty")
def test_a_run_on_another_machine_that_shows_no_life_is_taken_over_when_its_lease_expires(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(output, 4)
    with hold(output) as held:
        assert held.claim.sequence == 5
    assert "-r4 on far (process 7, since 2026-11-30 09:00:00 UTC) was writing to this output; waiting up to 1 s" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("hasty")
def test_a_run_on_another_machine_that_renews_its_lease_is_not_disturbed(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(output) as held:
        monkeypatch.setattr(lease, "_machine", lambda: "another")  # of whoever comes now
        with pytest.raises(UserError, match=f"is being written by run {held.run_id}"):
            hold(output).__enter__()
        held.require()


@pytest.mark.usefixtures("hasty")
def test_a_run_on_another_machine_that_ends_while_it_is_watched_makes_room(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(output, 1)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: write(output, 1, state="ended"))
    with hold(output) as held:
        assert held.claim.sequence == 2


@pytest.mark.usefixtures("hasty")
def test_a_run_that_was_taken_over_commits_nothing_more_and_learns_by_whom(output: str) -> None:
    with hold(output) as held:
        sink = PartSink(held.claim, CLASS_NAMES, "model1", held.run_id, 8)
        sink.write([table([segmented("a")], PREDICTED)], None)
        write(output, 2)
        with pytest.raises(LeaseLost, match=r"was taken over by run \S+-r2 on far .*; this run has stopped writing"):
            sink.write([table([segmented("b")], PREDICTED)], None)
        held._thread.join(10)
        with pytest.raises(LeaseLost, match="was taken over"):
            held.look()
    assert record(output, 1).state == "held", "it is the other run's word that counts"
    names = [uri.split("/")[-2:] for uri in storage.find(output)]
    assert [folder for folder, _ in names] == ["_leases", "_leases", "class_stats", "class_stats", "masks"]
    found = reconcile(output)
    assert (len(found.completed), len(found.repaired)) == (1, 1)
    assert found.in_doubt == 60


def test_a_lease_that_is_gone_or_of_another_run_is_lost(output: str) -> None:
    claim = Claim(output, 1, "mine")
    with pytest.raises(LeaseLost, match=r"_leases/00000001.json: this run's lease is missing"):
        claim.require()
    write(output, 1)
    with pytest.raises(LeaseLost, match=r"this run's lease was overwritten by run \S+-r1 on far"):
        claim.require()


def test_a_listing_that_lags_behind_does_not_make_a_number_twice(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for sequence in (1, 2, 3):
        write(output, sequence, state="ended")
    monkeypatch.setattr(storage, "find", lambda uri: {})
    with hold(output) as held:
        assert held.claim.sequence == 4


def test_a_lease_whose_making_was_answered_in_vain_is_held(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage took it, the answer was lost, and the second try is refused."""
    create = storage.create_bytes
    monkeypatch.setattr(storage, "create_bytes", lambda *given: create(*given) and create(*given))
    with hold(output) as held:
        held.require()


def together(output: str, number: int) -> list[Lease | UserError]:
    """Return the outcomes of writers that start together, and check the lease before they commit, as tasks do."""
    begun, tried = Barrier(number), Barrier(number)

    def run(_: int) -> Lease | UserError:
        begun.wait(30)
        try:
            with hold(output) as held:
                tried.wait(30)
                held.require()
                return held
        except LeaseLost as error:
            return error
        except UserError as error:
            tried.wait(30)
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


@pytest.mark.usefixtures("hasty")
def test_of_several_that_begin_together_one_runs(output: str) -> None:
    outcomes = together(output, 8)
    assert [type(outcome) for outcome in outcomes].count(Lease) == 1
    assert all("written by run" in str(outcome) for outcome in outcomes if isinstance(outcome, UserError))


@pytest.mark.usefixtures("hasty")
def test_of_several_one_runs_on_a_store_that_ignores_conditions_too(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "create_bytes", lambda uri, content: storage.write_bytes(uri, content) or True)
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    outcomes = together(output, 4)
    assert [type(outcome) for outcome in outcomes].count(Lease) == 1


def test_what_is_no_lease_is_told(output: str) -> None:
    storage.write_bytes(f"{output}/_leases/00000001.json", b"{}")
    with pytest.raises(UserError, match=r"00000001.json: not a lease file; delete it if no run is writing"):
        hold(output).__enter__()


def test_a_file_is_created_once(output: str) -> None:
    uri = f"{output}/file"
    assert [storage.create_bytes(uri, b"first"), storage.create_bytes(uri, b"second")] == [True, False]
    assert storage.read_bytes(uri) == b"first"
    assert list(storage.find(output)) == [uri]


def test_of_several_writers_to_a_disk_one_creates_the_file_and_whole(tmp_path: Path) -> None:
    uri = storage.absolute(f"{tmp_path}/file")
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: storage.create_bytes(uri, str(n).encode() * 1000), range(8)))
    assert created.count(True) == 1
    assert storage.read_bytes(uri) == str(created.index(True)).encode() * 1000
    assert list(storage.find(str(tmp_path))) == [uri]


def test_a_file_is_created_on_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    uri = f"{tmp_path}/file"
    assert [storage.create_bytes(uri, b"first"), storage.create_bytes(uri, b"second")] == [True, False]
    assert storage.read_bytes(uri) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
