"""Selection of the images to export, and their names."""

from pathlib import Path

import pytest

from jobs.export_masks import main
from pipeline.errors import UserError
from tests.pipeline.exported_output import KEYS, NAMES, SIZE, ThreeImages, blobs, tree, write_output


@pytest.fixture
def three(tmp_path: Path) -> ThreeImages:
    return ThreeImages(f"file://{tmp_path}")


def test_a_condition_chooses_images_by_all_tables(three: ThreeImages) -> None:
    first = three.mask("2023/a.jpg")
    where = (
        "contains(image_uri, '/2023/') AND image_id IN (SELECT image_id FROM class_stats WHERE class_name = 'sky' "
        f"AND pixel_count = {(first == 0).sum()}) -- said with care"
    )
    target = three.export("png", "--where", where)
    assert tree(target) == ["a.png", "classes.csv"], "the folder that all chosen images lie in is left out"


def test_a_condition_may_compare_with_all_images(three: ThreeImages) -> None:
    """Though each part is exported by itself."""
    where = "image_uri = (SELECT max(image_uri) FROM masks)"
    assert tree(three.export("png", "--where", where)) == ["c 1.png", "classes.csv"]


def test_sql_errors_are_duckdbs_own(three: ThreeImages) -> None:
    with pytest.raises(UserError, match='SQL: Binder Error: Referenced column "confidence" not found'):
        three.export("png", "--where", "confidence > 0.5")


def test_the_user_says_which_folder_is_left_out(three: ThreeImages) -> None:
    target = three.export("png", "--strip", three.root)
    assert tree(target) == ["classes.csv", *(f"photos/{Path(key).with_suffix('.png')}" for key in KEYS)]
    with pytest.raises(UserError, match=r"strip .*/2023/: .*/2024/c 1.jpg is outside of it"):
        three.export("png", "--strip", f"{three.photos}/2023", target=f"{target}2")


HOSTILE = ["../../up.png", "%2e%2e/%2e%2e/up.png", "..\\up.png", "C:\\up.png", "nul\0.png", "/etc/up.png", "up. . .jpg"]


def test_no_image_is_exported_outside_the_target(tmp_path: Path) -> None:
    ids_HW = blobs(*SIZE, len(NAMES), 0)
    write_output(tmp_path / "deep/labels", {f"s3://b/{key}": ids_HW for key in HOSTILE})
    arguments = [f"{tmp_path}/deep/labels", "--to", f"{tmp_path}/deep/deeper/target"]
    assert main([*arguments, "--strip", "s3://b"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["deeper", "labels"]
    assert [path.name for path in (tmp_path / "deep/deeper").iterdir()] == ["target"]
    assert len(tree(f"{tmp_path}/deep/deeper/target")) == len(HOSTILE) + 1


def test_names_that_would_be_one_are_refused_with_both_images_and_nothing_is_written(tmp_path: Path) -> None:
    ids_HW = blobs(*SIZE, len(NAMES), 0)
    write_output(tmp_path / "labels", {"s3://b/x/a.jpg": ids_HW, "s3://b/x/a?.jpg": ids_HW})
    write_output(tmp_path / "labels", {"s3://b/x/a.png": ids_HW, "s3://b/x/a*.jpg": ids_HW}, run_id="run2")
    arguments = [f"{tmp_path}/labels", "--to", f"{tmp_path}/target"]
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert "  a: s3://b/x/a.jpg and s3://b/x/a.png" in str(caught.value)
    assert "  a_: s3://b/x/a*.jpg and s3://b/x/a?.jpg" in str(caught.value)
    assert not (tmp_path / "target").exists()
    assert main([*arguments, "--where", "image_uri IN ('s3://b/x/a.png', 's3://b/x/a?.jpg')"]) == 0
    assert tree(f"{tmp_path}/target") == ["a.png", "a_.png", "classes.csv"]


def test_an_image_that_stands_twice_is_told_as_such(tmp_path: Path) -> None:
    ids_HW = blobs(*SIZE, len(NAMES), 0)
    for run_id in ("run", "run2"):
        write_output(tmp_path / "labels", {"s3://b/a.jpg": ids_HW}, run_id=run_id)
    with pytest.raises(
        UserError, match=r"s3://b/a.jpg has two rows; run python jobs/verify.py --repair to keep the newer"
    ):
        main([f"{tmp_path}/labels", "--to", f"{tmp_path}/target"])
