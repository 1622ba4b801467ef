"""The stages of an evaluation on one block, in one process: load, predict, count."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models import Predictor, Protocol, SlidingPredictor
from models.inference.temperature import best_temperature
from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorSpec, with_protocol
from pipeline.config.data import DataConfig
from pipeline.config.training import ProtocolConfig
from pipeline.datasets import list_pairs, load_pair
from pipeline.errors import UserError
from pipeline.evaluate import stages
from pipeline.evaluate.stages import EvalCounts, EvalOptions, Evaluator, counts_of, listed_block, load
from pipeline.images.codec import encode_image, encode_mask
from pipeline.metrics.confusion import Metrics, confusion_matrix
from tests.evaluation_samples import dataset_of, save_model
from tests.pipeline.datasets.test_nodata import FILLED_HW3, LABEL_HW, MEAN, VALID_HW, holed_dataset
from tests.scene_data import PALETTE, write_training_set

EVERYTHING = EvalOptions(boundary=True, calibration=True, fit_temperature=True, panel=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("best"))


@pytest.fixture(scope="module")
def data(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = str(tmp_path_factory.mktemp("scenes"))
    write_training_set(root, num_train=0, num_val=3)
    return dataset_of(checkpoint, root)


@pytest.fixture(scope="module")
def loaded(data: DataConfig) -> pa.Table:
    return pa.concat_tables(load(listed_block(0, list_pairs(data, "val")), data))


def evaluator(checkpoint: str, data: DataConfig, eval_options: EvalOptions = EVERYTHING) -> Evaluator:
    spec = PredictorSpec(checkpoint, ProtocolConfig(), gpu=False, precision="float32", threads=torch.get_num_threads())
    return Evaluator(spec, data, eval_options)


@pytest.fixture(scope="module")
def actor(checkpoint: str, data: DataConfig) -> Evaluator:
    return evaluator(checkpoint, data)


@pytest.fixture(scope="module")
def part(actor: Evaluator, loaded: pa.Table) -> EvalCounts:
    (part,) = counts_of(actor(loaded))
    return part


def test_a_block_is_counted_as_its_images_one_by_one(checkpoint: str, data: DataConfig, part: EvalCounts) -> None:
    predictor = Checkpoint.load(checkpoint, None).predictor("cpu", "float32")
    total_KK = np.zeros((11, 11), np.int64)
    for pair, result in zip(list_pairs(data, "val"), part.images, strict=True):
        image_HW3, label_HW = load_pair(pair, data)
        predicted_HW = predictor.predict(image_HW3[None]).class_ids_NHW[0]
        confusion_KK = confusion_matrix(label_HW, predicted_HW, 11, 255)
        metrics = Metrics.of(confusion_KK)
        assert (result.pair, result.labelled_pixels) == (pair, confusion_KK.sum())
        assert (result.miou, result.pixel_accuracy) == (metrics.miou, metrics.pixel_accuracy)
        total_KK += confusion_KK
    np.testing.assert_array_equal(part.confusion_KK, total_KK)
    assert part.confidence.pixels_B.sum() == total_KK.sum()
    assert part.confidence.correct_B.sum() == np.diag(total_KK).sum()
    assert 0 < part.boundary.intersection_K.sum() < part.boundary.union_K.sum()
    assert (total_KK.sum(0) > 0).sum() >= 3, "the network labels all alike, which tests nothing"


def test_blocks_add_up_to_the_same_digits(actor: Evaluator, loaded: pa.Table, part: EvalCounts) -> None:
    rows = [counts_of(actor(loaded.slice(n, 1)))[0] for n in (2, 0, 1)]
    total = rows[0] + rows[1] + rows[2]
    np.testing.assert_array_equal(total.confusion_KK, part.confusion_KK)
    np.testing.assert_array_equal(total.confidence.confidence_B, part.confidence.confidence_B)
    np.testing.assert_array_equal(total.boundary.union_K, part.boundary.union_K)


def test_the_sampled_slopes_lead_to_the_best_temperature_of_all_pixels(
    actor: Evaluator, part: EvalCounts, monkeypatch: pytest.MonkeyPatch, loaded: pa.Table
) -> None:
    sampled = sum(image.slopes_T for image in part.images)
    monkeypatch.setattr(stages, "SAMPLED_PIXELS", 10**9)
    (whole,) = counts_of(actor(loaded))
    of_all = sum(image.slopes_T for image in whole.images)
    assert best_temperature(sampled) == pytest.approx(best_temperature(of_all), rel=0.1)
    assert not np.array_equal(sampled, of_all)


def test_an_image_without_a_labelled_pixel_has_no_say_in_the_temperature(actor: Evaluator, loaded: pa.Table) -> None:
    (row,) = loaded.slice(0, 1).to_pylist()
    row["label"] = np.full((row["height"], row["width"]), 255, np.uint16).tobytes()
    (found,) = counts_of(actor(pa.Table.from_pylist([row], stages.LOADED)))
    assert not found.images[0].slopes_T.any()
    assert found.confusion_KK.sum() == 0


def test_pixels_without_data_are_not_counted_and_the_others_as_with_the_mean_color(
    checkpoint: str, actor: Evaluator, data: DataConfig, tmp_path: Path
) -> None:
    pair, _ = holed_dataset(tmp_path, data.val_split, label_HW=LABEL_HW)
    (row,) = pa.concat_tables(load(listed_block(0, [pair]), data, MEAN)).to_pylist()
    (found,) = counts_of(actor(pa.Table.from_pylist([row], stages.LOADED)))
    predictor = Checkpoint.load(checkpoint, None).predictor("cpu", "float32")
    predicted_HW = predictor.predict(FILLED_HW3[None]).class_ids_NHW[0]
    counted_HW = VALID_HW & (LABEL_HW != 255)
    assert found.confusion_KK.sum() == counted_HW.sum()
    expected_KK = confusion_matrix(LABEL_HW[counted_HW], predicted_HW[counted_HW], len(data.classes), 255)
    np.testing.assert_array_equal(found.confusion_KK, expected_KK)
    assert found.confidence.pixels_B.sum() == counted_HW.sum()


def test_only_what_is_wanted_is_counted(checkpoint: str, data: DataConfig, loaded: pa.Table) -> None:
    eval_options = EvalOptions(calibration=False)
    (part,) = counts_of(evaluator(checkpoint, data, eval_options)(loaded))
    assert part.confusion_KK.any()
    assert not part.boundary.union_K.any()
    assert not part.confidence.pixels_B.any()
    assert {(image.slopes_T is None, image.picture is None) for image in part.images} == {(True, True)}


def test_pictures_are_small_and_show_image_truth_and_prediction(data: DataConfig, part: EvalCounts) -> None:
    assert [image.picture is not None for image in part.images] == [True, False, False]
    shown = part.images[0].picture.arrays()
    image_HW3, label_HW = load_pair(part.images[0].pair, data)
    np.testing.assert_array_equal(shown["truth"], label_HW)
    assert np.abs(shown["image"].astype(int) - image_HW3).mean() < 5  # JPEG

    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (200, 900, 3), dtype=np.uint8)
    ids = rng.integers(0, 300, (400, 1800)).astype(np.int32)
    arrays = stages.Picture.of(large, ids, ids).arrays()
    assert {array.shape[:2] for array in arrays.values()} == {(70, 320)}
    assert np.isin(arrays["predicted"], ids).all()
    assert arrays["predicted"].max() > 255


def test_annotations_are_compared_at_their_own_size(actor: Evaluator, data: DataConfig, part: EvalCounts) -> None:
    small = data.model_copy(update={"long_side": 64})
    rows = pa.concat_tables(load(listed_block(0, list_pairs(data, "val")), small)).to_pylist()
    assert {(row["input_height"], row["input_width"]) for row in rows} == {(64, 64)}
    assert {(row["height"], row["width"]) for row in rows} == {(65, 65)}
    (of_small,) = counts_of(actor(pa.Table.from_pylist(rows, stages.LOADED)))
    assert of_small.confusion_KK.sum() == part.confusion_KK.sum()


def test_large_images_are_handed_on_in_pieces(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LOADED_BYTES", 30_000)
    pieces = list(load(listed_block(7, list_pairs(data, "val")), data))
    assert [piece["number"].to_pylist() for piece in pieces] == [[7, 8], [9]]


def test_a_bad_annotation_is_named(data: DataConfig, tmp_path: Path) -> None:
    image = np.zeros((65, 65, 3), np.uint8)
    storage.write_bytes(f"{tmp_path}/images/val/a.jpg", encode_image(image))
    storage.write_bytes(f"{tmp_path}/annotations/val/a.png", encode_mask(np.full((65, 65), 77, np.uint8), PALETTE))
    broken = data.model_copy(update={"root": tmp_path.as_uri()})
    with pytest.raises(UserError, match=r"annotations/val/a\.png.*77"):
        list(load(listed_block(0, list_pairs(broken, "val")), broken))


def test_another_models_classes_are_refused(checkpoint: str, data: DataConfig, loaded: pa.Table) -> None:
    actor = evaluator(checkpoint, data.model_copy(update={"classes": data.classes[::-1]}))
    with pytest.raises(UserError, match=r"its classes differ from data\.classes"):
        actor(loaded)


def test_the_protocol_decides_what_predicts(checkpoint: str) -> None:
    predictor = Checkpoint.load(checkpoint, None).predictor("cpu", "float32")
    assert with_protocol(predictor, ProtocolConfig()) is predictor
    whole = with_protocol(predictor, ProtocolConfig(mirror=True, scales=(0.5, 1.0)))
    assert isinstance(whole, SlidingPredictor)
    assert whole.protocol == Protocol(base_size=None, crop=None, mirror=True, scales=(0.5, 1.0))
    short = with_protocol(predictor, ProtocolConfig(short_side=512))
    assert short.protocol == Protocol(base_size=None, crop=None, short_side=512)
    sliding = with_protocol(predictor, ProtocolConfig(mode="sliding", crop=65, base_size=None))
    assert isinstance(sliding, SlidingPredictor)
    assert sliding.protocol == Protocol(base_size=None, crop=65)
    assert isinstance(predictor, Predictor)


def test_too_little_memory_names_the_image_and_the_way_out(
    actor: Evaluator, loaded: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("not enough memory for the upsampled rows")

    monkeypatch.setattr(actor.predictor, "predict", fail)
    with pytest.raises(UserError, match=r"1000\.jpg: not enough memory .* 65 x 65 .*; lower data.long_side"):
        actor(loaded)


def test_loading_processes_do_not_pay_for_torch() -> None:
    code = "import sys, pipeline.evaluate.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
