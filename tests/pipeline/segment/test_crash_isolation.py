"""Which images are found to kill the process that works on them, and which are not."""

import pytest

from pipeline.segment.crash_isolation import NODE_LOSSES, PROCESS_DEATHS, Trials

IMAGES = [b"a", b"b", b"c"]


@pytest.fixture
def lost() -> set[str]:
    """Nodes that are not alive."""
    return set()


@pytest.fixture
def trials(lost: set[str]) -> Trials:
    return Trials(lambda node: node not in lost)


def begin(trials: Trials, block: str = "block", node: str = "node") -> tuple[bool, list[bytes]]:
    return trials.begin(block, IMAGES, node)


def die_at(trials: Trials, image: bytes, node: str = "node") -> None:
    begin(trials, node=node)
    trials.enter("block", image)


def test_a_block_whose_process_died_goes_one_by_one_until_it_ends(trials: Trials) -> None:
    assert [begin(trials)[0] for _ in range(3)] == [False, True, True]
    assert not begin(trials, "another")[0]
    trials.end("block")
    assert not begin(trials)[0]


def test_a_block_whose_node_was_lost_does_so_the_second_time(trials: Trials, lost: set[str]) -> None:
    lost.update(["first", "second"])
    assert [begin(trials, node=node)[0] for node in ("first", "second", "third")] == [False, False, True]


def test_an_image_at_which_processes_die_is_given_up_and_no_other(trials: Trials) -> None:
    for _ in range(PROCESS_DEATHS):
        assert begin(trials)[1] == []
        die_at(trials, b"b")
    assert begin(trials)[1] == [b"b"]
    assert trials.begin("of others", [b"x"], "node").given_up == []


def test_images_that_were_left_before_a_process_died_are_not_suspected(trials: Trials) -> None:
    for _ in range(10):
        assert begin(trials)[1] == []
        trials.enter("block", b"a")
        trials.leave("block")


def test_a_death_counts_once(trials: Trials) -> None:
    die_at(trials, b"b")
    assert [begin(trials)[1] for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("node_losses", [NODE_LOSSES - 1, NODE_LOSSES])
def test_nodes_that_are_lost_say_less_of_an_image_than_processes_that_die(
    trials: Trials, lost: set[str], node_losses: int
) -> None:
    """A node may be taken away again and again in the hours of a scene."""
    assert NODE_LOSSES > PROCESS_DEATHS
    for number in range(node_losses):
        die_at(trials, b"b", f"node {number}")
        lost.add(f"node {number}")
    assert begin(trials)[1] == [b"b"] * (node_losses == NODE_LOSSES)


def test_a_node_that_is_found_to_be_lost_only_later_counts_as_lost(trials: Trials, lost: set[str]) -> None:
    """Ray tries again what a broken connection lost before it knows of the node."""
    for number in range(PROCESS_DEATHS):
        die_at(trials, b"b", f"node {number}")
        begin(trials, node=f"node {number + 1}")
        lost.add(f"node {number}")
    assert begin(trials)[1] == []
