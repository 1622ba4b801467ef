"""jobs/segment_bucket.py reports invalid input before any actor starts."""

import shutil
from pathlib import Path

import pytest
import ray
import s3fs

import models
from pipeline import storage
from pipeline.cluster.connection import Node, Resources
from pipeline.cluster.sizing import size_actor_pool
from pipeline.config.jobs import SegmentConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from pipeline.output.parquet import write_table
from pipeline.output.schema import CLASSES, SCHEMA_VERSION, table
from pipeline.segment.run import SegmentSummary, segment
from tests.ray_head import RayHead
from tests.scene_data import write_photos
from tests.test_segment_job import save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _reachable_head(head: RayHead, unconnected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run that connects to Ray find the head; a Ray of its own would take seconds to start."""
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return folder


def run(input_uri: object, output: object, checkpoint: object, *options: str) -> SegmentSummary:
    arguments = ["--input", str(input_uri), "--output", str(output), "--checkpoint", str(checkpoint), *options]
    try:
        return segment(load_settings(SegmentConfig, arguments, "jobs/segment_bucket.py"))
    finally:
        assert not ray.is_initialized(), "a cluster was started for a job that cannot work"


def test_an_input_without_files(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no files found; check the prefix or pattern"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint)
    with pytest.raises(UserError, match="no files found"):
        run(tmp_path / "photos" / "*.jpg", tmp_path / "out", checkpoint)


def test_a_bucket_that_does_not_exist(bucket: str, tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
        run("s3://no-such-bucket/photos", tmp_path / "out", checkpoint)
    write_photos(f"{bucket}/photos", 1)
    with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
        run(f"{bucket}/photos", "s3://no-such-bucket/out", checkpoint)


def test_a_wrong_secret_key(bucket: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(f"{bucket}/photos", 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=r"access denied .* check the AWS credentials") as raised:
            run(f"{bucket}/photos", tmp_path / "out", checkpoint)
        assert "wrong" not in str(raised.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_output_inside_the_input(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    with pytest.raises(UserError, match=r"output .* is inside input"):
        run(tmp_path / "photos", tmp_path / "photos" / "labels", checkpoint)


def test_an_output_that_cannot_be_written(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    with pytest.raises(UserError, match=r"/proc/labels"):  # where not even root may write
        run(tmp_path / "photos", "/proc/labels", checkpoint)


def test_an_output_that_is_a_file(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="out"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint)


def test_a_checkpoint_that_is_none(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    with pytest.raises(UserError, match=r"checkpoint .*config.json does not exist"):
        run(tmp_path / "photos", tmp_path / "out", tmp_path / "nowhere")
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoint .*not a readable safetensors file"):
        run(tmp_path / "photos", tmp_path / "out", tmp_path / "damaged")


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"/folder cannot be read: Input/output error; check the path"):
        run(tmp_path / "photos", tmp_path / "out", tmp_path / "folder")


def test_the_output_of_a_training_in_place_of_its_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    shutil.copytree(checkpoint, tmp_path / "run" / "best")
    with pytest.raises(UserError, match=rf"/run: is the output of a training run; use its best .*{tmp_path}/run/best$"):
        run(tmp_path / "photos", tmp_path / "out", tmp_path / "run")


def test_int8_without_a_calibration_or_with_a_gpu(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    with pytest.raises(UserError, match=r"is not calibrated, .* python jobs/calibrate\.py --checkpoint"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint, "--precision", "int8")
    with pytest.raises(UserError, match=r"precision int8 runs on CPUs only; remove --gpu"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint, "--precision", "int8", "--gpu")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_whose_weights_are_of_other_classes(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    shutil.copytree(checkpoint, tmp_path / "mixed")
    config = (tmp_path / "mixed" / "config.json").read_text()
    (tmp_path / "mixed" / "config.json").write_text(config.replace('"num_classes": 11', '"num_classes": 7'))
    with pytest.raises(UserError, match=r"11 class names, but the architecture has num_classes 7"):
        run(tmp_path / "photos", tmp_path / "out", tmp_path / "mixed")


def test_a_checkpoint_of_other_class_names_than_the_output(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    model, metadata = models.load(checkpoint)
    rows = [{"class_id": k, "class_name": f"other {k}", "red": 0, "green": 0, "blue": 0} for k in range(11)]
    names = {"sceneparse.model_id": models.model_id(model, metadata), "sceneparse.schema_version": SCHEMA_VERSION}
    write_table(str(tmp_path / "out" / "classes.parquet"), table(rows, CLASSES.with_metadata(names)))
    with pytest.raises(UserError, match=r"has the classes \['other 0'.* the checkpoint has \['class 0'"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint)


def test_an_output_of_an_older_table_schema(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    model, metadata = models.load(checkpoint)
    rows = [{"class_id": k, "class_name": f"class {k}", "red": 0, "green": 0, "blue": 0} for k in range(11)]
    marks = {"sceneparse.model_id": models.model_id(model, metadata), "sceneparse.schema_version": "1"}
    write_table(str(tmp_path / "out" / "classes.parquet"), table(rows, CLASSES.with_metadata(marks)))
    told = rf"has table schema version 1, but this program writes {SCHEMA_VERSION}; choose another --output"
    with pytest.raises(UserError, match=told):
        run(tmp_path / "photos", tmp_path / "out", checkpoint)


def test_an_output_whose_model_is_unknown(tmp_path: Path, checkpoint: Path) -> None:
    write_photos(str(tmp_path / "photos"), 1)
    storage.write_bytes(str(tmp_path / "out" / "masks" / "part-x.parquet"), b"")
    with pytest.raises(UserError, match=r"no classes.parquet, so its model is unknown"):
        run(tmp_path / "photos", tmp_path / "out", checkpoint)


def plan(have: Resources, *options: str):
    arguments = ["--input", "a", "--output", "b", "--checkpoint", "c", *options]
    return size_actor_pool(load_settings(SegmentConfig, arguments, "jobs/segment_bucket.py"), have)


def cluster(cpus: int, gpus: int = 0) -> Resources:
    """One node, and no autoscaler."""
    return Resources((Node(cpus, gpus),))


@pytest.mark.parametrize("cpus", [2, 3, 4, 8, 64])
def test_predictors_always_leave_cpus_for_the_stages_that_feed_them(cpus: int) -> None:
    stages = plan(cluster(cpus))
    assert stages.predictors * stages.predictor_cpus + 1 <= cpus
    assert stages.decode_tasks >= 1
    assert stages.write_tasks >= 1


def test_a_cluster_that_cannot_hold_the_predictors_is_refused() -> None:
    with pytest.raises(
        UserError, match="1 CPU\\(s\\) for decoding need 2 CPUs and 0 GPUs, but the cluster has 1 and 0"
    ):
        plan(cluster(1))
    with pytest.raises(UserError, match="the cluster has no GPU"):
        plan(cluster(8), "--gpu")
    with pytest.raises(
        UserError, match=r"3 predictors with 1 CPU\(s\) and a GPU each .* need 4 CPUs and 3 GPUs, but .* has 8 and 2"
    ):
        plan(cluster(8, gpus=2), "--gpu", "--predictors", "3")


@pytest.mark.parametrize(
    ("nodes", "options", "predictors"),
    [
        ([Node(1), Node(1)], [], 1),
        ([Node(1), Node(1), Node(1)], [], 2),
        ([Node(8), Node(2)], ["--predictor-cpus", "8"], 1),
        ([Node(1, gpus=2), Node(4)], ["--gpu"], 1),
        ([Node(4), Node(2, gpus=1), Node(2, gpus=1)], ["--gpu"], 2),
        ([Node(0), Node(1, gpus=1), Node(1, gpus=1)], ["--gpu"], 1),
    ],
)
def test_no_more_predictors_than_the_nodes_have_room_for(
    nodes: list[Node], options: list[str], predictors: int
) -> None:
    have = Resources(tuple(nodes))
    stages = plan(have, *options)
    assert stages.predictors == predictors
    assert stages.fit(have, "--gpu" in options)


@pytest.mark.parametrize(
    ("nodes", "options", "room"),
    [
        ([Node(4), Node(4)], ["--predictors", "1", "--predictor-cpus", "6"], 0),
        ([Node(5), Node(2)], ["--predictors", "2", "--predictor-cpus", "3"], 1),
        ([Node(2, gpus=4), Node(64)], ["--predictors", "4", "--gpu"], 2),
    ],
)
def test_predictors_that_no_node_can_hold_are_refused(nodes: list[Node], options: list[str], room: int) -> None:
    with pytest.raises(UserError, match=rf"do not fit on the cluster's nodes, which have room for {room}"):
        plan(Resources(tuple(nodes)), *options)
    # A larger node may come.
    assert plan(Resources(tuple(nodes), allowed_cpus=999, allowed_gpus=9), *options).predictors == int(options[1])


def test_a_cluster_that_can_grow_from_nothing_is_planned_for() -> None:
    empty = Resources((), allowed_cpus=64, allowed_gpus=4)
    assert plan(empty, "--gpu").predictors == 1
    assert plan(empty, "--gpu", "--predictors", "4").predictors == 4
    assert plan(empty).predictors == 1
