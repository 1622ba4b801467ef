"""Images named by a text file, one per line."""

from collections.abc import Iterator

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs.table_files import check_not_utf16
from pipeline.inputs.uris import Names, folder_above

BYTES = 1 << 20  # per read, and the maximum length of a line
ROWS = 10_000
BOM = b"\xef\xbb\xbf"


def read(uri: str) -> Iterator[Names]:
    """Yield the names in a list file, which may be compressed with gzip. Skips empty lines and lines that begin with #.

    Raises: UserError if the file cannot be read.
    """
    names: list[bytes] = []
    numbers: list[int] = []
    for number, line in enumerate(_lines(uri), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        names.append(line)
        numbers.append(number)
        if len(names) == ROWS:
            yield _names(uri, names, numbers)
            names, numbers = [], []
    if names:
        yield _names(uri, names, numbers)


def _names(uri: str, names: list[bytes], numbers: list[int]) -> Names:
    origin = f"{storage.absolute(uri)}#line="
    return Names(pa.array(names, pa.binary()), pa.array(numbers, pa.int64()), origin, folder_above(uri), {})


def _lines(uri: str) -> Iterator[bytes]:
    """Yield the lines of a file of any size, without line endings."""
    with storage.explained(uri), storage.open_stream(uri) as file:
        rest = file.read(len(BOM))
        check_not_utf16(uri, rest[:2])
        rest = rest.removeprefix(BOM)
        while block := file.read(BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.removesuffix(b"\r") for line in lines)
            if len(rest) > BYTES:
                raise UserError(f"{uri}: a line is longer than {BYTES:,} bytes; check that this is a list of URIs")
        yield rest.removesuffix(b"\r")
