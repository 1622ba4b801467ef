"""The doctor's judgment of measurements: which pass, which cause a warning, and which fail."""

import math

import pytest
import torch

from pipeline.doctor.access import Dashboard, judge_authentication, judge_dashboard
from pipeline.doctor.all_reduce import judge_rates as judge_reduced
from pipeline.doctor.all_reduce import rounds_of_pairs
from pipeline.doctor.clock import Skew, judge_skews, skew_of
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult, Level
from pipeline.doctor.gpus import (
    Installed,
    Tried,
    compile_error,
    judge_offer,
    judge_tried,
    judge_uniform,
    oldest_capability,
)
from pipeline.doctor.machine import Disk, Machine, judge_disks, judge_open_files, judge_shared_memory
from pipeline.doctor.nodes import Answer, Node, judge_nodes
from pipeline.doctor.transfers import Rates, judge_rates
from pipeline.doctor.versions import judge_versions

GB = 10**9
VERSIONS = {"Python": "3.11.7", "torch": "2.14.1", "sceneparse": None, "code": "12345678"}
H200 = Installed("NVIDIA H200", "580.1")


def levels(findings: list[CheckResult]) -> list[tuple[Level, str | None]]:
    return [(finding.level, finding.node) for finding in findings]


def node(name: str, cpus: float = 4, gpus: int = 0, is_head: bool = False) -> Node:
    return Node(name, name, name, cpus, gpus, GB, is_head)


def machine(
    used: float = 0.5,
    shared: int | None = 8 * GB,
    folder: str | None = "/dev/shm",
    files: int = 65536,
) -> Machine:
    return Machine((Disk("/tmp/ray", "logs", 100 * GB, int(100 * GB * (1 - used))),), shared, folder, files)


def test_a_version_that_one_node_has_alone_is_named_with_the_node() -> None:
    same = {"the driver": VERSIONS, "a": VERSIONS, "b": VERSIONS}
    (fine,) = judge_versions(same)
    assert fine.level == OK
    assert "sceneparse" not in fine.message, "whose code may come as the working directory"
    (found,) = judge_versions({**same, "b": {**VERSIONS, "torch": "2.13.0"}})
    assert found.level == FAIL
    assert found.message.startswith("torch is 2.13.0 on b, and 2.14.1 everywhere else; ")


def test_the_code_is_compared_and_not_the_version_of_the_day_when_it_was_installed() -> None:
    older = {**VERSIONS, "sceneparse": "0.1.0"}
    newer = {**VERSIONS, "sceneparse": "0.1.1.dev3+g1234567"}
    (fine,) = judge_versions({"the driver": newer, "a": older})
    assert fine.level == OK
    assert "sceneparse 0.1.1.dev3+g1234567" in fine.message
    (found,) = judge_versions({"the driver": newer, "a": {**older, "code": "abcdef01"}})
    assert (found.level, found.message[:17]) == (FAIL, "code is abcdef01 ")


def test_a_package_that_is_missing_everywhere_is_no_agreement() -> None:
    nowhere = {**VERSIONS, "torch": None}
    (found,) = judge_versions({"the driver": nowhere, "a": nowhere})
    assert (found.level, found.message.split(";")[0]) == (FAIL, "torch is not installed")


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "level"),
    [
        (0.5, 0.1, OK),
        (-59, 0.5, OK),
        (61, 0.1, WARN),
        (-800, 1, WARN),
        (901, 0.5, FAIL),
        (-4000, 1, FAIL),
        (0, 100, WARN),
    ],
)
def test_a_clock_is_judged_by_what_s3_refuses(ahead: float, uncertainty: float, level: Level) -> None:
    (found,) = judge_skews({"a": Skew(ahead, uncertainty)})
    assert found.level == level
    if abs(ahead) > 60:
        assert ("behind" if ahead < 0 else "ahead of") in found.message


def test_the_storage_clock_counts_as_one() -> None:
    fine = {"a": Skew(0, 0.1)}
    assert levels(judge_skews(fine, Skew(-1200, 1))) == [(FAIL, "storage")]
    (found,) = judge_skews(fine, Skew(0.3, 0.6))
    assert found.message == "nodes within 0.000 s (± 0.100 s) of the driver, storage within 0.300 s (± 0.600 s)"


def test_a_skew_is_known_to_half_the_time_of_the_question() -> None:
    assert skew_of(Answer(1010.0, sent=1000.0, received=1004.0)) == Skew(8.0, 2.0)


