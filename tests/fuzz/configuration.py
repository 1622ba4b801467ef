"""Cases for the settings of jobs: a command line, an argument on each line behind the job's name, and a YAML file."""

import io
import os
import pickle
import random
import re
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import yaml

from pipeline.config.fields import JobSettings
from pipeline.config.jobs import AblateConfig, EvaluateConfig, ExportMasksConfig, SegmentConfig, TrainConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from pipeline.images.formats import deadline
from pipeline.inputs.selection import ImageSelection
from pipeline.inputs.uris import NAMED
from tests.fuzz.mutation import ODD, SEPARATOR, TEXTS, changed, damaged, joined, split

JOBS: dict[str, type[JobSettings]] = {
    "train": TrainConfig,
    "segment": SegmentConfig,
    "ablate": AblateConfig,
    "evaluate": EvaluateConfig,
    "export_masks": ExportMasksConfig,
}
RECIPES = Path(__file__).parents[2] / "configs"
SEGMENTATION = """\
output: out
checkpoint: run/best
input: [photos, s3://bucket/more]
include: '*.jpg'
sample: 0.5
shard: 1/2
limit: 10
decode_seconds: 5
protocol: {mode: sliding, scales: [0.5, 1.0], base_size: null}
retry_errors: [Timeout]
"""
# YAML that is more than it looks like.
YAML = (
    *("&a [*a]", "&a {a: *a}", "!!python/name:os.system", "!!binary '*'", "!!int x", "!!float x", "!!timestamp x"),
    *(
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!bool x",
        "!!null x",
        "!!str [a]",
        "!a b",
        "<<: 1",
        "=",
        "~",
    ),
    *("2024-99-99", "2024-02-30T25:61:61Z", "0001-01-01", "2024-01-01T00:00:00+99:99", "1:60:60", "0b_", "0x_", "0o7"),
    *(
        "1_000",
        "." * 3,
        "-.inf",
        ".nan",
        "1e400",
        '"\\ud800"',
        '"\\x00"',
        "? [a]\n: b",
        "? {a: b}\n: c",
        "%TAG ! x",
        "---\n---",
    ),
    *("[" * 400, "[" * 5000, "{a: " * 3000, "- " * 3000, "? " * 500, "'", "|\n x", ">+9\n x", "*a", "&a", "9" * 5000),
    *(
        "@",
        "`",
        "\t",
        "a: b: c",
        "\u0085",
        "\u2028",
        "{a: 1, a: 2}",
        "{<<: [{a: 1}, {a: 2}]}",
        "{1: 2, null: 3, 1.5: 4}",
    ),
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
DEPRECATED = re.compile(r"^note: \S[^\n]* is deprecated; use [^\n]*\n", re.MULTILINE)
NAMES = ("_env_file", "_cli_parse_args", "_secrets_dir", "self", "config", "model_config", "__class__", "data", "true")


def seeds() -> list[bytes]:
    """Every recipe that ships, and a segmentation."""
    line = b"train\n--output\nout\n--data.root=here"
    recipes = [joined(line, path.read_bytes()) for path in sorted(RECIPES.glob("*.yaml"))[::3]]
    evaluate = b'evaluate\n--checkpoint=c\n--data.root=d\n--data.label-map={"1": 2}\n--protocol.scales\n0.5,1'
    export = b'export_masks\nl\n--to=t\n--format=cityscapes\n--things=a\n--label-ids\n{"a": 1}'
    segment = b"segment\n--input\na,b\n--protocol.mirror\n--long-side\nnone\n--shard=3/8"
    ablate = recipes[0].replace(b"train", b"ablate", 1)
    alone = [joined(line, b"") for line in (evaluate, export, segment + b"\n--output=o\n--checkpoint=c")]
    return [*recipes, ablate, joined(segment, SEGMENTATION.encode()), *alone]


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another command line, other values in the file, or a damaged file."""
    line, text = split(content, 2)
    way = rng.random()
    if way < 0.3:
        return joined(_other_line(line, rng), text)
    if way < 0.5:
        return joined(line, damaged(text, rng, [split(rng.choice(others), 2)[1]]))
    if way < 0.75:
        return joined(line, _other_value(text, rng))
    try:
        tree = yaml.safe_load(text)
        return joined(line, yaml.safe_dump(changed(tree, rng), allow_unicode=True).encode("utf-8", "surrogatepass"))
    except Exception:  # of PyYAML, for what is damaged already
        return joined(line, damaged(text, rng))


def check(content: bytes) -> str:
    """Load the settings and use them. Raises whatever is neither settings, a UserError nor argparse's way out."""
    line, text = split(content, 2)
    name, *argv = os.fsdecode(line).replace("\0", "").split("\n")
    path = Path(_folder().name, "settings.yaml")
    path.write_bytes(text)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            config = load_settings(JOBS.get(name, TrainConfig), [f"--config={path}", *argv], prog=f"jobs/{name}.py")
            used(config)
        outcome = f"loaded {DEPRECATED.sub('', printed.getvalue())}"
    except UserError as error:
        outcome = str(error)
    except SystemExit as error:
        outcome = f"exit code {error.code}: {printed.getvalue()[-300:]}"
    assert outcome.startswith(("loaded", "exit code 0", "exit code 2")) or not DEPRECATED.sub("", printed.getvalue())
    assert outcome == "loaded " or not outcome.startswith("loaded"), "a warning was printed"
    assert len(outcome) < 100_000 + 10 * len(content), "a message that nobody reads"
    return outcome


def used(config: JobSettings) -> None:
    """Do with settings what the jobs do that has limits of its own."""
    pickle.dumps(config)
    yaml.safe_dump(config.model_dump(mode="json"))
    if isinstance(config, SegmentConfig):
        with deadline(config.decode_seconds):
            ImageSelection(config, may_repeat=False).of(NAMED.empty_table())


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="sceneparse-fuzz-")


