"""Published weights that can be imported by name, and their download."""

import csv
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pipeline.console import log
from pipeline.errors import UserError

TABLE = Path(__file__).with_name("published_weights.csv")
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 2**20  # bytes
SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class PublishedWeights:
    """A file that its authors publish, as docs/weights.md lists it.

    Publishers put the first eight hexadecimal digits of the file's SHA-256 at the end of its name. `miou` is in
    percent, on the validation split at one scale, and `miou_multi_scale` with several scales and mirror images; both
    are None for a backbone, and `align_corners` is None if the weights do not depend on it.
    """

    name: str
    data: str
    license: str
    url: str
    align_corners: bool | None
    miou: float | None
    miou_multi_scale: float | None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def sha256_start(self) -> str:
        return Path(self.file_name).stem.rpartition("-")[2]


@cache
def published_weights() -> dict[str, PublishedWeights]:
    """Return the table of published weights, by name."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row["name"]: _parsed(row) for row in csv.DictReader(file)}


def is_name(source: str) -> bool:
    """Return True if the source is the name of published weights rather than a path: no dot or slash, and no file."""
    return re.fullmatch(r"[A-Za-z0-9_-]+", source) is not None and not Path(source).exists()


def find(name: str) -> PublishedWeights:
    """Return the published weights of this name. Raises: UserError with the closest names, or with all."""
    table = published_weights()
    if name in table:
        return table[name]
    names = get_close_matches(name, table, cutoff=0.5) or list(table)
    raise UserError(
        f"source {name}: no such file, and no published weights have this name; those with a name are "
        f"{', '.join(names)} (docs/weights.md)"
    )


def downloaded(weights: PublishedWeights, folder: Path) -> Path:
    """Download the file into the folder, unless it is there, and return its path.

    An interrupted download continues where it stopped. The file has its name only once its hash is right; a file whose
    hash differs is deleted. Proxies come from the environment (HTTPS_PROXY).

    Raises: UserError if the server cannot be reached, refuses the file, or stops early, or if the hash differs.
    """
    path = folder / weights.file_name
    if path.exists() and _has_hash(path, weights.sha256_start):
        log(f"{path}: downloaded before")
        return path
    part = folder / f"{weights.file_name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(weights, part)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{weights.url}: the server answers {error.code} {error.reason}; {_by_hand(weights)}"
        ) from error
    except (http.client.HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.URLError) or not part.exists():
            raise UserError(f"{weights.url}: cannot be downloaded ({reason}); {_by_hand(weights)}") from error
        raise UserError(
            f"{weights.url}: the download stopped at {part.stat().st_size:,} bytes ({reason}); run the same command "
            "again, which continues there"
        ) from error
    if not _has_hash(part, weights.sha256_start):
        part.unlink()
        raise UserError(
            f"{weights.url}: the SHA-256 of the downloaded file does not begin with {weights.sha256_start}, as its "
            "name says, so nothing was kept; run the same command again, and if it repeats, the server's file is wrong"
        )
    part.replace(path)
    return path


def cache_folder() -> Path:
    """Return the folder of downloads: `weights` in SCENEPARSE_CACHE, by default in ~/.cache/sceneparse."""
    chosen = os.environ.get("SCENEPARSE_CACHE")
    # As in models/kernels/compiled.py, whose package would import torch.
    return (Path(chosen).resolve() if chosen else Path.home() / ".cache" / "sceneparse") / "weights"


def _fetch(weights: PublishedWeights, part: Path) -> None:
    """Append to `part` what it lacks. Raises: OSError or HTTPException; HTTPError if the server refuses."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(weights.url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all bytes are there; the hash decides
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        log(f"Downloading {weights.url}" + (f" ({total / 1e6:,.0f} MB)" if total else ""))
        size, last_logged = start, time.monotonic()
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                size += len(chunk)
                if time.monotonic() - last_logged >= SECONDS_BETWEEN_LINES:
                    last_logged = time.monotonic()
                    log(f"  {size / 1e6:,.0f} MB" + (f" ({size / total:.0%})" if total else ""))
        if total is not None and size < total:
            raise ConnectionError(f"the server closed the connection before all {total:,} bytes")


def _has_hash(path: Path, start: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(start)


def _by_hand(weights: PublishedWeights) -> str:
    return f"download it where there is access, and import the file {weights.file_name} instead of {weights.name}"


def _parsed(row: dict[str, str]) -> PublishedWeights:
    return PublishedWeights(
        row["name"],
        row["data"],
        row["license"],
        row["url"],
        None if not row["align_corners"] else row["align_corners"] == "true",
        float(row["miou"]) if row["miou"] else None,
        float(row["miou_multi_scale"]) if row["miou_multi_scale"] else None,
    )
