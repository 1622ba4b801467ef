"""Resolution of names in lists and tables to canonical image URIs within the allowed places.

Lists may come from untrusted sources. A row that points outside the allowed places becomes an error row. The check is
done on the exact URI that is opened later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.output.schema import LISTED
from pipeline.storage.places import MAX_URI_BYTES, Places, canonical, place_prefix
from pipeline.url_credentials import credentials_refusal, masked

# Matches URIs that are not, or may not be, canonical. These are checked one by one.
ODD = r"(?s)/\.{0,2}$|/\.{1,2}/|\x00|^file://.*//|^https?:|^[A-Za-z0-9+.-]+://[^/@]*:[^/@]*@"
WITH_SCHEME = rf"^{storage.SCHEME.pattern}"
# LISTED without the image id, which is computed later.
NAMED = pa.schema([column for column in LISTED if column.name != "image_id"])


@dataclass(frozen=True)
class Names:
    """Rows of a list or table, each naming an image."""

    text: pa.Array  # binary or string
    numbers: pa.Array  # int64, row or line numbers, from 1
    origin: str  # prefix of the row numbers, for example s3://bucket/list.txt#line=
    folder: str  # base of names without a scheme
    details: dict[str, pa.Array]  # columns of LISTED that the source provides


class Verdict(NamedTuple):
    """URI of a row, and an error if it must not be opened."""

    uri: str | None
    kind: str | None = None
    message: str | None = None


class Resolver:
    """Resolver of names, with the prefixes that rows may refer to and the output that they must not."""

    def __init__(self, allowed: Sequence[str], output: str) -> None:
        self._places = Places(allowed, "--allow")
        self._output = place_prefix(output)

    def resolve(self, names: Names) -> pa.Table:
        """Return NAMED rows, each with its canonical URI or an error (BadURI, NotAllowed, InsideOutput)."""
        uris = _with_scheme(_texts(names.text), names.folder)
        plain = pc.and_(self._allows(uris), pc.invert(pc.match_substring_regex(uris, ODD)))
        plain = pc.and_(plain, pc.less_equal(pc.binary_length(uris), MAX_URI_BYTES))
        plain = pc.and_(plain, pc.invert(pc.starts_with(uris, self._output.rstrip("/"))))
        columns = {"image_uri": uris, **names.details}
        odd = pc.indices_nonzero(pc.invert(pc.fill_null(plain, False)))
        if len(odd):
            verdicts = [self.verdict(text) for text in uris.take(odd).to_pylist()]
            numbers = names.numbers.take(odd).to_pylist()
            found = [one.uri or f"{names.origin}{number}" for one, number in zip(verdicts, numbers, strict=True)]
            at_odd = pc.is_in(pa.array(range(len(uris)), pa.uint64()), value_set=odd)
            columns["image_uri"] = pc.replace_with_mask(uris, at_odd, pa.array(found, pa.string()))
            for name, values in (
                ("error_type", [one.kind for one in verdicts]),
                ("error_message", [one.message for one in verdicts]),
                ("error_stage", ["list" if one.kind else None for one in verdicts]),
            ):
                empty = pa.nulls(len(uris), pa.string())
                columns[name] = pc.replace_with_mask(empty, at_odd, pa.array(values, pa.string()))
        return named_table(columns, len(uris))

    def verdict(self, text: str | None) -> Verdict:
        """Return the canonical URI or the error for one name with a scheme."""
        if text is None:
            return Verdict(None, "BadURI", "the name is missing or is not valid UTF-8")
        if refusal := credentials_refusal(text):
            return Verdict(None, "BadURI", f"{_shown(text)} {refusal}")
        try:
            uri = canonical(text)
        except ValueError as error:
            return Verdict(None, "BadURI", f"{_shown(text)}: {error}")
        if refusal := self._places.refusal(uri):
            return Verdict(uri, "NotAllowed", refusal)
        if (uri + "/").startswith(self._output):
            return Verdict(uri, "InsideOutput", f"is inside the output {self._output}")
        return Verdict(uri)

    def _allows(self, uris: pa.Array) -> pa.BooleanArray:
        allowed = pa.repeat(False, len(uris))
        for prefix in self._places.prefixes:
            allowed = pc.or_(allowed, pc.starts_with(uris, prefix))
        return allowed


def named_table(columns: dict[str, pa.Array], length: int) -> pa.Table:
    """Return NAMED rows; columns that are not given are null."""
    return pa.Table.from_arrays(
        [columns[column.name] if column.name in columns else pa.nulls(length, column.type) for column in NAMED],
        schema=NAMED,
    )


def folder_above(uri: str) -> str:
    """Return the folder of a file, without a trailing slash."""
    return storage.absolute(uri).rpartition("/")[0]


def _shown(text: str) -> str:
    """Return a name for use in messages, with credentials masked, and shortened."""
    text = masked(text)  # before shortening, because a truncated URL may not be recognized
    return repr(text if len(text) < 200 else f"{text[:200]}...")


def _texts(names: pa.Array) -> pa.StringArray:
    """Convert names to strings; null for empty names and invalid UTF-8."""
    if not pa.types.is_binary(names.type):
        names = names.cast(pa.binary())
    names = pc.if_else(pc.equal(pc.binary_length(names), 0), None, names)
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(name) for name in names.to_pylist()], pa.string())


def _decoded(name: bytes | None) -> str | None:
    try:
        return None if name is None else name.decode()
    except UnicodeDecodeError:
        return None


def _with_scheme(texts: pa.StringArray, folder: str) -> pa.StringArray:
    """Add a scheme: file:// for paths, `folder` for relative names, and s3:// instead of s3a://."""
    texts = pc.replace_substring_regex(texts, "^s3a://", "s3://")
    if pc.all(pc.match_substring_regex(texts, WITH_SCHEME)).as_py():
        return texts
    is_path = pc.starts_with(texts, "/")
    is_relative = pc.invert(pc.or_(is_path, pc.match_substring_regex(texts, WITH_SCHEME)))
    texts = pc.if_else(is_path, pc.binary_join_element_wise("file://", texts, ""), texts)
    inside = pc.replace_substring_regex(texts, r"^(?:\./+)+", "")
    return pc.if_else(is_relative, pc.binary_join_element_wise(f"{folder}/", inside, ""), texts)
