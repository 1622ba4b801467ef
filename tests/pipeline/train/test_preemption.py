"""A node that is about to be preempted asks for one checkpoint."""

from types import SimpleNamespace

import pytest
import ray.train

from pipeline.train.preemption import PreemptionNotices
from tests.pipeline.train.single_worker import worker_group, worker_spec


def test_each_node_is_news_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[list[str] | None] = [None, [], ["a"], ["a"], ["a", "b"], ["b"], None, ["a"]]
    infos = iter([None if ids is None else SimpleNamespace(preempted_node_ids=ids) for ids in nodes])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(infos))
    spec = worker_spec()
    preemption = PreemptionNotices(worker_group(spec))
    assert [preemption.has_new() for _ in nodes] == [False, False, True, False, True, False, False, False]
    lines = spec.progress_actor.actor.read().lines
    assert lines == ["A node is about to be preempted: writing a checkpoint now"] * 2
