"""Metrics of a segmentation run, as Prometheus reads them from Ray's own exporter."""

import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import storage
from pipeline.segment import prometheus
from tests.conftest import make_bucket, run_process
from tests.ray_head import ray_head
from tests.requirements import SHM
from tests.scene_data import write_photos
from tests.swift import SwiftServer
from tests.test_segment_job import save_checkpoint, upload

pytestmark = pytest.mark.slow

Sums = Counter[tuple[str, str]]  # by name of a sample, and by outcome or stage


def test_the_exporter_has_the_images_failures_stages_and_waits_of_a_run(swift: SwiftServer, tmp_path: Path) -> None:
    """On a head of its own: the exporter of a shared one counts what other runs are still reporting."""
    SHM.check()
    bucket = make_bucket()
    write_photos(f"{bucket}/photos", 20)
    storage.write_bytes(f"{bucket}/photos/empty.jpg", b"")
    save_checkpoint(tmp_path / "checkpoint")
    checkpoint = upload(tmp_path / "checkpoint", f"{bucket}/checkpoint")
    options = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", checkpoint]
    images, stages = f"ray_{prometheus.IMAGES}", f"ray_{prometheus.STAGE_SECONDS}_count"
    expected = {(images, "ok"): 20, (images, "Empty"): 1, (stages, "decode"): 21}
    with ray_head(tmp_path, swift.environment, dashboard=False) as head:
        done = run_process("jobs/segment_bucket.py", *options, **head.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        counted = wait_for(expected, head.metrics)
    assert {stage for name, stage in counted if name == stages} == set(prometheus.STAGES)
    assert counted[f"ray_{prometheus.PREDICTOR_WAIT_SECONDS}", ""] > 0


def sums(url: str) -> Sums:
    """Values of our metrics, all workers together."""
    found: Sums = Counter()
    with urllib.request.urlopen(url, timeout=30) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if sample.name.startswith("ray_sceneparse_") and not sample.name.endswith(("_bucket", "_created")):
                    key = sample.labels.get("outcome") or sample.labels.get("stage") or ""
                    found[sample.name, key] += sample.value
    return found


def wait_for(expected: dict[tuple[str, str], int], url: str) -> Sums:
    """Return what has been counted, once it is what is expected: Ray's workers report every ten seconds."""
    deadline = time.monotonic() + 60
    while True:
        counted = sums(url)
        found = {key: counted[key] for key in expected}
        if found == expected or time.monotonic() > deadline:
            assert found == expected
            return +counted
        time.sleep(1)
