"""Every command that README and docs/ show is run as it stands there, or its block's title says what it needs."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pipeline import storage
from pipeline.config.jobs import AblateConfig, DoctorConfig, SegmentConfig, TrainConfig
from pipeline.config.loading import load_settings
from tests.conftest import REPOSITORY, RunJob
from tests.documented_blocks import (
    BLOCKS,
    CONDITIONS,
    ENDLESS,
    LANGUAGES,
    PAGES,
    REASONS,
    TWO_TERMINALS,
    commands_elsewhere,
)
from tests.documented_world import World, add_photos, documented_world
from tests.output_checks import check_invariants, read
from tests.ray_head import RayHead
from tests.requirements import INT8

JOBS = {path.stem for path in (REPOSITORY / "jobs").glob("[!_]*.py")}


def rows_of_all_photos(printed: str) -> None:
    rows = check_invariants("s3://bucket/labels", list(storage.find("s3://bucket/photos")))
    assert [uri for uri, row in rows.items() if row["status"] == "error"] == ["s3://bucket/photos/broken.jpg"]


def three_photos_are_new(printed: str) -> None:
    assert f"3 to label, {len(storage.find('s3://bucket/photos')) - 3} already completed" in printed


def rows_of_what_was_selected(printed: str) -> None:
    rows = read("s3://bucket/selected", "masks").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    of_manifest = [row for row in rows if row["image_uri"].startswith("s3://photos/cars/")]
    assert 0 < len(of_manifest) < 20, "one in a hundred of 200"
    assert [row["carried"] for row in of_manifest] == len(of_manifest) * [
        [{"key": "licence", "value": "CC0"}, {"key": "camera", "value": "X100"}]
    ]
    others = {row["image_uri"] for row in rows} - {row["image_uri"] for row in of_manifest}
    assert others == {f"s3://photos/{name}" for name in ("2024/a.jpg", "2023/b.jpg", "2023/may/c.jpg", "d.jpg")}


@dataclass(frozen=True)
class Page:
    """Evidence that the commands of a page did what the page says.

    `long`: they take long, and jobs that other tests run, too.
    """

    printed: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # URIs, or names in the checkout
    check: Callable[[str], None] | None = None  # of what the commands printed
    prepare: Callable[[], None] | None = None
    long: bool = False


EVIDENCE = {
    "README.md": Page(
        printed=("Validation mIoU", "Result      no problems found", "percent_of_pixels"),
        files=("s3://bucket/runs/mine/best/model.safetensors", "s3://bucket/runs/mine/report.html", "labels.html"),
        check=rows_of_all_photos,
    ),
    "docs/ablation.md": Page(printed=("0.25",), long=True),
    "docs/camvid.md": Page(printed=("export AWS_ENDPOINT_URL=http://127.0.0.1:",), long=True),
    "docs/datasets.md": Page(files=("s3://bucket/ade-check/dataset.html",)),
    "docs/doctor.md": Page(printed=("succeeded", "written, read back and deleted by the driver")),
    "docs/exports.md": Page(files=("s3://bucket/masks/classes.csv", "coco/panoptic.json")),
    "docs/inputs.md": Page(check=rows_of_what_was_selected, long=True),
    "docs/planning.md": Page(printed=("20 nodes",), check=three_photos_are_new, prepare=add_photos, long=True),
    "docs/pretrained.md": Page(files=("s3://bucket/runs/pretrained/best/model.safetensors",), long=True),
    "docs/python.md": Page(printed=("photo-0000.jpg: mean confidence", "broken-text.jpg: "), files=("photo-0000.png",)),
    "docs/queries.md": Page(
        printed=('"NotAnImage"', "images-with CLASS", "percent_of_pixels", "sql>"),
        files=("s3://bucket/to-check.csv", "boats.csv"),
    ),
    "docs/recipes.md": Page(files=("runs/mine/best/model.safetensors", "runs/mine/report.html"), long=True),
    "docs/report.md": Page(files=("s3://bucket/labels/report.html", "labels.html")),
    "docs/segmentation.md": Page(check=rows_of_all_photos, prepare=add_photos, long=True),
    "docs/tables.md": Page(),
    "docs/training.md": Page(printed=("mIoU",), files=("s3://bucket/runs/voc50/best/model.safetensors",), long=True),
    "docs/uncertainty.md": Page(files=("next.csv",), long=True),
    "docs/verify.md": Page(printed=("Result      no problems found",)),
    "docs/weights.md": Page(
        files=(
            "s3://bucket/models/ade20k/config.json",
            *(["s3://bucket/runs/mine/int8/config.json"] if INT8.is_met() else []),
            "model.onnx",
        ),
        long=True,
    ),
}


@pytest.fixture(scope="module")
def world(head: RayHead, run_job: RunJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with documented_world(tmp_path_factory.mktemp("documented"), head, run_job) as made:
        yield made


@pytest.fixture(scope="module")
def after_the_readme(world: World) -> World:
    """Return the world once the README's commands, which the other pages build on, have run as it says."""
    run_page(world, "README.md")
    return world


