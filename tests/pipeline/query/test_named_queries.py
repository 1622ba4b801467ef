"""The named queries, on an output whose answers can be worked out by hand."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.output import parts
from pipeline.output.schema import PREDICTED, image_id, masks_and_class_stats, table
from pipeline.query import engine
from pipeline.query.known_values import run_named
from pipeline.query.named_queries import named_queries, named_query, suggestion
from tests.pipeline.samples import failed
from tests.small_output import NAMES, labelled, write_small_output

MONDAY, TUESDAY = "s3://cams/2026-01-05", "s3://cams/2026-01-06"


def write_classes_alone(folder: Path) -> None:
    """Write the small output's classes.parquet without its images."""
    write_small_output(folder)
    for uri in (*storage.find(f"{folder}/masks"), *storage.find(f"{folder}/class_stats")):
        storage.remove(uri)


def add_part(folder: Path, rows: list[dict], run_id: str) -> None:
    made = masks_and_class_stats(table(rows, PREDICTED), NAMES, "model", run_id, datetime(2026, 1, 7, tzinfo=UTC))
    parts.write_part(str(folder), parts.part_name(run_id, made[0]), *made)


def mask(**shares: float) -> np.ndarray:
    """A mask of 10 x 10 pixels, of which classes take these shares."""
    ids = np.concatenate([np.full(round(100 * share), NAMES.index(name)) for name, share in shares.items()])
    return ids.reshape(10, 10).astype(np.uint8)


