"""Settings: which source wins, and what a user is told who got one wrong."""

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import storage
from pipeline.config.data import default_color
from pipeline.config.dataset_formats import classes_of
from pipeline.config.fields import JobSettings
from pipeline.config.jobs import SegmentConfig, TrainConfig
from pipeline.config.loading import load_settings
from pipeline.config.uris import absolute_uri
from pipeline.datasets.scenes import CLASSES, IGNORE_INDEX
from pipeline.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPE = """\
output: runs/first
data:
  root: photos
  classes:
    - {name: sky, color: [0, 0, 0]}
    - {name: road, color: [1, 1, 1]}
  label_map: {5: 1}
"""


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("SCENEPARSE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def load(path: Path, *options: str) -> TrainConfig:
    return load_settings(TrainConfig, ["--config", str(path), *options], prog="jobs/train.py")


def here(path: str) -> str:
    return f"file://{os.getcwd()}/{path}"


def complaint(path: Path, *options: str, add: str = "", text: str | None = None) -> str:
    """Return the error for the recipe with `add` at its end, or for `text` in its place."""
    path.write_text(RECIPE + add if text is None else text)
    with pytest.raises(UserError) as caught:
        load(path, *options)
    return str(caught.value)


# Where a setting comes from


def test_a_file_alone_sets_values_and_leaves_the_rest_at_the_papers_defaults(recipe: Path) -> None:
    config = load(recipe)
    assert (config.output, config.data.root, config.data.label_map) == (here("runs/first"), here("photos"), {5: 1})
    assert (config.model.backbone, config.model.bins) == ("resnet50", (1, 2, 3, 6))
    assert config.optimization.learning_rate == 0.01
    assert config.config == str(recipe)


def test_the_environment_beats_the_file(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEPARSE_DATA__ROOT", "from-environment")
    monkeypatch.setenv("SCENEPARSE_OPTIMIZATION__EPOCHS", "7")
    config = load(recipe)
    assert (config.data.root, config.optimization.epochs) == (here("from-environment"), 7)
    assert len(config.data.classes) == 2, "keys beside the one in the environment must stay"


def test_the_command_line_beats_the_environment_and_the_file(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEPARSE_DATA__ROOT", "from-environment")
    config = load(recipe, "--data.root", "from-command-line")
    assert config.data.root == here("from-command-line")
    assert len(config.data.classes) == 2, "keys beside the one on the command line must stay"


@pytest.mark.parametrize(
    "option",
    [
        ["--optimization.batch-size", "6"],
        ["--optimization.batch_size", "6"],
        ["--optimization.batch-size=6"],
        ["--optimization.batch_size=6"],
    ],
)
def test_a_key_may_be_typed_with_hyphens_or_as_it_stands_in_the_file(recipe: Path, option: list[str]) -> None:
    assert load(recipe, *option).optimization.batch_size == 6


def test_underscores_in_values_stay(recipe: Path) -> None:
    assert load(recipe, "--output=s3://a_b/c_d").output == "s3://a_b/c_d"
    assert load(recipe, "--output", "s3://a_b/--c_d").output == "s3://a_b/--c_d"


def test_lists_maps_and_switches_can_be_given_on_the_command_line(recipe: Path) -> None:
    config = load(
        recipe,
        *("--augment.crop", "129,137", "--model.bins", "[]", "--data.label_map", '{"5": 0, "7": 1}'),
        *("--no-model.reduce", "--workers.gpu"),
    )
    assert config.augment.crop == (129, 137)
    assert config.model.bins == ()
    assert config.data.label_map == {5: 0, 7: 1}
    assert (config.model.reduce, config.workers.gpu) == (False, True)


def test_a_value_of_the_file_can_be_unset_on_the_command_line(recipe: Path) -> None:
    recipe.write_text(RECIPE + "  long_side: 512\n")
    assert load(recipe).data.long_side == 512
    assert load(recipe, "--data.long-side", "none").data.long_side is None


def test_the_file_may_be_named_in_the_environment(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEPARSE_CONFIG", str(recipe))
    assert load_settings(TrainConfig, [], prog="jobs/train.py").output == here("runs/first")


def test_of_two_configuration_files_the_last_one_counts(recipe: Path, tmp_path: Path) -> None:
    """As for every other option, and as the `config` setting itself says."""
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("runs/first", "runs/second"))
    config = load_settings(TrainConfig, ["--config", str(recipe), "--config", str(other)], prog="jobs/train.py")
    assert (config.config, config.output) == (str(other), here("runs/second"))


def test_no_file_is_needed(tmp_path: Path) -> None:
    options = ["--input", "in", "--output", "out", "--checkpoint", "run/best", "--batch-size", "3"]
    config = load_settings(SegmentConfig, options, prog="jobs/segment_bucket.py")
    assert (config.input, config.batch_size, config.config, config.long_side) == (("in",), 3, None, None)


def test_settings_can_be_pickled_to_workers(recipe: Path) -> None:
    config = load(recipe)
    assert type(config) is TrainConfig
    assert pickle.loads(pickle.dumps(config)) == config


# What is wrong with a file


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file; set --config to the path of a YAML file"):
        load(tmp_path / "nowhere.yaml")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff", RECIPE.encode("utf-16")])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"picture\.yaml: not a UTF-8 text file"):
        load(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [("output: a\ndata: {root: [\n", "line 3"), ("output: a\n\tdata: b", "line 2"), ("output: a\na: b: c", "line 2")],
)
def test_bad_yaml_is_shown_with_its_line(recipe: Path, text: str, line: str) -> None:
    message = complaint(recipe, text=text)
    assert "recipe.yaml: not valid YAML" in message
    assert line in message


def test_yaml_that_names_python_objects_is_refused(recipe: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    message = complaint(recipe, text=f"output: !!python/object/apply:os.mkdir [{made}]\n")
    assert "recipe.yaml: not valid YAML" in message
    assert not made.exists()


@pytest.mark.parametrize(
    "value",
    [
        "2024-02-31",
        "2024-01-01T25:61:61Z",
        "!!timestamp x",
        "!!int x",
        "!!bool x",
        "0b_",
        pytest.param("9" * 5000, id="9s"),
        pytest.param("0x" + "f" * 5000, id="fs"),
    ],
)
def test_a_value_that_yaml_has_a_type_for_but_cannot_read_is_explained(recipe: Path, value: str) -> None:
    assert "recipe.yaml: not valid YAML" in complaint(recipe, add=f"weights: {value}\n")


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "output: &a [*a]"], ids=lambda text: text[:9])
def test_endless_nesting_is_explained(recipe: Path, text: str) -> None:
    assert "recipe.yaml: is nested too deeply, or contains itself; flatten it" in complaint(recipe, text=text)


@pytest.mark.parametrize("shape", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_unfold_to_billions_of_values_are_refused(recipe: Path, shape: str) -> None:
    names = "abcdefghijkl"
    pairs = itertools.pairwise(names)
    lines = [f"{later}: &{later} {shape.format(', '.join([f'*{name}'] * 9))}" for name, later in pairs]
    message = complaint(recipe, text="a: &a {x: 1}\n" + "\n".join([*lines, "output: *l"]))
    assert "recipe.yaml: not valid YAML: its aliases expand to" in message
    assert len(message) < 300


def test_a_few_aliases_are_fine(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("[0, 0, 0]", "&black [0, 0, 0]").replace("[1, 1, 1]", "*black"))
    assert load(recipe).data.classes[1].color == (0, 0, 0)


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("just words", "str")])
def test_a_file_without_keys_is_refused(recipe: Path, text: str, kind: str) -> None:
    assert f"contains a {kind}, but must contain keys and values" in complaint(recipe, text=text)


def test_an_empty_file_sets_nothing(recipe: Path) -> None:
    message = complaint(recipe, text="# nothing yet\n")
    assert "output: missing" in message
    assert "data.root: missing" in message
    assert "data.classes: missing; set it in the file\n" in f"{message}\n"


# What is wrong with a setting


@pytest.mark.parametrize(
    ("add", "key", "allowed"),
    [
        ("modell: {}\n", "modell", "output, weights, checkpoint_every, data, model, augment"),
        ("model: {backbon: resnet18}\n", "model.backbon", "backbone, width, stem, stem_channels"),
        ("optimization: {batch-size: 4}\n", "optimization.batch-size", "epochs, steps, batch_size"),
        # Options of pydantic-settings itself, which a file must not reach.
        ("_env_file: /etc/hostname\n", "_env_file", "output, weights"),
        ("_cli_parse_args: true\n", "_cli_parse_args", "output, weights"),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_that_are_allowed_there(
    recipe: Path, add: str, key: str, allowed: str
) -> None:
    message = complaint(recipe, add=add)
    assert f"  {key}: no such key; " in message
    assert "llowed here: " in message
    assert allowed in message
    assert "recipe.yaml" in message


def test_an_unknown_key_of_a_class_is_named_with_its_place(recipe: Path) -> None:
    message = complaint(recipe, text=RECIPE.replace("name: road", "nam: road"))
    assert "data.classes.1.nam: no such key; did you mean name? Allowed here: name, color" in message
    assert "data.classes.1.name: missing" in message


@pytest.mark.parametrize("key", ["1", "on", "null"])
def test_a_key_that_yaml_takes_for_no_text_is_an_unknown_key(recipe: Path, key: str) -> None:
    """YAML 1.1 reads `on` as true."""
    assert "no such key" in complaint(recipe, add=f"{key}: 2\n")


@pytest.mark.parametrize(
    ("add", "key", "value"),
    [
        ("optimization: {epochs: many}\n", "optimization.epochs", "'many'"),
        ("optimization: {epochs: 0}\n", "optimization.epochs", "0"),
        ("optimization: 5\n", "optimization", "5"),
        ("model: {backbone: resnet20}\n", "model.backbone", "'resnet20'"),
        ("augment: {crop: [129]}\n", "augment.crop", ""),
        ("model: {bins: [1, 0]}\n", "model.bins.1", "0"),
        ("  ignore_index: 70000\n", "data.ignore_index", "70000"),
        ("optimization: {learning_rate: .inf}\n", "optimization.learning_rate", "inf"),
        ("checkpoint_every: .nan\n", "checkpoint_every", "nan"),
        ("model: {bins: [1000]}\n", "model.bins.0", "1000"),
    ],
)
def test_a_wrong_value_is_shown_with_its_key(recipe: Path, add: str, key: str, value: str) -> None:
    message = complaint(recipe, add=add)
    assert f"  {key}: {value}" in message or f"  {key}.1: missing" in message
    assert "1 invalid setting" in message


def test_a_wrong_choice_is_answered_with_the_choices(recipe: Path) -> None:
    message = complaint(recipe, add="model: {backbone: resnet20}\n")
    assert all(name in message for name in ("resnet18", "resnet50", "resnet269"))


def test_every_wrong_setting_is_reported_at_once(recipe: Path) -> None:
    message = complaint(recipe, "--optimization.epochs", "0", add="model: {backbone: x}\nmodell: 1\n")
    assert "3 invalid settings" in message
    assert all(key in message for key in ("optimization.epochs", "model.backbone", "modell"))


def test_a_missing_key_is_answered_with_the_option_that_sets_it(recipe: Path) -> None:
    message = complaint(recipe, text=RECIPE.replace("  root: photos\n", ""))
    assert "data.root: missing; set it in the file or with --root or --data.root" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCENEPARSE_OPTIMIZATION__EPOCHS", "many"),
        ("SCENEPARSE_MODEL__NOPE", "1"),
        ("SCENEPARSE_MODEL__BINS", "many"),
        ("SCENEPARSE_MODEL", "{bad json"),
    ],
)
def test_a_wrong_value_in_the_environment_is_explained(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = complaint(recipe)
    assert f"environment variable {name}" in message
    key = name.removeprefix("SCENEPARSE_").replace("__", ".").lower()
    assert key.partition(".")[0] in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SCENEPARSE_EPOCHS", " (did you mean SCENEPARSE_OPTIMIZATION__EPOCHS?)"),
        ("sceneparse_optimisation__batch_size", " (did you mean SCENEPARSE_OPTIMIZATION__BATCH_SIZE?)"),
        ("SCENEPARSE_OUTPT", " (did you mean SCENEPARSE_OUTPUT?)"),
        ("SCENEPARSE_ZZZ", ""),
    ],
)
def test_a_variable_that_no_job_reads_is_named_with_the_closest(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "1")
    load(recipe)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == f"warning: no job reads the environment variable {name}{meant}; correct or unset it"


