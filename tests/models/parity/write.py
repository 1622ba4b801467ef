"""Write the fixtures of this folder: `python -m tests.models.parity.write`.

For each published family NAME.json holds the names and shapes of a PSPNet50 of five classes, NAME.npz the
`logits` and `auxiliary` (5 x 9 x 10) that the reference network computes from seeded_state_dict(shapes) and
seeded_image(65, 73).
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.models.reference_networks import MMSeg, Semseg
from tests.models.seeded import seeded_image, seeded_state_dict

FOLDER = Path(__file__).parent
NETWORKS = {"semseg50": Semseg, "mmseg50": MMSeg}
NUM_CLASSES = 5
SIZE = (65, 73)


@torch.inference_mode()
def write() -> None:
    for name, network in NETWORKS.items():
        model = network(50, NUM_CLASSES).eval()
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        model.load_state_dict(seeded_state_dict(shapes))
        logits, auxiliary = model(seeded_image(*SIZE))
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(shape)}" for key, shape in shapes.items())
        (FOLDER / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        np.savez_compressed(FOLDER / f"{name}.npz", logits=logits[0].numpy(), auxiliary=auxiliary[0].numpy())


if __name__ == "__main__":
    write()
