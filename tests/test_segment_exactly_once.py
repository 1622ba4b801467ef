"""Each image has one row: of several waves, beside images that kill processes, and where work is repeated."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from jobs import segment_bucket
from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.codec import decode_raster, encode_png
from pipeline.output.lease import Lease, hold
from pipeline.output.schema import DECODED, table
from pipeline.segment import decode_stage, worklist
from pipeline.segment import run as segmentation
from pipeline.segment.predict_stage import PredictStage
from pipeline.storage import s3_objects
from tests.output_checks import check_invariants
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("connected")]

DEADLY = 77  # the gray of images that kill
PIECE_BYTES = 40_000  # two photos, or three
ODD_NAMES = ["a b%41+.jpg", "q'\"=&?*[x].jpg", "line\nbreak\t.jpg", "#ü\u0301世.jpg", "-o;$(x)`.jpg", "a=1/b=2/c.jpg"]
MUDDLED = "muddled"  # file beside the photos, once it has happened


def is_deadly(image_HW3: Any) -> bool:
    return bool((image_HW3 == DEADLY).all())


def decode_or_die(content: bytes, *limits: Any) -> Any:
    raster = decode_raster(content, *limits)
    if is_deadly(raster.pixels_HW3):
        os._exit(1)
    return raster


def deadly_decode(listed: pa.Table, **arguments: Any) -> Iterator[pa.Table]:
    decode_stage.decode_raster = decode_or_die  # of this worker
    try:
        yield from decode_stage.decode(listed, **arguments)
    finally:
        decode_stage.decode_raster = decode_raster


class DeadlySegmenter(PredictStage):
    def _predict_what_fits(self, images_NHW3: Any, batch: Any) -> list[Any]:
        if any(map(is_deadly, images_NHW3)):
            os._exit(1)
        return super()._predict_what_fits(images_NHW3, batch)


def muddled_decode(listed: pa.Table, **arguments: Any) -> Iterator[pa.Table]:
    """As if a lost node's work had been repeated, and another image had failed: one is lost, one comes twice."""
    for piece in decode_stage.decode(listed, **arguments):
        rows = piece.to_pylist()
        mark = Path(rows[0]["image_uri"].removeprefix("file://")).parent.parent / MUDDLED
        if not mark.exists():
            mark.touch()
            failed = {"error_stage": "download", "error_type": "StorageError", "error_message": "503", "pixels": None}
            rows[1:3] = [rows[0] | failed]
        yield table(rows, DECODED)


def taken_over_decode(listed: pa.Table, **arguments: Any) -> Iterator[pa.Table]:
    """As if another run had taken the output over while this one's driver hung."""
    for piece in decode_stage.decode(listed, **arguments):
        output = Path(piece["image_uri"][0].as_py().removeprefix("file://")).parent.parent / "labels"
        content = (output / "_leases/00000001.json").read_text()
        taken = content.replace("-r1", "-r2").replace('"held"', '"failed"').replace('"nonce": "', '"nonce": "other')
        (output / "_leases/00000002.json").write_text(taken)
        yield piece


def decode_in_pieces(listed: pa.Table, **arguments: Any) -> Iterator[pa.Table]:
    whole, decode_stage.DECODED_BYTES = decode_stage.DECODED_BYTES, PIECE_BYTES  # of this worker
    try:
        pieces = list(decode_stage.decode(listed, **arguments))
    finally:
        decode_stage.DECODED_BYTES = whole
    assert len(pieces) > 1
    yield from pieces


class Run:
    """One run of the job in this process, whose Ray it uses."""

    def __init__(self, folder: Path, num_deadly: int = 0) -> None:
        self._photos, self.output, self._checkpoint = folder / "photos", str(folder / "labels"), folder / "checkpoint"
        self.uris = write_photos(str(self._photos), 40)
        self.deadly = [storage.absolute(f"{self._photos}/deadly {n}.png") for n in range(num_deadly)]
        for uri in self.deadly:
            storage.write_bytes(uri, encode_png(np.full((65, 97, 3), DEADLY, np.uint8)))
        save_checkpoint(self._checkpoint)
        self.places = ["--input", str(self._photos), "--output", self.output, "--checkpoint", str(self._checkpoint)]

    def __call__(self, *options: str) -> int:
        return segment_bucket.main([*self.places, *options])

    def rows(self) -> dict[str, dict[str, Any]]:
        return check_invariants(self.output, [*map(storage.absolute, self.uris), *self.deadly])


