"""Lines of findings: aligned, the worst first, and no more than one where all nodes are alike."""

from pipeline.doctor.findings import FAIL, OK, SHOWN, WARN, CheckResult, lines


def test_nodes_with_the_same_finding_share_a_line() -> None:
    findings = [
        CheckResult(WARN, "is slow", "a"),
        CheckResult(WARN, "is slow", "b"),
        CheckResult(FAIL, "is broken", "c"),
    ]
    assert list(lines("disk", findings, nodes=4)) == [
        "FAIL  disk            c: is broken",
        "warn  disk            a, b: is slow",
    ]


def test_a_finding_of_every_node_says_so_and_one_of_the_cluster_names_none() -> None:
    findings = [CheckResult(WARN, "is slow", name) for name in "abc"] + [CheckResult(OK, "fine")]
    assert list(lines("clock", findings, nodes=3)) == [
        "warn  clock           all 3 nodes: is slow",
        "ok    clock           fine",
    ]


def test_a_thousand_nodes_do_not_make_a_thousand_lines() -> None:
    alike = [CheckResult(FAIL, "is broken", f"node{n}") for n in range(1000)]
    (line,) = lines("disk", alike, nodes=2000)
    assert line.endswith("node7 and 992 more: is broken")
    different = [CheckResult(FAIL, f"lacks {n} MB", f"node{n}") for n in range(1000)]
    told = list(lines("disk", different, nodes=2000))
    assert len(told) == SHOWN + 1
    assert told[-1] == "FAIL  disk            ... and 992 more of this kind"
