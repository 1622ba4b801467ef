"""Streaming writer of COCO's JSON files, which are never in memory as a whole."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from pipeline import storage

Objects = list[dict[str, Any]]


def write_coco(
    uri: str,
    info: dict[str, Any],
    categories: Objects,
    images: Iterable[tuple[dict[str, Any], Objects]],
    numbered: bool = True,
) -> None:
    """Write a COCO JSON file.

    Args:
        images: images with their annotations. Image ids are assigned here, in order, from 1.
        numbered: assign ids to annotations too. Annotations of panoptic files have none.

    Raises: UserError.
    """
    with ExitStack() as at_exit:
        folder = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="sceneparse-")))
        file = at_exit.enter_context(open(folder / "coco.json", "w+b"))
        beside = at_exit.enter_context(open(folder / "images.json", "w+b"))  # buffers the file's last list
        file.write(b'{"info":' + _json(info) + b',"categories":' + _json(categories) + b',"annotations":[')
        num_annotations = 0
        for image_id, (image, annotations) in enumerate(images, 1):
            _add(beside, {"id": image_id, **image}, image_id == 1)
            for annotation in annotations:
                num_annotations += 1
                number = {"id": num_annotations} if numbered else {}
                _add(file, {**number, "image_id": image_id, **annotation}, num_annotations == 1)
        file.write(b'\n],"images":[')
        beside.seek(0)
        shutil.copyfileobj(beside, file)
        file.write(b"\n]}\n")
        file.flush()
        storage.write_file(uri, folder / "coco.json")


def _add(file: IO[bytes], entry: dict[str, Any], is_first: bool) -> None:
    file.write((b"\n" if is_first else b",\n") + _json(entry))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
