"""Format cityscapes: gtFine's labelIds and labelTrainIds, mapped by the user or by class name."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.dataset_formats import classes_of
from pipeline.errors import UserError
from pipeline.export_masks.labelled_image import Classes, Labelled, Made
from pipeline.images.codec import encode_png

IMAGE = "_leftImg8bit"  # suffix of Cityscapes' own image names
UNLABELED = np.uint8(0)  # label id
NOT_TRAINED_ON = np.uint8(255)  # train id of all other label ids


@dataclass(frozen=True)
class Mapping:
    """Mapping from class id to Cityscapes' label id and train id."""

    label_ids_K: NDArray[np.uint8]
    train_ids_K: NDArray[np.uint8]

    @classmethod
    def of(cls, classes: Classes, label_ids: dict[str, int]) -> "Mapping":
        """Map classes by name, using `label_ids` and the known ids of the 19 training classes of Cityscapes.

        Raises: UserError if a class has no label id.
        """
        known = {entry.name: entry.label_id for entry in classes_of("cityscapes")}
        train_ids = {entry.label_id: entry.class_id for entry in classes_of("cityscapes")}
        classes.ids("label_ids", label_ids)  # raises if a name is not a class
        ids = known | label_ids
        missing = [name for name in classes.names if name not in ids]
        if missing:
            shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise UserError(
                f"label_ids: Cityscapes has no class named {shown}; set the label id of each, 0 for unlabeled: "
                f"--label-ids '{{\"{missing[0]}\": 0, ...}}'"
            )
        found = [ids[name] for name in classes.names]
        trained = [train_ids.get(label_id, NOT_TRAINED_ON) for label_id in found]
        return cls(np.array(found, np.uint8), np.array(trained, np.uint8))


def cityscapes(image: Labelled, split: str, mapping: Mapping) -> Made:
    """Make two PNGs of 8-bit ids, and a copy of the image if it was fetched; pixels without data are unlabeled."""
    name = image.name.removesuffix(IMAGE)
    ids_HW = np.where(image.class_ids_HW == image.ignore_index, image.num_classes, image.class_ids_HW)
    files = {
        f"gtFine/{split}/{name}_gtFine_labelIds.png": encode_png(np.append(mapping.label_ids_K, UNLABELED)[ids_HW]),
        f"gtFine/{split}/{name}_gtFine_labelTrainIds.png": encode_png(
            np.append(mapping.train_ids_K, NOT_TRAINED_ON)[ids_HW]
        ),
    }
    if image.file is not None:
        ending = image.file_name.removeprefix(image.name)
        files[f"leftImg8bit/{split}/{name}{IMAGE}{ending}"] = image.file
    return Made(files)
