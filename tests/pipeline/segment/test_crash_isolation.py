"""Images that crash their worker are identified, and no others."""

import pytest

from pipeline.segment.crash_isolation import NODE_LOSSES, PROCESS_DEATHS, CrashLedger

IMAGES = [b"a", b"b", b"c"]


@pytest.fixture
def lost() -> set[str]:
    """Nodes that are not alive."""
    return set()


@pytest.fixture
def ledger(lost: set[str]) -> CrashLedger:
    return CrashLedger(lambda node: node not in lost)


def begin(ledger: CrashLedger, block: str = "block", node: str = "node") -> tuple[bool, list[bytes]]:
    return ledger.begin(block, IMAGES, node)


def die_at(ledger: CrashLedger, image: bytes, node: str = "node") -> None:
    begin(ledger, node=node)
    ledger.enter("block", image)


def test_a_block_whose_process_died_goes_one_by_one_until_it_ends(ledger: CrashLedger) -> None:
    assert [begin(ledger)[0] for _ in range(3)] == [False, True, True]
    assert not begin(ledger, "another")[0]
    ledger.end("block")
    assert not begin(ledger)[0]


def test_a_block_whose_node_was_lost_does_so_the_second_time(ledger: CrashLedger, lost: set[str]) -> None:
    lost.update(["first", "second"])
    assert [begin(ledger, node=node)[0] for node in ("first", "second", "third")] == [False, False, True]


def test_an_image_at_which_processes_die_is_given_up_and_no_other(ledger: CrashLedger) -> None:
    for _ in range(PROCESS_DEATHS):
        assert begin(ledger)[1] == []
        die_at(ledger, b"b")
    assert begin(ledger)[1] == [b"b"]
    assert ledger.begin("of others", [b"x"], "node").given_up == []


def test_images_that_were_left_before_a_process_died_are_not_suspected(ledger: CrashLedger) -> None:
    for _ in range(10):
        assert begin(ledger)[1] == []
        ledger.enter("block", b"a")
        ledger.leave("block")


def test_a_death_counts_once(ledger: CrashLedger) -> None:
    die_at(ledger, b"b")
    assert [begin(ledger)[1] for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("node_losses", [NODE_LOSSES - 1, NODE_LOSSES])
def test_nodes_that_are_lost_say_less_of_an_image_than_processes_that_die(
    ledger: CrashLedger, lost: set[str], node_losses: int
) -> None:
    """A node may be taken away again and again in the hours of a scene."""
    assert NODE_LOSSES > PROCESS_DEATHS
    for number in range(node_losses):
        die_at(ledger, b"b", f"node {number}")
        lost.add(f"node {number}")
    assert begin(ledger)[1] == ([b"b"] if node_losses == NODE_LOSSES else [])


def test_a_node_that_is_found_to_be_lost_only_later_counts_as_lost(ledger: CrashLedger, lost: set[str]) -> None:
    """Ray tries again what a broken connection lost before it knows of the node."""
    for number in range(PROCESS_DEATHS):
        die_at(ledger, b"b", f"node {number}")
        begin(ledger, node=f"node {number + 1}")
        lost.add(f"node {number}")
    assert begin(ledger)[1] == []
