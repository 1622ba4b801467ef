"""How an image can fail: the words of the columns error_stage and error_type, all of them."""

from collections.abc import Sequence

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.formats import IMAGE_ERRORS

STAGES = ("list", "download", "decode", "predict")

# What each kind means.
ERROR_TYPES = {
    "BadURI": "a row of a list or table that names no file, or holds credentials",
    "NotAllowed": "a row that names a file outside the places that the command allows",
    "InsideOutput": "a row that names a file of the output",
    **storage.STORAGE_ERRORS,
    **{kind: meaning for kind, meaning in IMAGE_ERRORS.items() if kind not in ("NotALabelMap", "UnknownColor")},
    "OutOfMemory": "the predictor's device has too little memory for it",
    "Crashed": "each process that worked on it died, mostly since its memory ended",
}
EVERY_KIND = "all"


def check_error_types(option: str, kinds: Sequence[str]) -> None:
    """Raise UserError naming a word that is no kind of failure."""
    if unknown := [kind for kind in kinds if kind not in (*ERROR_TYPES, EVERY_KIND)]:
        known = ", ".join(ERROR_TYPES)
        raise UserError(f"{option}: no error type {', '.join(unknown)}; use {EVERY_KIND}, or some of {known}")


def failure(stage: str, kind: str, message: str) -> dict[str, str]:
    """What the row of a failed image says of it."""
    return {"error_stage": stage, "error_type": kind, "error_message": message}
