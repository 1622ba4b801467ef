"""Ways in which an image can fail: all values of the columns error_stage and error_type."""

from collections.abc import Sequence

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.formats import IMAGE_ERRORS

STAGES = ("list", "download", "decode", "predict")

# Error type -> meaning, which scripts/generate_docs.py writes into docs/troubleshooting.md.
ERROR_TYPES = {
    "BadURI": "a row of a list or table does not name a file, or its URI contains credentials",
    "NotAllowed": "a row names a file outside the locations that the command allows",
    "InsideOutput": "a row names a file inside the output",
    **storage.STORAGE_ERRORS,
    **{kind: meaning for kind, meaning in IMAGE_ERRORS.items() if kind not in ("NotALabelMap", "UnknownColor")},
    "OutOfMemory": "the predictor's device does not have enough memory for the image",
    "Crashed": "every worker that processed the image crashed, usually because it ran out of memory",
}
EVERY_KIND = "all"


def check_error_types(option: str, kinds: Sequence[str]) -> None:
    """Raise UserError if one of `kinds` is not a known error type."""
    if unknown := [kind for kind in kinds if kind not in (*ERROR_TYPES, EVERY_KIND)]:
        known = ", ".join(ERROR_TYPES)
        raise UserError(f"{option}: unknown error type {', '.join(unknown)}; use {EVERY_KIND} or some of {known}")