@pytest.mark.parametrize(
    "name", ["SCENEPARSE_CACHE", "SCENEPARSE_PRECISION", "SCENEPARSE_LABELS", "SCENEPARSE_VERBOSE"]
)
def test_variables_of_other_jobs_and_of_the_kernels_are_known(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "1")
    load(recipe)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [("--optimization.epochs", "many"), ("--model.bins", "many"), ("--data.label-map", "many"), ("--data", "many")],
)
def test_a_wrong_value_on_the_command_line_is_explained(recipe: Path, option: str, value: str) -> None:
    key = option.removeprefix("--").replace("-", "_")
    assert key in complaint(recipe, option, value)


def test_a_long_value_is_shown_by_its_beginning(recipe: Path) -> None:
    message = complaint(recipe, "--model.backbone", "resnet" * 10_000)
    assert "  model.backbone: 'resnetresnet" in message
    assert len(message) < 1000


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_endless_nesting_on_the_command_line_is_explained(recipe: Path, value: str) -> None:
    assert "and the command line: a value is nested too deeply; flatten it" in complaint(recipe, "--data", value)


@pytest.mark.parametrize(
    ("add", "options", "key", "text"),
    [
        ("", ["--weights", os.fsdecode(b"gr\xfcn")], "weights", r"gr\udcfcn"),
        ("", ["--data.root", os.fsdecode(b"gr\xfcn")], "data", r"gr\udcfcn"),
        ('weights: "\\ud800"\n', [], "weights", r"\ud800"),
    ],
    ids=["a name in Latin-1", "one of a section", "half a character"],
)
def test_text_that_is_not_utf8_is_refused(recipe: Path, add: str, options: list[str], key: str, text: str) -> None:
    message = complaint(recipe, *options, add=add)
    assert f"and the command line: {key}: " in message
    assert text in message
    assert "is not valid UTF-8" in message