@pytest.mark.parametrize(("used", "level"), [(0.5, OK), (0.9, WARN), (0.96, FAIL)])
def test_a_disk_is_judged_by_where_ray_stops_to_spill(used: float, level: Level) -> None:
    found = judge_disks({"a": machine(), "b": machine(used)})
    assert levels(found) == [(level, None if level == OK else "b")]


def test_shared_memory_must_hold_the_object_store() -> None:
    stores = {"a": 2 * GB, "b": 2 * GB}
    fine = machine()
    assert levels(judge_shared_memory({"a": fine, "b": fine}, stores)) == [(OK, None)]
    # A container's default, for which Ray takes a disk.
    moved = judge_shared_memory({"a": fine, "b": machine(shared=67_108_864, folder="/tmp")}, stores)
    assert levels(moved) == [(WARN, "b")]
    assert "/dev/shm has 67 MB" in moved[0].message
    assert "--shm-size" in moved[0].message
    assert levels(judge_shared_memory({"a": fine, "b": machine(shared=GB)}, stores)) == [(FAIL, "b")]
    assert levels(judge_shared_memory({"a": machine(shared=None, folder=None)}, stores)) == [(OK, None)], "not seen"


@pytest.mark.parametrize(("files", "level"), [(65536, OK), (4096, WARN), (256, FAIL)])
def test_open_files(files: int, level: Level) -> None:
    assert levels(judge_open_files({"a": machine(files=files)})) == [(level, None if level == OK else "a")]


def test_a_head_alone_is_no_cluster_that_has_been_checked() -> None:
    assert levels(judge_nodes([node("head", cpus=0, is_head=True)], [])) == [(WARN, None)]
    assert levels(judge_nodes([node("head", cpus=0, is_head=True), node("a")], [])) == [(OK, None)]
    (own,) = judge_nodes([node("a", cpus=8, is_head=True)], [], private=True)
    assert own.message.startswith("only this machine, since RAY_ADDRESS is not set; ")
    assert judge_nodes([], [CheckResult(FAIL, "gave no answer", "a")]) == [CheckResult(FAIL, "gave no answer", "a")]


@pytest.mark.parametrize(
    ("offered", "installed", "level"),
    [(1, [H200], None), (0, [], None), (2, None, None), (2, [H200], FAIL), (1, [], FAIL), (0, [H200], WARN)],
)
def test_what_ray_offers_is_what_the_driver_shows(
    offered: int, installed: list[Installed] | None, level: Level | None
) -> None:
    assert [finding.level for finding in judge_offer("a", offered, installed)] == ([level] if level else [])


def test_gpus_that_torch_does_not_see_are_told_with_the_likely_reason() -> None:
    def message(tried: Tried, installed: list[Installed] | None) -> str:
        (found,) = judge_tried("a", 1, tried, installed)
        assert found.level == FAIL
        return found.message

    assert "built for CPUs only" in message(Tried("2.14.1+cpu", None), [H200])
    assert "there is no driver" in message(Tried("2.14.1", "13.0"), None)
    assert "driver 580.1 may be too old" in message(Tried("2.14.1", "13.0"), [H200])
    older = [Installed("NVIDIA H200", "575.57.08")]
    assert "CUDA 13.0 needs driver 580 or newer, and 575.57.08 is installed" in message(Tried("2.14.1", "13.0"), older)
    assert "driver 575.57.08 may be too old" in message(Tried("2.14.1", "12.8"), older)
    assert "has no NCCL" in message(Tried("2.14.1", "13.0", ("NVIDIA H200",)), [H200])
    assert judge_tried("a", 1, Tried("2.14.1", "13.0", ("NVIDIA H200",), nccl="2.28"), [H200]) == []


def test_gpus_without_bfloat16_are_warned_of_and_unlike_nodes_too() -> None:
    old = Tried("2.14.1", "13.0", ("Tesla T4",), native_bfloat16=False, nccl="2.28")
    assert levels(judge_tried("a", 1, old, None)) == [(WARN, "a")]
    assert levels(judge_uniform({"580.1", "570.2"}, {"13.0"})) == [(WARN, None)]
    assert levels(judge_uniform({"580.1"}, {"13.0", "12.8"})) == [(FAIL, None)]
    assert judge_uniform({"580.1"}, {"13.0"}) == []


