"""An output and a checkpoint that version 0.1 wrote before its modules moved: they are still verified and continued.

earlier_output/ has the output, its photos, and the checkpoint's config.json; formula_weights.py gives the weights.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import models
from pipeline import storage
from pipeline.images.codec import decode_mask
from tests.conftest import RunJob
from tests.formula_weights import set_weights
from tests.output_checks import read
from tests.ray_head import RayHead

EARLIER = Path(__file__).with_name("earlier_output")
MODEL_ID = "fa6baea7c3dda585c8560112e2874770"
# The output names its photos in this bucket.
BUCKET = "s3://earlier"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    network = models.PSPNet(models.Architecture("resnet18", 4))
    set_weights(network)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_bytes((EARLIER / "checkpoint.json").read_bytes())
    return folder


def test_an_earlier_checkpoint_has_its_id_and_its_metadata(checkpoint: Path) -> None:
    assert models.model_id(checkpoint) == MODEL_ID
    _, metadata = models.load(checkpoint, ["sky", "water", "boat", "hill"])
    assert (metadata.code_version, metadata.colors[1]) == ("earlier", [0, 90, 160])


@pytest.mark.slow
def test_an_earlier_output_is_verified_and_continued(head: RayHead, run_job: RunJob, checkpoint: Path) -> None:
    filesystem, path = storage.open_filesystem(BUCKET)
    filesystem.mkdir(path)
    for file in (EARLIER / "labels").rglob("*.*"):
        storage.write_bytes(f"{BUCKET}/{file.relative_to(EARLIER)}", file.read_bytes())
    for file in (EARLIER / "photos").iterdir():
        storage.write_bytes(f"{BUCKET}/photos/{file.name}", file.read_bytes())
    before = {row["image_uri"]: row for row in read(f"{BUCKET}/labels", "masks").to_pylist()}
    places = ["--input", f"{BUCKET}/photos", "--output", f"{BUCKET}/labels", "--checkpoint", str(checkpoint)]

    verified = run_job("jobs/verify.py", f"{BUCKET}/labels", "--deep")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    continued = run_job("jobs/segment_bucket.py", *places, "--precision", "float32")
    assert continued.returncode == 0, continued.stdout + continued.stderr
    assert "4 in the input, 3 already completed, 1 in this run" in continued.stdout
    verified = run_job("jobs/verify.py", f"{BUCKET}/labels", "--deep", "--input", f"{BUCKET}/photos")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    after = {row["image_uri"]: row for row in read(f"{BUCKET}/labels", "masks").to_pylist()}
    assert {uri: after[uri] for uri in before} == before
    assert after[f"{BUCKET}/photos/2.png"]["status"] == "ok"


@pytest.mark.slow
def test_an_earlier_images_labels_are_those_of_today(
    head: RayHead, run_job: RunJob, checkpoint: Path, bucket: str
) -> None:
    for file in (EARLIER / "photos").iterdir():
        storage.write_bytes(f"{bucket}/photos/{file.name}", file.read_bytes())
    places = ["--input", f"{bucket}/photos", "--output", f"{bucket}/labels", "--checkpoint", str(checkpoint)]
    done = run_job("jobs/segment_bucket.py", *places, "--precision", "float32")
    assert done.returncode == 0, done.stdout + done.stderr
    today = {Path(row["image_uri"]).name: row for row in read(f"{bucket}/labels", "masks").to_pylist()}
    earlier = {Path(row["image_uri"]).name: row for row in read(str(EARLIER / "labels"), "masks").to_pylist()}
    assert earlier.keys() == {"0.png", "1.png", "broken.png"}
    for name in ("0.png", "1.png"):
        ids_HW, expected_HW = (decode_mask(row["mask"]["bytes"]) for row in (today[name], earlier[name]))
        # Sums of another order, on another processor, may decide a tie otherwise.
        assert (ids_HW == expected_HW).mean() > 0.999
        assert len(np.unique(expected_HW)) > 1
    assert today["broken.png"]["error_type"] == earlier["broken.png"]["error_type"] == "NotAnImage"
