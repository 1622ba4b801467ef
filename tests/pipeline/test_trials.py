"""Which images are found to kill the process that works on them, and which are not."""

import pytest

from pipeline.trials import NODE_LOSSES, PROCESS_DEATHS, Trials

IMAGES = [b"a", b"b", b"c"]
LOST = {"lost node"}


def begin(trials: Trials, block: str = "block") -> tuple[int, list[bytes]]:
    return trials.begin(block, IMAGES, lambda node: node not in LOST)


def die_at(trials: Trials, image: bytes, node: str = "node") -> None:
    trials.enter("block", image, node)
    begin(trials)


def test_a_block_is_told_how_often_it_began_until_it_ends() -> None:
    trials = Trials()
    assert [begin(trials)[0] for _ in range(3)] == [0, 1, 2]
    assert begin(trials, "another")[0] == 0
    trials.end("block")
    assert begin(trials)[0] == 0


def test_an_image_at_which_processes_die_is_given_up_and_no_other() -> None:
    trials = Trials()
    begin(trials)
    for _ in range(PROCESS_DEATHS - 1):
        die_at(trials, b"b")
    assert begin(trials)[1] == []
    die_at(trials, b"b")
    assert begin(trials)[1] == [b"b"]


def test_images_that_were_left_before_a_process_died_are_not_suspected() -> None:
    trials = Trials()
    begin(trials)
    for _ in range(10):
        trials.enter("block", b"a", "node")
        trials.leave("block")
        assert begin(trials)[1] == []


def test_a_death_counts_once() -> None:
    trials = Trials()
    die_at(trials, b"b")
    assert [begin(trials)[1] for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("node_losses", [NODE_LOSSES - 1, NODE_LOSSES])
def test_nodes_that_are_lost_say_less_of_an_image_than_processes_that_die(node_losses: int) -> None:
    """A node may be taken away again and again in the hours of a scene."""
    assert NODE_LOSSES > PROCESS_DEATHS
    trials = Trials()
    for _ in range(node_losses):
        die_at(trials, b"b", "lost node")
    assert begin(trials)[1] == [b"b"] * (node_losses == NODE_LOSSES)