@pytest.mark.parametrize("seconds", ["inf", "1e300"])
def test_a_deadline_beyond_what_clocks_count_is_refused(seconds: str) -> None:
    options = ["--input", "in", "--output", "out", "--checkpoint", "run/best", "--decode-seconds", seconds]
    with pytest.raises(UserError, match=rf"decode_seconds: '{seconds}' is not allowed"):
        load_settings(SegmentConfig, options, prog="jobs/segment_bucket.py")


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--optimization.epoch", "unknown option --optimization.epoch (did you mean --optimization.epochs?)"),
        ("--epoch=3", "unknown option --epoch (did you mean --epochs?)"),
        ("--batchsize", "unknown option --batchsize (did you mean --batch-size?)"),
        ("--train.epochs", "unknown option --train.epochs (did you mean --epochs?)"),
        ("--zzz", "unknown option --zzz"),
        ("stray", "unexpected argument 'stray'"),
        ("--data.root", "argument --data.root/--root: expected one argument"),
    ],
)
def test_an_unknown_option_is_answered_with_the_closest_one(recipe: Path, option: str, answer: str) -> None:
    with pytest.raises(UserError) as caught:
        load(recipe, option)
    assert str(caught.value) == f"{answer}; python jobs/train.py --help lists the options"


SHORT = {
    **{"--root": "data.root", "--format": "data.format", "--backbone": "model.backbone", "--crop": "augment.crop"},
    **{"--epochs": "optimization.epochs", "--steps": "optimization.steps"},
    **{"--batch-size": "optimization.batch_size", "--gpu": "workers.gpu"},
    **{"--learning-rate": "optimization.learning_rate", "--precision": "optimization.precision"},
    **{"--num-workers": "workers.count", "--bands": "data.bands", "--value-range": "data.value_range"},
}