@pytest.mark.parametrize("stage", ["decode", "predict"])
def test_images_that_kill_the_process_that_works_on_them_are_failures_like_others(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, num_deadly=2)
    with monkeypatch.context() as patch:
        if stage == "decode":
            patch.setattr(segmentation, "decode", deadly_decode)
        else:
            patch.setattr(segmentation, "PredictStage", DeadlySegmenter)
        assert run() == 0
    rows = run.rows()
    failed = {uri: (row["error_stage"], row["error_type"]) for uri, row in rows.items() if row["status"] == "error"}
    assert failed == dict.fromkeys(run.deadly, (stage, "Crashed"))
    printed = capsys.readouterr().out
    assert f"images to {stage}; retrying them one by one" in printed
    assert f"Crashed at {stage}: the worker crashed each time it tried to {stage} this image" in printed

    assert run("--retry-errors", "Crashed") == 0
    assert {row["status"] for row in run.rows().values()} == {"ok"}


def test_waves_of_many_pieces_and_odd_names_leave_each_image_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    for name in ODD_NAMES:
        run.uris.append(f"{tmp_path}/photos/{name}")
        storage.write_bytes(run.uris[-1], storage.read_bytes(run.uris[0]))
    monkeypatch.setattr(worklist, "MAX_WAVE", 20)
    monkeypatch.setattr(worklist, "MAX_TABLE", 10)
    monkeypatch.setattr(s3_objects, "PAGE", 10)
    monkeypatch.setattr(segmentation, "DECODED_BYTES", PIECE_BYTES)
    monkeypatch.setattr(segmentation, "decode", decode_in_pieces)
    waves = []
    label_wave = segmentation._run_wave
    monkeypatch.setattr(
        segmentation, "_run_wave", lambda *given: waves.append(len(given[2].images)) or label_wave(*given)
    )
    assert run("--rows-per-part", "7") == 0
    assert sum(waves) == len(run.uris)
    assert len(waves) > 1
    assert {row["status"] for row in run.rows().values()} == {"ok"}
    assert run() == 0
    assert f"{len(run.uris)} already completed, 0 in this run" in capsys.readouterr().out


def test_images_that_repeated_work_lost_or_doubled_are_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(segmentation, "decode", muddled_decode)
    assert run("--rows-per-part", "8") == 0
    assert (tmp_path / MUDDLED).exists()
    assert {row["status"] for row in run.rows().values()} == {"ok"}
    printed = capsys.readouterr().out
    assert "Images were duplicated or lost when a lost node's work was repeated" in printed
    assert "40 in the input, 0 already completed, 40 in this run" in printed
    runs = [json.loads(storage.read_bytes(uri)) for uri in sorted(storage.find(f"{run.output}/runs"))]
    assert [entry["outcomes"] for entry in runs] == [{"ok": 38}, {"ok": 2}]


def test_a_run_that_cannot_be_put_right_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(segmentation, "decode", muddled_decode)
    monkeypatch.setattr(segmentation, "MAX_REPEATS", 0)
    assert run() == 1
    assert "images have missing or duplicate rows. Run the same command again" in capsys.readouterr().out
    assert run() == 0
    assert {row["status"] for row in run.rows().values()} == {"ok"}


def test_a_run_whose_output_is_written_by_another_is_refused_before_it_does_anything(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with hold(storage.absolute(run.output)) as held, pytest.raises(UserError, match=f"written by run {held.run_id}"):
        run()
    assert [uri.split("/")[-2] for uri in storage.find(run.output)] == ["_leases"]
    assert run() == 0
    assert {row["status"] for row in run.rows().values()} == {"ok"}


def test_a_run_that_is_taken_over_stops_and_commits_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "decode", taken_over_decode)
        with pytest.raises(UserError, match=r"was taken over by run \S+-r2 on .*; this run has stopped writing to it"):
            run("--rows-per-part", "8")
    assert storage.find(f"{run.output}/masks") == {}
    assert storage.find(f"{run.output}/runs") == {}
    # An actor that was starting when the run failed would keep the head's CPUs as long as this process is connected.
    ray.shutdown()
    assert run() == 0
    assert {row["run_id"].rpartition("-")[2] for row in run.rows().values()} == {"r3"}


def test_a_commit_that_comes_after_its_run_was_taken_over_is_waited_for_and_leaves_each_image_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    assert run("--rows-per-part", "8") == 0
    late = next(iter(storage.find(f"{run.output}/masks")))
    content = storage.read_bytes(late)
    storage.remove(late)  # of its two files the second one is still on its way
    waited = []

    def comes_late(lease: Lease, in_doubt: float) -> None:
        waited.append(in_doubt)
        if len(waited) == 1:
            storage.write_bytes(late, content)

    monkeypatch.setattr(segmentation, "_wait_for_commits", comes_late)
    assert run("--rows-per-part", "8") == 0
    assert waited == [60, 0]
    assert f"(masks/{late.rpartition('/')[2]} was written by another run)" in capsys.readouterr().out
    rows = run.rows()
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["run_id"].rpartition("-")[2] for row in rows.values()} == {"r1", "r2"}
