"""Peak memory of whole processes, at the size where other implementations need many gigabytes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import Architecture, Metadata, PSPNet, save
from models.resnet import PUBLISHED_WIDTH
from tests.requirements import PROC

# The peak depends on oneDNN's kernels for a CPU: 1.45 and 1.51 GB on two kinds with AVX-512, 1.52 and 1.56 with AVX2.
LIMIT_SINGLE, LIMIT_SIX_SCALES = 1.6e9, 2.5e9
# What all networks need alike, above all for the logits of a strip in 150 classes, and a quarter of the channels.
NARROW, LIMIT_NARROW = 16, 1.1e9
PROGRAM = """
import sys, torch
from pathlib import Path
from models import Predictor, Protocol, SlidingPredictor, load

model, metadata = load(sys.argv[1])
predictor = Predictor(model, metadata.mean, metadata.std, precision="float32")
del model
if sys.argv[2] == "single":
    predictor = SlidingPredictor(predictor)
elif sys.argv[2] == "six scales":
    predictor = SlidingPredictor(predictor, Protocol(mirror=True, scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75)))
image = torch.randint(0, 256, (1, 3000, 4000, 3), dtype=torch.uint8)
assert predictor.predict(image).class_ids_NHW.shape == (1, 3000, 4000)
(peak,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


def save_pspnet50(folder: Path, width: int) -> Path:
    classes = [f"class {k}" for k in range(150)]
    torch.manual_seed(0)
    architecture = Architecture("resnet50", 150, stem="deep", width=width)
    save(folder, PSPNet(architecture), Metadata(classes, [[k, k, k] for k in range(150)]))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@PROC.mark
@pytest.mark.parametrize(
    ("mode", "width", "limit"),
    [
        ("single", PUBLISHED_WIDTH, LIMIT_SINGLE),
        ("whole", NARROW, LIMIT_NARROW),
        pytest.param("whole", PUBLISHED_WIDTH, LIMIT_SINGLE, marks=pytest.mark.exhaustive),
        pytest.param("six scales", PUBLISHED_WIDTH, LIMIT_SIX_SCALES, marks=pytest.mark.exhaustive),
    ],
)
def test_twelve_megapixels_and_150_classes_fit(tmp_path: Path, mode: str, width: int, limit: float) -> None:
    command = [sys.executable, "-c", PROGRAM, str(save_pspnet50(tmp_path, width)), mode]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout)
    print(f"{mode}: {peak / 1e9:.2f} GB")
    assert peak < limit