def test_options_that_everyone_uses_have_short_names(recipe: Path) -> None:
    values = {"--root": "s3://b/d", "--format": "list", "--backbone": "resnet34", "--crop": "129,129", "--steps": "3"}
    values["--epochs"] = "none"
    values |= {"--batch-size": "6", "--learning-rate": "0.02", "--precision": "bfloat16", "--num-workers": "2"}
    values |= {"--bands": "3,2,1", "--value-range": "2%,98%"}
    short = [f"{name}={value}" for name, value in values.items()] + ["--gpu"]
    long = [f"--{SHORT[name]}={value}" for name, value in values.items()] + ["--workers.gpu"]
    assert load(recipe, *short) == load(recipe, *long) != load(recipe)
    assert {f"--{name}": key for name, key in TrainConfig.short_names.items()} == SHORT
    for name in {*SHORT} - {"--root", "--gpu"}:
        assert f"  {SHORT[name]}" in complaint(recipe, f"{name}=bad")


# Locations


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("runs/a", "file://{here}/runs/a"),
        ("runs/../b/", "file://{here}/b"),
        (".", "file://{here}"),
        ("/data//a/", "file:///data/a"),
        ("file:///data/a/", "file:///data/a"),
        ("file://a", "file://{here}/a"),
        ("~/a", "file://{home}/a"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a//b", "s3://bucket/a//b"),
        ("gs://bucket/a", "gs://bucket/a"),
    ],
)
def test_a_location_becomes_an_absolute_uri(location: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = uri.format(here=os.getcwd(), home="/home/me")
    assert absolute_uri(location) == expected
    assert absolute_uri(expected) == expected
    if not location.startswith("gs:"):
        assert storage.absolute(location) == expected


def test_an_empty_location_is_refused(recipe: Path) -> None:
    assert "  output: is empty; give a path or a URI" in complaint(recipe, "--output", "")


def test_a_submitted_job_refuses_relative_locations(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be in Ray's temporary copy of the working directory, which it deletes."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    message = complaint(recipe)
    assert "  output: runs/first is a relative path, but a submitted job runs in a temporary copy" in message
    assert "  data.root: photos is a relative path" in message
    config = load(recipe, "--output", "s3://bucket/run", "--root", "/data")
    assert (config.output, config.data.root) == ("s3://bucket/run", "file:///data")


# Classes


def test_classes_may_be_plain_names(recipe: Path) -> None:
    recipe.write_text("output: a\ndata: {root: b, classes: [background, {name: car, color: [1, 2, 3]}, sky]}\n")
    classes = [(entry.name, entry.color) for entry in load(recipe).data.classes]
    assert classes == [("background", (0, 0, 0)), ("car", (1, 2, 3)), ("sky", (0, 128, 0))]


def test_default_colors_are_those_of_voc() -> None:
    assert [default_color(entry.class_id) for entry in classes_of("voc")] == [e.color for e in classes_of("voc")]
    assert len({default_color(class_id) for class_id in range(256)}) == 256


# Rules between settings


def test_the_ignore_index_must_not_be_a_class(recipe: Path) -> None:
    message = complaint(recipe, add="  ignore_index: 1\n")
    assert "ignore_index 1 is the id of class 'road'; use an id from 2 up" in message


def test_a_rule_about_one_key_does_not_print_the_whole_section(recipe: Path) -> None:
    """With 150 classes the section fills several screens."""
    assert "color" not in complaint(recipe, add="  ignore_index: 1\n")


def test_class_names_must_differ(recipe: Path) -> None:
    message = complaint(recipe, text=RECIPE.replace("name: road", "name: sky"))
    assert "class names must differ; given more than once: sky" in message


def test_a_crop_must_fit_the_stride_when_corners_are_aligned(recipe: Path) -> None:
    message = complaint(recipe, add="augment: {crop: [473, 480]}\n")
    assert "augment.crop [473, 480] must be multiples of 8 plus 1" in message
    recipe.write_text(RECIPE + "augment: {crop: [473, 480]}\nmodel: {align_corners: false}\n")
    assert load(recipe).augment.crop == (473, 480)


def test_a_crop_below_64_pixels_is_refused(recipe: Path) -> None:
    assert "crop [57, 473] is too small" in complaint(recipe, add="augment: {crop: [57, 473]}\n")


@pytest.mark.parametrize("scale", ["[2, 1]", "[0, 1]", "[-1, 1]"])
def test_scales_must_be_positive_and_in_order(recipe: Path, scale: str) -> None:
    assert "must be two positive numbers, the smaller one first" in complaint(
        recipe, add=f"augment: {{scale: {scale}}}\n"
    )


def test_a_range_of_workers_begins_with_the_smaller_number(recipe: Path) -> None:
    assert r"count [4, 2] must list the smaller number first" in complaint(recipe, "--workers.count", "[4,2]")


def test_a_batch_must_hold_an_image_for_each_worker(recipe: Path) -> None:
    message = complaint(recipe, "--workers.count", "4", "--optimization.batch_size", "3")
    assert "optimization.batch_size 3 is smaller than the number of workers, 4" in message
    assert load(recipe, "--workers.count", "4", "--optimization.batch_size", "4").workers.most == 4


# What ships


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_when_it_is_told_its_places(path: Path) -> None:
    config = load(path, "--output", "out", "--data.root", "here")
    assert (config.output, config.data.root) == (here("out"), here("here"))


def test_the_scenes_recipe_has_the_classes_of_the_built_in_scenes() -> None:
    config = load(CONFIGS / "scenes_pspnet18.yaml", "--output", "out", "--data.root", "here")
    assert [(entry.name, entry.color) for entry in config.data.classes] == [tuple(entry) for entry in CLASSES]
    assert config.data.ignore_index == IGNORE_INDEX


def fields_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Every single setting below a model, by its dotted name."""
    found: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += fields_of(kind, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


@pytest.mark.parametrize("settings", [TrainConfig, SegmentConfig])
def test_help_explains_every_option_with_its_default(
    settings: type[JobSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(settings, ["--help"], prog="jobs/job.py")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: python jobs/job.py [OPTIONS] ")
    assert text.count("python jobs/job.py --") == len(settings.examples) == 2
    options = text[text.index("options:") :]
    assert not any(f"(default: {empty})" in options for empty in ("", "none", "None", "()", "{}"))
    for name, field in fields_of(settings):
        assert f"--{name.replace('_', '-')} " in options or f"--{name.replace('_', '-')}, " in options
        assert field.description, f"{name} has no description"
        ends = ["(required)"] if field.is_required() else [f"(default: {field.default})"]
        # The description says what an empty default means.
        assert field.default in (None, "", (), {}) or any(f"{field.description} {end}" in options for end in ends)
