"""The predicting actor: blocks that come at the same time, as Ray brings them."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorSpec, is_out_of_memory
from pipeline.cluster.progress_actor import start_progress_actor
from pipeline.config.training import ProtocolConfig
from pipeline.images.codec import encode_mask
from pipeline.segment import prometheus
from pipeline.segment.decode_stage import Limits, Preparation, decode
from pipeline.segment.error_rate import ErrorLimit
from pipeline.segment.predict_stage import CALLS, PredictStage
from pipeline.segment.progress import SegmentationProgressActor
from tests.pipeline.samples import encoded, random_image, write_file
from tests.pipeline.segment.test_decode_stage import listed
from tests.test_segment_job import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("connected")]

NUM_BLOCKS, IMAGES_OF_A_BLOCK = 4, 5
LIMITS = Limits(10_000, 50_000, 60)


@pytest.fixture
def blocks(tmp_path: Path) -> list[pa.Table]:
    """DECODED tables of images of two sizes, one of them broken."""
    made = []
    for block in range(NUM_BLOCKS):
        uris = []
        for number in range(IMAGES_OF_A_BLOCK):
            image = random_image(33 if number % 2 else 49, 65, seed=10 * block + number)
            content = encoded(image, "PNG") if number else b"no image"
            uris.append(str(write_file(tmp_path / f"{block}-{number}.png", content)))
        made.append(pa.concat_tables(decode(listed([{"image_uri": uri} for uri in uris]), LIMITS, Preparation())))
    return made


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    save_checkpoint(tmp_path / "checkpoint")
    model_id = Checkpoint.load(str(tmp_path / "checkpoint"), None).model_id

    def made(progress_actor: Any, batch_size: int = 2) -> PredictStage:
        place = str(tmp_path / "checkpoint")
        protocol = ProtocolConfig(mode="whole")
        spec = PredictorSpec(
            place, protocol, gpu=False, precision="float32", threads=2, batch_size=batch_size, model_id=model_id
        )
        return PredictStage(spec, ErrorLimit(0.9, num_images=1000), progress_actor)

    prometheus.report()  # what other tests have left
    yield made
    prometheus.report()


def without_seconds(tables: list[pa.Table]) -> list[dict[str, Any]]:
    return pa.concat_tables(tables).drop_columns(["seconds"]).to_pylist()


def test_blocks_at_the_same_time_have_the_rows_of_blocks_in_turn(make: Any, blocks: list[pa.Table]) -> None:
    alone = make(start_progress_actor(SegmentationProgressActor))
    expected = without_seconds([table for block in blocks for table in alone(block)])
    together = make(start_progress_actor(SegmentationProgressActor))
    with ThreadPoolExecutor(CALLS) as calls:
        found = list(calls.map(lambda block: list(together(block)), blocks))
    assert without_seconds([table for tables in found for table in tables]) == expected


def test_one_thread_predicts_whatever_thread_calls(
    make: Any, blocks: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make(start_progress_actor(SegmentationProgressActor))
    threads, predict = set(), segmenter.predictor.predict_each

    def noted(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return predict(*arguments)

    monkeypatch.setattr(segmenter.predictor, "predict_each", noted)
    with ThreadPoolExecutor(CALLS) as calls:
        list(calls.map(lambda block: list(segmenter(block)), blocks))
    assert len(threads) == 1


def test_work_of_blocks_at_the_same_time_is_counted_once(make: Any, blocks: list[pa.Table]) -> None:
    progress_actor = start_progress_actor(SegmentationProgressActor)
    segmenter = make(progress_actor)
    with ThreadPoolExecutor(CALLS) as calls:
        list(calls.map(lambda block: list(segmenter(block)), blocks))
    spent = ray.get(progress_actor.stage_seconds.remote()).spent
    good = NUM_BLOCKS * (IMAGES_OF_A_BLOCK - 1)
    assert (spent["predict"].images, spent["encode"].images) == (good, good)
    assert spent["predict"].cpu_seconds > 0
    counts = ray.get(progress_actor.read.remote()).counts
    assert counts == {"ok": good, "NotAnImage": NUM_BLOCKS}


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("no room"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_an_image_that_memory_does_not_hold_is_a_row_that_says_so(
    make: Any, blocks: list[pa.Table], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    segmenter = make(start_progress_actor(SegmentationProgressActor))
    predict = segmenter.predictor.predict_each

    def tight(images_NHW3: Any, *arguments: Any) -> Any:
        if images_NHW3.shape[1] == 33:
            raise error
        return predict(images_NHW3, *arguments)

    monkeypatch.setattr(segmenter.predictor, "predict_each", tight)
    (table,) = segmenter(blocks[0])
    failed = {row["height"] for row in table.to_pylist() if row["error_type"] == "OutOfMemory"}
    labelled = {row["height"] for row in table.to_pylist() if row["mask"] is not None}
    assert (failed, labelled) == ({33}, {49})


def test_torch_tells_of_a_cpu_without_memory_as_it_is_told_apart_here() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"))


def test_a_batch_that_memory_does_not_hold_is_predicted_in_smaller_ones(
    make: Any, blocks: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last bits of confidences depend on the number of threads that an image has, and so on the batch size.
    one_by_one = make(start_progress_actor(SegmentationProgressActor), batch_size=1)
    expected = without_seconds(list(one_by_one(blocks[0])))
    segmenter = make(start_progress_actor(SegmentationProgressActor))
    predict = segmenter.predictor.predict_each

    def tight(images_NHW3: Any, *arguments: Any) -> Any:
        if len(images_NHW3) > 1:
            raise torch.OutOfMemoryError("no room")
        return predict(images_NHW3, *arguments)

    monkeypatch.setattr(segmenter.predictor, "predict_each", tight)
    assert without_seconds(list(segmenter(blocks[0]))) == expected


def test_of_a_block_few_predictions_are_in_memory(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are at the images' own size, which may be a hundred times that of the network's input."""
    uris = [str(write_file(tmp_path / f"{n}.png", encoded(random_image(33, 65, seed=n), "PNG"))) for n in range(40)]
    block = pa.concat_tables(decode(listed([{"image_uri": uri} for uri in uris]), LIMITS, Preparation()))
    expected = without_seconds(list(make(start_progress_actor(SegmentationProgressActor))(block)))
    segmenter = make(start_progress_actor(SegmentationProgressActor))
    predict = segmenter.predictor.predict_each
    masks: list[weakref.ref[Any]] = []
    most = 0

    def noted(*arguments: Any) -> Any:
        nonlocal most
        gc.collect()
        most = max(most, sum(mask() is not None for mask in masks))
        predictions = predict(*arguments)
        masks.extend(weakref.ref(owner(one.class_ids_NHW)) for one in predictions)
        return predictions

    def encoded_slowly(*arguments: Any) -> bytes:
        time.sleep(0.05)
        return encode_mask(*arguments)

    monkeypatch.setattr(segmenter.predictor, "predict_each", noted)
    monkeypatch.setattr("pipeline.segment.predict_stage.encode_mask", encoded_slowly)
    assert without_seconds(list(segmenter(block))) == expected
    assert len(masks) == 40
    assert most <= 2 * 3  # in batches of two: one is predicted, one waits for that, one is encoded


def owner(array: Any) -> Any:
    """Return the object that owns the memory of an array."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array