def run_page(world: World, page: str) -> None:
    """Run a page's blocks in order, and see that they did what the page says."""
    evidence = EVIDENCE[page]
    if evidence.prepare:
        evidence.prepare()
    printed = "".join(world.run(block) for block in BLOCKS if block.page == page and block.is_run and block.can_run)
    for text in evidence.printed:
        assert text in printed
    for name in evidence.files:
        assert storage.read_bytes(name if "://" in name else str(world.folder / name))
    if evidence.check:
        evidence.check(printed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [pytest.param(name, marks=pytest.mark.exhaustive if page.long else ()) for name, page in EVIDENCE.items()]
)
def test_commands_of_a_page_run_as_they_are_printed(page: str, after_the_readme: World) -> None:
    if page != "README.md":
        run_page(after_the_readme, page)


def test_evidence_is_asked_of_every_page_with_commands() -> None:
    assert set(EVIDENCE) == {block.page for block in BLOCKS if block.is_run}


def test_a_block_is_run_or_says_why_not() -> None:
    known = {None, ENDLESS, TWO_TERMINALS, *REASONS, *CONDITIONS}
    unknown = {block.title for block in BLOCKS if block.language in LANGUAGES} - known
    assert unknown == set()


def test_settings_of_commands_that_are_not_run_are_accepted() -> None:
    kinds = {"train": TrainConfig, "segment_bucket": SegmentConfig, "ablate": AblateConfig, "doctor": DoctorConfig}
    command = re.compile(rf"jobs/({'|'.join(kinds)})\.py (.*)")
    accepted = 0
    for block in BLOCKS:
        if block.title in REASONS:
            for job, options in command.findall(block.code.replace("\\\n", "")):
                options = options.replace("configs/mine.yaml", "configs/scenes_pspnet18.yaml")
                load_settings(kinds[job], shlex.split(options, comments=True), str(block))
                accepted += 1
    assert accepted > 5


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    code = "".join(block.code for block in BLOCKS)
    shown = {name for page in PAGES for name in re.findall("`make ([a-z-]+)", page.read_text())}
    shown |= set(re.findall(r"^(?:\w+=\S+ )?make ([a-z-]+)", code, re.MULTILINE))
    assert {"demo", "test", "chaos"} <= shown <= targets


def test_no_block_and_no_command_escapes() -> None:
    assert sum(page.read_text().count("```") for page in PAGES) == 2 * len(BLOCKS), "a fence that was not understood"
    assert {block.language for block in BLOCKS} - {*LANGUAGES} == {"text", "yaml"}
    assert {page.name: lines for page in PAGES if (lines := commands_elsewhere(page))} == {}


def test_every_job_is_in_a_block_that_is_run() -> None:
    """Reasons are for clusters, foreign data and long measurements, not for a job that fails."""
    run = "".join(block.code for block in BLOCKS if block.is_run)
    assert {job for job in JOBS if f"jobs/{job}.py" not in run} == {"ablate", "demo", "make_scenes"}