IMAGES = [
    (f"{MONDAY}/a.jpg", mask(sky=0.5, water=0.4, boat=0.1), 0.9),
    (f"{MONDAY}/b.jpg", mask(sky=0.5, water=0.5), 0.8),
    (f"{TUESDAY}/a.jpg", mask(sky=0.2, water=0.2, boat=0.6), 0.4),
    (f"{TUESDAY}/b.jpg", mask(sky=0.2, water=0.2, boat=0.6), 0.3),
    (f"{TUESDAY}/sub/c.jpg", mask(road=1.0), 0.7),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("named")
    write_classes_alone(folder)
    for run_id, day, failures in (("run1", MONDAY, [f"{MONDAY}/x.jpg"]), ("run2", TUESDAY, [])):
        rows = [
            labelled(uri, ids, sure) | {"mean_entropy": 1 - sure} for uri, ids, sure in IMAGES if uri.startswith(day)
        ]
        rows += map(failed, failures)
        add_part(folder, rows, run_id)
    record = '{"run_id": "run1", "finished_at": "2026-01-07T10:00:00+00:00", "model_id": "model", "images": 3,'
    record += '"done_before": 0, "outcomes": {"ok": 2, "Empty": 1}, "seconds": 6.0, "seconds_to_first": 2.5}'
    storage.write_bytes(f"{folder}/runs/run1.json", record.encode())
    return str(folder)


def ask(output: str, name: str, *arguments: str) -> list[tuple]:
    named = named_query(name)
    relation = run_named(engine.connect(output), named, named.values(arguments))
    assert relation is not None
    return relation.fetchall()


@pytest.mark.parametrize("name", named_queries())
def test_every_named_query_says_what_it_answers_and_runs(output: str, name: str) -> None:
    named = named_query(name)
    assert len(named.title) > 20
    right = {"number": "3", "class": "boat", "prefix": MONDAY, "run or prefix": "run1"}
    given = [right[p.kind] for p in named.parameters if p.default is None]
    assert isinstance(ask(output, name, *given), list)


def test_class_areas(output: str) -> None:
    found = {row[0]: row[1:] for row in ask(output, "class-areas")}
    assert found["sky"] == (28.0, 4, 80.0, pytest.approx(99 / 140, abs=1e-3))
    assert sum(row[0] for row in found.values()) == pytest.approx(100)
    assert [row[0] for row in ask(output, "class-areas", MONDAY)] == ["sky", "water", "boat"]


def test_class_areas_by_folder_and_by_the_first_levels_of_folders(output: str) -> None:
    assert ask(output, "class-areas-by-prefix", "boat") == [(MONDAY, "boat", 5.0), (TUESDAY, "boat", 60.0)]
    assert (f"{TUESDAY}/sub", "road", 100.0) in ask(output, "class-areas-by-prefix")
    by_day = ask(output, "class-areas-by-prefix", "depth=1", "class=boat")
    assert by_day == [(MONDAY, "boat", 5.0), (TUESDAY, "boat", 40.0)]


def test_images_with_a_class_and_without_another(output: str) -> None:
    assert [row[0] for row in ask(output, "images-with", "sky", "boat")] == [f"{MONDAY}/b.jpg"]
    assert [row[0] for row in ask(output, "images-with", "boat", "percent=20")] == [uri for uri, *_ in IMAGES[2:4]]
    assert len(ask(output, "images-with", "boat", "limit=1")) == 1
    assert ask(output, "images-with", "tree") == [], "a class of the output that is in no image"


def test_the_least_confident_images_come_first(output: str) -> None:
    assert [row[0] for row in ask(output, "least-confident", "2")] == [f"{TUESDAY}/b.jpg", f"{TUESDAY}/a.jpg"]
    assert [row[0] for row in ask(output, "least-confident", "9", MONDAY)] == [f"{MONDAY}/b.jpg", f"{MONDAY}/a.jpg"]


def test_failures_by_kind_with_an_example(output: str) -> None:
    message = "the file has no bytes"
    assert ask(output, "failures") == [("decode", "Empty", 1, 16.667, f"{MONDAY}/x.jpg", message)]
    assert ask(output, "failures", TUESDAY) == []


def test_runs_have_their_rate_and_one_without_an_end_is_there_too(output: str) -> None:
    going_on, finished = ask(output, "runs")  # in the order of their last sign of life
    assert (finished[0], finished[2:8]) == ("run1", (2, 1, 3, 6.0, 0.5, 2.5))
    assert (going_on[0], going_on[1:4], going_on[4]) == ("run2", (None, None, None), 3)


def test_classes_that_appear_together(output: str) -> None:
    found = {row[:2]: row[2:] for row in ask(output, "co-occurrence", "min_images=1")}
    assert found["boat", "sky"] == (3, 0.75, 1.25)
    assert not any("road" in pair for pair in found)
    assert ask(output, "co-occurrence", "30", "min_images=1") == [("sky", "water", 2, 1.0, 2.5)]


def test_pairs_of_classes_are_in_the_order_of_lift_and_rare_ones_are_left_out(tmp_path: Path) -> None:
    masks = [mask(sky=0.5, water=0.5)] * 4 + [mask(boat=0.5, road=0.5)] * 2 + [mask(tree=0.5, car=0.5), mask(sky=1.0)]
    write_classes_alone(tmp_path)
    add_part(tmp_path, [labelled(f"{MONDAY}/{number}.jpg", ids, 0.9) for number, ids in enumerate(masks)], "run")
    pairs = [
        ("car", "tree", 1, 1.0, 8.0),
        ("boat", "road", 2, 1.0, 4.0),
        ("sky", "water", 4, 0.8, 1.6),
    ]
    assert ask(str(tmp_path), "co-occurrence", "min_images=1") == pairs
    assert ask(str(tmp_path), "co-occurrence", "min_images=2") == pairs[1:]
    assert ask(str(tmp_path), "co-occurrence") == [], "ten images, unless set"


def test_drift_between_runs_and_between_prefixes(output: str) -> None:
    by_prefix = ask(output, "drift", MONDAY, TUESDAY)
    assert by_prefix == ask(output, "drift", "run1", "run2")
    found = {row[0]: row[1:] for row in by_prefix}
    assert found["boat"] == (5.0, 40.0, 35.0, pytest.approx(0.35 * np.log(8), abs=1e-4))
    assert found["road"][:3] == (0.0, 33.33, 33.33)
    assert sum(row[2] for row in found.values()) == pytest.approx(0, abs=0.05)


def test_sizes(output: str) -> None:
    assert ask(output, "sizes") == [("below 256", 5, 0.0, None, 0.1)]


def test_what_to_label_next_is_not_the_same_scene_twice(tmp_path: Path) -> None:
    # Ten frames each of three scenes, of which the fifth is what the model is least sure of.
    scenes = [(mask(sky=0.5, water=0.5), 0.9), (mask(sky=0.4, water=0.6), 0.5), (mask(road=1.0), 0.3)]
    rows = [
        labelled(f"{MONDAY}/{scene}/{frame}.jpg", ids, 0.5) | {"mean_entropy": entropy - 0.02 * abs(frame - 4)}
        for scene, (ids, entropy) in enumerate(scenes)
        for frame in range(10)
    ]
    write_classes_alone(tmp_path)
    add_part(tmp_path, rows, "run")
    picked = [row[0].removeprefix(f"{MONDAY}/") for row in ask(str(tmp_path), "next-to-label", "5")]
    # Each scene once; the mix that two of them have has its second turn after the other's only one.
    assert picked[:3] == ["0/4.jpg", "2/4.jpg", "1/4.jpg"]
    assert not {*picked[3:]} & {*picked[:3]}
    # No more images than there are are asked for in vain.
    assert len(ask(str(tmp_path), "next-to-label", "100")) == 30


def test_values_may_come_in_order_or_by_name() -> None:
    named = named_query("images-with")
    by_name = named.values(["limit=5", "class=boat"])
    assert by_name == {"class": "boat", "without": "", "percent": "1", "limit": "5"}
    assert named.values(["boat", "sky", "2", "5"]) == {"class": "boat", "without": "sky", "percent": "2", "limit": "5"}
    assert named.values(["class=a=b"])["class"] == "a=b"


def test_a_value_is_never_a_part_of_the_sql(output: str) -> None:
    for name, value, told in (
        ("images-with", "sky' OR 1=1 --", "not a class of the output"),
        ("least-confident", "1; DROP VIEW masks", "not a number"),
        ("failures", "s3://' OR '1'='1", "no image URI begins with it"),
    ):
        with pytest.raises(UserError, match=told):
            ask(output, name, value)


@pytest.mark.parametrize(
    ("name", "parameter"), [(named.name, p.name) for named in named_queries().values() for p in named.parameters]
)
def test_a_value_that_the_output_does_not_know_is_an_error_of_every_parameter(
    output: str, name: str, parameter: str
) -> None:
    right = {"number": "3", "class": "boat", "prefix": MONDAY, "run or prefix": "run1"}
    values = {p.name: right[p.kind] for p in named_query(name).parameters} | {parameter: "nothing like it"}
    with pytest.raises(UserError) as caught:
        ask(output, name, *(f"{key}={value}" for key, value in values.items()))
    assert f"query {name}: {parameter} 'nothing like it': n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("images-with", ["Boot"], "class 'Boot': not a class of the output; did you mean boat?"),
        ("images-with", ["boat", "ROAD"], "without 'ROAD': not a class of the output; did you mean road?"),
        ("class-areas-by-prefix", ["zzz"], "class 'zzz': not a class of the output; its classes are sky, "),
        (
            "class-areas",
            ["2026"],
            f"prefix '2026': no image URI begins with it; the output has URIs such as {MONDAY}/a.jpg",
        ),
        (
            "drift",
            ["run1", "run9"],
            "after 'run9': neither a run with labeled images nor the beginning of their URIs; ",
        ),
        ("drift", ["rum1", "run2"], "before 'rum1': .*did you mean run1"),
        (
            "drift",
            [f"{MONDAY}/x", "run2"],
            f"before '{MONDAY}/x': neither .*; the output has URIs such as {MONDAY}/a.jpg",
        ),
        ("least-confident", ["ten"], "query least-confident: limit 'ten': not a number"),
    ],
)
def test_an_unknown_value_is_answered_with_what_is_close_to_it(
    output: str, name: str, arguments: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        ask(output, name, *arguments)


def test_a_hint_lists_some_names_where_none_is_close() -> None:
    names = [f"class {number}" for number in range(1000)]
    assert suggestion("xyz", names, "its classes are").endswith(", class 19 and 980 more")


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        (
            "images-with",
            [],
            "query images-with: missing class (class that the images contain); usage: images-with CLASS",
        ),
        (
            "least-confident",
            ["1", "2", "3"],
            "unexpected value '3'; usage: least-confident [LIMIT] [PREFIX]",
        ),
        (
            "class-area",
            [],
            "query 'class-area': neither a named query nor a SQL statement; did you mean class-areas",
        ),
        ("zzz", [], "the named queries are class-areas, "),
    ],
)
def test_what_is_wrong_with_a_question_is_said(name: str, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        named_query(name).values(arguments)
    assert told in str(caught.value)


def test_the_output_has_what_the_answers_were_worked_out_for(output: str) -> None:
    relation = engine.run(engine.connect(output), "SELECT image_id FROM masks WHERE status = 'ok'")
    assert relation is not None
    assert {row[0] for row in relation.fetchall()} == {image_id(uri) for uri, *_ in IMAGES}
