"""jobs/import_weights.py as a user runs it: from a published file to a checkpoint that labels images."""

import hashlib
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from jobs.import_weights import main
from pipeline import storage
from pipeline.checkpoints import published
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.published import PublishedWeights
from pipeline.errors import UserError
from tests.in_process import run_script
from tests.models.reference_networks import MMSeg
from tests.models.seeded import seeded_state_dict

CLASSES = ["wall", "building", "sky"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MMSegmentation PSPNet of three classes that the file does not name."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in MMSeg(18, 3).state_dict().items()}
    path = tmp_path_factory.mktemp("published") / "pspnet_r18-d8.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": seeded_state_dict(shapes)}, path)
    return path


def assert_predicts(uri: str) -> None:
    checkpoint = Checkpoint.load(uri, long_side=None)
    assert checkpoint.class_names == CLASSES
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), np.uint8)
    assert set(np.unique(checkpoint.predictor("cpu", "float32").predict(images).class_ids_NHW)) <= {0, 1, 2}


def test_an_import_prints_what_it_is_and_can_predict(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    main([str(source), "--to", out, "--classes", "wall, building,sky"])
    printed = capsys.readouterr().out
    assert "Recognized    MMSegmentation PSPNet, deep stem" in printed
    assert "resnet18, deep stem 32-32-64, bins 1,2,3,6, an auxiliary head, align_corners false" in printed
    assert "Classes       3: wall, building, sky\n" in printed
    assert models.model_id(out) in printed
    assert f"jobs/segment_bucket.py --input URI --output URI --checkpoint file://{out}" in printed
    assert sorted(path.name for path in Path(out).iterdir()) == ["config.json", "model.safetensors"]
    assert_predicts(out)


def test_from_bucket_to_bucket_with_class_names_in_a_file(
    source: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write_bytes(f"{bucket}/published/net.pth", source.read_bytes())
    storage.write_bytes(f"{bucket}/names.txt", "\ufeffwall\r\nbuilding\n\nsky\n".encode())
    arguments = [f"{bucket}/published/net.pth", "--to", f"{bucket}/out", "--classes", f"{bucket}/names.txt"]
    main(arguments)
    assert f"Checkpoint    {bucket}/out\n" in capsys.readouterr().out
    assert_predicts(f"{bucket}/out")

    main(arguments)
    assert "(already exists)" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"^{bucket}/published: not found"):
        main([f"{bucket}/published", "--to", f"{bucket}/new"])
    with pytest.raises(UserError, match=rf"^{bucket}/names.txt is not a readable torch.save file"):
        main([f"{bucket}/names.txt", "--to", f"{bucket}/new"])


def test_another_checkpoint_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([str(source), "--to", str(out), "--classes", ",".join(CLASSES)])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"holds a different checkpoint, .* choose another folder, or delete"):
        main([str(source), "--to", str(out), "--classes", ",".join(CLASSES), "--align-corners", "true"])
    with pytest.raises(UserError, match="holds these weights with different class names"):
        main([str(source), "--to", str(out), "--classes", "a,b,c"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    (out / "config.json").write_text("{")
    with pytest.raises(UserError, match="holds a checkpoint that cannot be read"):
        main([str(source), "--to", str(out)])
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds model\.safetensors but no complete checkpoint"):
        main([str(source), "--to", str(out)])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("wall,sky", "2 class names given, but the classifier has 3 classes"),
        ("wall,,sky", "a name is empty"),
        ("wall,sky,wall", "given more than once: wall"),
        ("nowhere.txt", r"nowhere\.txt: not found"),
    ],
)
def test_class_names_that_do_not_fit(classes: str, message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([str(source), "--to", str(tmp_path / "out"), "--classes", classes])
    assert not (tmp_path / "out").exists()


def test_files_of_class_names_that_are_none(source: Path, tmp_path: Path) -> None:
    for content, message in ((b"\xff\xfe\x00", "not a UTF-8 text file"), (b"\n \n", "the file is empty")):
        (tmp_path / "names").write_bytes(content)
        with pytest.raises(UserError, match=message):
            main([str(source), "--to", str(tmp_path / "out"), "--classes", str(tmp_path / "names")])


def test_a_backbone_is_not_announced_as_ready_to_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        shapes = models.PSPNet(models.Architecture("resnet18", 2)).backbone.state_dict()
    state = {name: torch.tensor(0.5).expand(tensor.shape) for name, tensor in shapes.items()}
    torch.save(state, tmp_path / "resnet18.pth")
    main([str(tmp_path / "resnet18.pth"), "--to", str(tmp_path / "out"), "--classes", "a,b", "--bins", "1,4"])
    printed = capsys.readouterr().out
    assert "ImageNet ResNet" in printed
    assert "bins 1,4" in printed
    assert "train them before labeling" in printed
    assert "segment_bucket" not in printed


def test_what_is_dropped_is_printed_and_ema_swaps_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(source, weights_only=True)["state_dict"]
    averages = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in state.items() if "running" not in name}
    torch.save({"model": state | averages, "optimizer": {"lr": 0.1}}, tmp_path / "with_averages.pth")
    main([str(tmp_path / "with_averages.pth"), "--to", str(tmp_path / "plain")])
    printed = capsys.readouterr().out
    assert f"Note          dropped {len(averages)} (ema_backbone_stem_0_weight, " in printed
    assert "Note          ignored beside the weights: optimizer" in printed
    main([str(tmp_path / "with_averages.pth"), "--to", str(tmp_path / "averaged"), "--ema"])
    assert f"Note          dropped {len(averages)} (backbone.stem.0.weight, " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"without a moving average \(ema_\*\); import the file without ema"):
        main([str(source), "--to", str(tmp_path / "none"), "--ema"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("jobs/import_weights.py", *arguments)


@pytest.mark.slow
def test_the_exit_code_tells_success_from_what_the_user_can_mend(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = run(str(source), "--to", out, "--classes", ",".join(CLASSES))
    assert (done.returncode, done.stderr) == (0, "")
    assert_predicts(out)

    missing = run(str(tmp_path / "nowhere.pth"), "--to", out)
    assert missing.returncode == 2
    uri = (tmp_path / "nowhere.pth").as_uri()
    assert missing.stderr == f"error: source {uri}: no such file or folder; check the path\n"
    misspelt = run(str(source), "--to", out, "--bins", "one")
    assert misspelt.returncode == 2
    assert "'one' is not a list of integers such as 1,2,3,6" in misspelt.stderr


def test_a_published_name_is_downloaded_and_imported_as_its_table_says(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"net-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}.pth"
    shutil.copy(source, tmp_path / name)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setenv("SCENEPARSE_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
        weights = PublishedWeights("net", "VOC", "MIT", url, True, 77.0, 78.5)
        monkeypatch.setattr(published, "published_weights", lambda: {"net": weights})
        main(["net", "--to", str(tmp_path / "out"), "--classes", ",".join(CLASSES)])
        server.shutdown()
    printed = capsys.readouterr().out
    assert "an auxiliary head, align_corners true" in printed
    assert "Published     MIT, trained on VOC: mIoU 77.00%, 78.50% at several scales with mirror images" in printed
    assert (tmp_path / "cache" / "weights" / name).exists()
    assert_predicts(str(tmp_path / "out"))
