"""Rows of a dataset's lists and tables may read only from root, their own folder, and data.allow."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.config.data import DataConfig
from pipeline.datasets import list_split, load_pair
from pipeline.datasets.pairs import OUTSIDE
from pipeline.errors import UserError
from tests.pipeline.datasets.test_parquet import data_config, image, label, write

Places = dict[str, str]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Folders with an image and its annotation each."""
    folders = {name: f"{tmp_path}/{name}" for name in ("root", "tables", "else")}
    for folder in folders.values():
        storage.write_bytes(f"{folder}/a.png", image(1))
        storage.write_bytes(f"{folder}/m.png", label(1))
    return folders


def write_split(kind: str, places: Places, images: list[str]) -> dict[str, Any]:
    """A list or table in the folder of tables; returns its options."""
    masks = [f"{places['root']}/m.png"] * len(images)
    uri = f"{places['tables']}/train.{'txt' if kind == 'list' else 'parquet'}"
    if kind == "list":
        storage.write_bytes(uri, "\n".join(f"{one}\t{two}" for one, two in zip(images, masks, strict=True)).encode())
        return {"format": "list", "split": uri}
    if kind == "paths":
        cells = [{"bytes": None, "path": path} for path in images]
        write(places["tables"], "train.parquet", {"image": pa.array(cells), "mask": masks})
    else:
        write(places["tables"], "train.parquet", {"image": images, "mask": masks})
    return {"split": uri}


def refusals(data: DataConfig) -> dict[int, str]:
    """Number of each pair or row that is refused -> why; the others can be loaded."""
    listing = list_split(data, data.train_split)
    if listing.findings:
        assert {finding.kind for finding in listing.findings} == {OUTSIDE}
        return {number: finding.message for number, finding in enumerate(listing.findings)}
    found = {}
    for number, pair in enumerate(listing.pairs):
        try:
            load_pair(pair, data)
        except UserError as error:
            found[number] = str(error)
    return found


FINDING_KINDS = ["list", "uris", "paths"]


@pytest.mark.parametrize("kind", FINDING_KINDS)
def test_what_lies_outside_is_refused_unless_it_is_allowed(kind: str, places: Places, tmp_path: Path) -> None:
    outside = [f"{places['else']}/a.png", f"{places['root']}/../else/a.png", f"file://{places['else']}/a.png"]
    options = write_split(kind, places, outside)
    found = refusals(data_config(places["root"], **options))
    assert len(found) == len(outside)
    for message in found.values():
        assert f"file://{places['else']}/a.png is outside file://{places['root']}/" in message
        assert "use data.allow to allow more locations" in message
    assert refusals(data_config(places["root"], **options, allow=[places["else"]])) == {}
    assert refusals(data_config(places["root"], **options, allow=[f"file://{tmp_path}"])) == {}
    assert len(refusals(data_config(places["root"], **options, allow=[f"{tmp_path}/els"]))) == len(outside)


@pytest.mark.parametrize("kind", FINDING_KINDS)
def test_what_lies_below_root_or_beside_the_file_may_be_named(kind: str, places: Places) -> None:
    inside = [f"{places['root']}/a.png", f"{places['tables']}/a.png", "a.png", "./a.png"]
    data = data_config(places["root"], **write_split(kind, places, inside))
    assert refusals(data) == {}
    assert len(list_split(data, data.train_split).pairs) == len(inside)


@pytest.mark.parametrize("kind", FINDING_KINDS)
@pytest.mark.parametrize(
    "uri",
    ["s3://other/a.png", "http://169.254.169.254/latest/meta-data/a", "/etc/passwd", "s3://bucket/x/../../other/a.png"],
)
def test_no_other_bucket_or_host_is_opened(kind: str, uri: str, places: Places) -> None:
    (message,) = refusals(data_config(places["root"], **write_split(kind, places, [uri]))).values()
    assert "is outside" in message
    (message,) = refusals(
        data_config(places["root"], **write_split(kind, places, [uri]), allow=["s3://bucket"])
    ).values()
    assert "is outside" in message


def test_other_formats_have_nothing_to_allow(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="allow works only with formats list and parquet, but the format is folder; remove it"
    ):
        data_config(tmp_path, format="folder", allow=["s3://bucket"])