@cache
def _options() -> list[str]:
    """Every option that is a dotted name."""
    found = []
    for settings in JOBS.values():
        for name, field in settings.model_fields.items():
            found.append(name)
            found += [f"{name}.{inner}" for inner in getattr(field.annotation, "model_fields", ())]
    return found


def _other_line(line: bytes, rng: random.Random) -> bytes:
    arguments = line.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.random()
        if way < 0.6:
            option = rng.choice(("--", "--", "--no-", "-")) + rng.choice(_options()).replace("_", rng.choice("-_"))
            value = str(rng.choice((*TEXTS, "1", "a", "[1, 2]", '{"a": 1}', "[" * 3000, '{"a":' * 2000, '[{"a": 1}]')))
            arguments += [(option + rng.choice(("\n", "=")) + value).encode("utf-8", "surrogatepass")]
        elif way < 0.8 and len(arguments) > 1:
            del arguments[rng.randrange(1, len(arguments))]
        else:
            place = rng.randrange(len(arguments))
            arguments[place] = damaged(arguments[place], rng)
    return b"\n".join(arguments).replace(SEPARATOR, b"")


def _other_value(text: bytes, rng: random.Random) -> bytes:
    """A line with a value that YAML makes something else of, or with another key."""
    lines = text.decode("utf-8", "replace").split("\n")
    place = rng.randrange(len(lines))
    key, colon, value = lines[place].partition(":")
    way = rng.random()
    if way < 0.1:
        return (BOMB + "\n".join(lines).replace(": ", ": *h #", 1)).encode("utf-8", "surrogatepass")
    if way < 0.3:
        indent = key[: len(key) - len(key.lstrip())]
        lines[place] = indent + str(rng.choice((*NAMES, *YAML, *TEXTS))) + colon + value
    elif way < 0.7:
        lines[place] = f"{key}: {rng.choice(YAML)}"
    else:
        odd = rng.choice(ODD)
        lines[place] = f"{key}: {'9' * 5000 if isinstance(odd, int) and abs(odd) > 10**4000 else odd}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")