def test_gpus_older_than_torch_and_kernels_that_do_not_compile_are_reported() -> None:
    tried = Tried("2.14.1", "13.0", ("Tesla V100",), nccl="2.28", unsupported=("Tesla V100",), oldest="7.5")
    (found,) = judge_tried("a", 1, tried, [H200])
    assert found.level == FAIL
    assert "compute capability 7.5 or newer, not for Tesla V100" in found.message
    tried = Tried("2.14.1", "13.0", ("NVIDIA H200",), nccl="2.28", compile_error="Python.h: No such file")
    (found,) = judge_tried("a", 1, tried, [H200])
    assert found.level == WARN
    assert "torch.compile failed (Python.h: No such file)" in found.message
    assert "python3-dev" in found.message


def test_the_oldest_gpu_is_that_of_torchs_architectures() -> None:
    assert oldest_capability(["sm_100", "sm_75", "sm_90a", "compute_120"]) == (7, 5)
    assert oldest_capability([]) is None


def test_a_kernel_is_compiled_and_its_result_checked() -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Python.h: No such file\n\nTraceback")

    cpu = torch.device("cpu")
    assert compile_error(cpu, "eager") is None
    assert "Python.h: No such file" in (compile_error(cpu, fails) or "")
    wrong = compile_error(cpu, lambda graph, _: lambda *inputs: (graph(*inputs)[0] + 1,))
    assert wrong == "a compiled kernel gave a wrong result on cpu"


def test_every_node_is_in_a_pair_and_no_two_pairs_of_a_round_share_one() -> None:
    assert rounds_of_pairs([]) == []
    assert rounds_of_pairs([node("0")]) == [[(node("0"), node("0"))]]
    for count in range(2, 9):
        nodes = [node(str(n)) for n in range(count)]
        rounds = rounds_of_pairs(nodes)
        for pairs in rounds:
            used = [one for pair in pairs for one in pair]
            assert len(used) == len(set(used))
        assert {one for pairs in rounds for pair in pairs for one in pair} == set(nodes)


def test_a_slow_pair_and_a_slow_node_are_named() -> None:
    found = judge_reduced("gloo", {"a with b": 1000, "c with d": 900, "e with f": 100}, alone=False)
    assert levels(found) == [(OK, None), (WARN, "e with f")]
    assert "100 MB/s to 1000 MB/s" in found[0].message
    rates = {"a": Rates(100, 200), "b": Rates(110, 190), "c": Rates(105, 20)}
    assert levels(judge_rates(rates, rates, 64)) == [(OK, None), (WARN, "c")]
    assert judge_rates(rates, rates, 64)[1].message.startswith("down 20 MB/s, but the median is 190; ")
    assert math.isclose(sum(its.up for its in rates.values()), 315)
    assert "315 up and 410 down in total" in judge_rates(rates, rates, 64)[0].message


@pytest.mark.parametrize(
    ("let_in", "own_mode", "modes", "private", "level"),
    [
        (False, True, {"a": True}, False, OK),
        (None, True, {"a": True}, False, OK),
        (True, True, {"a": True}, False, FAIL),
        (None, False, {"a": False}, False, FAIL),
        (False, True, {"a": False}, False, WARN),
        (None, False, {"a": False}, True, OK),
    ],
)
def test_a_cluster_must_ask_for_a_token(
    let_in: bool | None, own_mode: bool, modes: dict[str, bool], private: bool, level: Level
) -> None:
    assert [finding.level for finding in judge_authentication(let_in, own_mode, modes, private)] == [level]


@pytest.mark.parametrize(
    ("dashboard", "level"),
    [
        (None, OK),
        (Dashboard("127.0.0.1", 8265, 401, None), OK),
        (Dashboard("127.0.0.1", 8265, 200, None), WARN),
        (Dashboard("127.0.0.1", 8265, 200, 200), FAIL),  # it says loopback, but others reach it
        (Dashboard("10.0.0.5", 8265, 200, 200), FAIL),
        (Dashboard("10.0.0.5", 8265, 401, 401), OK),
        (Dashboard("10.0.0.5", 8265, None, None), WARN),
        (Dashboard("203.0.113.9", 8265, 401, 401), OK),  # an address for documentation, which is no public one
        (Dashboard("8.8.8.8", 8265, 401, 401), WARN),
        (Dashboard("8.8.8.8", 8265, 200, None), FAIL),
    ],
)
def test_whom_the_dashboard_lets_in(dashboard: Dashboard | None, level: Level) -> None:
    assert [finding.level for finding in judge_dashboard(dashboard)] == [level]
