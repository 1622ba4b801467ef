"""Registry of the formats: what each makes of an image, and the files that it writes at the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.config.bands import AS_DECLARED, Rendering
from pipeline.config.jobs import ExportMasksConfig
from pipeline.export_masks import cityscapes, coco, fiftyone, png, yolo
from pipeline.export_masks.coco_json import write_coco
from pipeline.export_masks.dataset import dataset, dataset_yaml
from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.export_masks.repredict import relabel_as
from pipeline.query import engine

Records = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """Functions of a format: `make` exports one image (in tasks), `finish` writes common files (in the driver)."""

    num_classes: int
    make: Callable[[Labelled], Made]
    finish: Callable[[Records], None]
    needs_images: bool  # image files are fetched
    predicts: bool = False  # images are labeled again, which uses all CPUs of a node
    rendering: Rendering = AS_DECLARED  # of images that are TIFFs, as they were labeled


def format_of(config: ExportMasksConfig, classes: Classes, target: str, model_id: str) -> Format:
    """Return the configured format. Raises UserError if its options do not match the output."""
    rendering = engine.rendering_of(engine.last_configuration(config.output))
    split, of_classes = config.split, partial(Format, len(classes), rendering=rendering)

    def beside(files: dict[str, bytes]) -> Callable[[Records], None]:
        return partial(_write_files, target, files)

    match config.format:
        case "png":
            return of_classes(png.png, beside({"classes.csv": classes.as_csv()}), needs_images=False)
        case "overlay":
            make = partial(png.overlaid, classes=classes, opacity=config.opacity)
            return of_classes(make, beside({"classes.csv": classes.as_csv()}), needs_images=True)
        case "coco-panoptic":
            things = classes.ids("things", config.things)
            info = {"description": f"{config.output}, model {model_id}"}
            finish = partial(_finish_panoptic, target, info, coco.categories(classes, things))
            return of_classes(partial(coco.panoptic, things=things), finish, needs_images=False)
        case "coco-rle":
            info = {"description": f"{config.output}, model {model_id}"}
            finish = partial(_finish_rle, target, info, coco.categories(classes))
            return of_classes(coco.rle, finish, needs_images=False)
        case "cityscapes":
            mapping = cityscapes.Mapping.of(classes, config.label_ids)
            ids = {"label_id": mapping.label_ids_K.tolist(), "train_id": mapping.train_ids_K.tolist()}
            make = partial(cityscapes.cityscapes, split=split, mapping=mapping)
            return of_classes(make, beside({"classes.csv": classes.as_csv(**ids)}), config.copy_images)
        case "yolo-seg":
            make = partial(yolo.yolo, split=split, min_area=config.min_area)
            return of_classes(make, beside({"data.yaml": yolo.data_yaml(classes, split)}), config.copy_images)
        case "fiftyone":
            targets = {"mask_targets.json": fiftyone.mask_targets(classes)}
            return of_classes(fiftyone.fiftyone, beside(targets), config.copy_images)
        case "dataset":
            make = partial(dataset, split=split, palette=classes.palette)
            if config.checkpoint is not None:  # and so is min_confidence
                relabel = relabel_as(config.output, model_id, config.checkpoint, config.precision)
                make = partial(make, relabel=relabel, min_confidence=config.min_confidence)
            return of_classes(
                make,
                beside({"dataset.yaml": dataset_yaml(classes, target, split)}),
                True,
                config.checkpoint is not None,
            )


def _write_files(target: str, files: dict[str, bytes], records: Records) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(target, name), content)


def _finish_panoptic(target: str, info: dict[str, Any], categories: list[dict[str, Any]], records: Records) -> None:
    def entries() -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        for record in records:
            yield record["image"], [{"file_name": record["file_name"], "segments_info": record["segments_info"]}]

    write_coco(storage.join(target, f"{coco.PANOPTIC}.json"), info, categories, entries(), numbered=False)


def _finish_rle(target: str, info: dict[str, Any], categories: list[dict[str, Any]], records: Records) -> None:
    entries = ((record["image"], record["annotations"]) for record in records)
    write_coco(storage.join(target, "annotations.json"), info, categories, entries)
