"""Evaluation on a cluster: exact whatever its shape, and what the user can mend comes out as such."""

from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline import storage
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.cluster.sizing import Reservation
from pipeline.config.data import DataConfig
from pipeline.config.training import ProtocolConfig
from pipeline.datasets import Pair, list_pairs, load_pair
from pipeline.errors import UserError, user_error
from pipeline.evaluate.evaluation import Evaluation, OnProgress, evaluate
from pipeline.evaluate.stages import EvalOptions
from pipeline.images.codec import encode_mask
from pipeline.metrics.confusion import confusion_matrix
from tests.evaluation_samples import dataset_of, save_model
from tests.scene_data import PALETTE, write_training_set

pytestmark = pytest.mark.slow

NUM_IMAGES = 10  # three blocks, the last one of two images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("best"))


@pytest.fixture(scope="module")
def data(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = str(tmp_path_factory.mktemp("scenes"))
    write_training_set(root, num_train=0, num_val=NUM_IMAGES)
    return dataset_of(checkpoint, root)


EVERYTHING = EvalOptions(boundary=True, fit_temperature=True, panel=2, worst=3)


def run(
    checkpoint: str,
    data: DataConfig,
    pairs: list[Pair],
    predictors: int = 1,
    gpu: bool = False,
    options: EvalOptions = EVERYTHING,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    spec = PredictorSpec(checkpoint, ProtocolConfig(), gpu, "float32", threads=1)
    return evaluate(spec, pairs, data, Reservation("predictors", predictors, 1, gpu), options, on_progress)


@pytest.fixture(scope="module")
def evaluation(connected: None, checkpoint: str, data: DataConfig) -> Evaluation:
    return run(checkpoint, data, list_pairs(data, "val"))


def test_the_counts_are_those_of_a_plain_loop(checkpoint: str, data: DataConfig, evaluation: Evaluation) -> None:
    predictor = Checkpoint.load(checkpoint, None).predictor("cpu", "float32")
    expected_KK = np.zeros((11, 11), np.int64)
    for pair in list_pairs(data, "val"):
        image_HW3, label_HW = load_pair(pair, data)
        expected_KK += confusion_matrix(label_HW, predictor.predict(image_HW3[None]).class_ids_NHW[0], 11, 255)
    moved = np.abs(evaluation.confusion_KK - expected_KK).sum() / expected_KK.sum()
    assert moved < 1e-4  # another number of threads may move a tie
    assert evaluation.confusion_KK.sum() == expected_KK.sum()
    assert [image.image_uri for image in evaluation.images] == [pair.image_uri for pair in list_pairs(data, "val")]


def test_actors_and_the_order_of_pairs_change_no_digit(
    checkpoint: str, data: DataConfig, evaluation: Evaluation
) -> None:
    """Run inside a task that leaves two logical CPUs free, and on three with two actors."""
    shuffled = [list_pairs(data, "val")[index] for index in np.random.default_rng(0).permutation(NUM_IMAGES)]
    for predictors, taken in ((1, 6), (2, 5)):
        task = ray.remote(num_cpus=taken)(run)
        other = ray.get(task.remote(checkpoint, data, shuffled, predictors))
        np.testing.assert_array_equal(other.confusion_KK, evaluation.confusion_KK)
        np.testing.assert_array_equal(other.confidence.confidence_B, evaluation.confidence.confidence_B)
        np.testing.assert_array_equal(other.boundary.intersection_K, evaluation.boundary.intersection_K)
        assert other.temperature_factor == evaluation.temperature_factor
        assert other.images == evaluation.images
        assert other.as_dict(list("abcdefghijk")) == evaluation.as_dict(list("abcdefghijk"))


def test_the_panel_and_the_worst_images_are_kept_to_look_at(evaluation: Evaluation) -> None:
    scores = evaluation.images
    assert [entry["image_uri"] for entry in evaluation.panel] == [score.image_uri for score in scores[:2]]
    lowest = sorted(scores, key=lambda score: score.miou)[:3]
    assert [(entry["image_uri"], entry["miou"]) for entry in evaluation.worst] == [
        (score.image_uri, score.miou) for score in lowest
    ]
    for entry in evaluation.panel + evaluation.worst:
        assert entry["image"].shape == (65, 65, 3)
        assert entry["truth"].shape == entry["predicted"].shape == (65, 65)


def test_progress_ends_with_all_images(connected: None, checkpoint: str, data: DataConfig) -> None:
    calls: list[tuple[int, int]] = []
    options = EvalOptions(calibration=False)
    pairs = list_pairs(data, "val")[:5]
    found = run(checkpoint, data, pairs, options=options, on_progress=lambda *call: calls.append(call))
    assert sorted(calls) == calls
    assert calls[-1] == (5, 5)
    assert (found.confidence, found.boundary, found.temperature_factor) == (None, None, None)
    assert (found.panel, found.worst) == ([], [])


def test_a_bad_annotation_is_an_error_of_the_users(
    connected: None, checkpoint: str, data: DataConfig, tmp_path: Path
) -> None:
    write_training_set(str(tmp_path), num_train=0, num_val=2)
    storage.write_bytes(f"{tmp_path}/annotations/val/1001.png", encode_mask(np.full((65, 65), 77, np.uint8), PALETTE))
    broken = data.model_copy(update={"root": tmp_path.as_uri()})
    with pytest.raises(UserError, match=r"annotations/val/1001\.png.*77"):
        run(checkpoint, broken, list_pairs(broken, "val"))
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(ray.remote(run).remote(checkpoint, broken, list_pairs(broken, "val")))
    assert "1001.png" in str(user_error(raised.value))


def test_what_cannot_work_is_an_error_of_the_users(
    connected: None, checkpoint: str, data: DataConfig, tmp_path: Path
) -> None:
    pairs = list_pairs(data, "val")[:1]
    void = data.model_copy(update={"label_map": {k: 255 for k in range(11)}})
    with pytest.raises(UserError, match=r"every pixel of split 'val' has the ignore_index 255"):
        run(checkpoint, void, pairs)
    with pytest.raises(UserError, match=r"nowhere.*config\.json does not exist"):
        run(str(tmp_path / "nowhere"), data, pairs)
    with pytest.raises(UserError, match=r"8 predictors .* need 9 CPUs and 0 GPUs, but the cluster has 8 and 0"):
        run(checkpoint, data, pairs, predictors=8)
    with pytest.raises(UserError, match=r"and a GPU each .* need 2 CPUs and 1 GPUs, but the cluster has 8 and 0"):
        run(checkpoint, data, pairs, gpu=True)
