"""Spellings of options of the previous release: they still work, and one line names their replacement."""

import os
from pathlib import Path

import pytest

from pipeline.config.command_line import Parser, add_to_option, given_to
from pipeline.config.fields import JobSettings
from pipeline.config.jobs import ExportMasksConfig, VerifyConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError

HERE = f"file://{os.getcwd()}/"


@pytest.mark.parametrize(
    ("settings", "argv", "values", "notes"),
    [
        (VerifyConfig, ["labels", "--deep"], {"output": HERE + "labels", "deep": True}, []),
        (VerifyConfig, ["--deep", "labels"], {"output": HERE + "labels", "deep": True}, []),
        (
            VerifyConfig,
            ["--output", "labels", "--input", "photos"],
            {"output": HERE + "labels", "input": ("photos",)},
            ["note: option --output is deprecated; use OUTPUT without an option name"],
        ),
        (
            VerifyConfig,
            ["--output=labels"],
            {"output": HERE + "labels"},
            ["note: option --output is deprecated; use OUTPUT without an option name"],
        ),
        (
            ExportMasksConfig,
            ["--things", "a,b", "labels", "--to", "masks"],
            {"output": HERE + "labels", "to": HERE + "masks", "things": ("a,b",)},
            [],
        ),
        (
            ExportMasksConfig,
            ["--labels", "labels", "--target=masks", "--things", "car"],
            {"output": HERE + "labels", "to": HERE + "masks", "things": ("car",)},
            [
                "note: option --labels is deprecated; use OUTPUT without an option name",
                "note: option --target is deprecated; use --to",
            ],
        ),
    ],
)
def test_options_have_their_values_and_deprecated_ones_a_note(
    settings: type[JobSettings],
    argv: list[str],
    values: dict[str, object],
    notes: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = load_settings(settings, argv, "job")
    assert {name: getattr(loaded, name) for name in values} == values
    assert capsys.readouterr().err.splitlines() == notes


def test_deprecated_keys_of_a_file_and_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export.yaml").write_text("labels: in-file\ntarget: in-file\n")
    monkeypatch.setenv("SCENEPARSE_TARGET", "in-environment")
    loaded = load_settings(ExportMasksConfig, ["--config", str(tmp_path / "export.yaml")], "job")
    assert (loaded.output, loaded.to) == (HERE + "in-file", HERE + "in-environment")
    assert capsys.readouterr().err.splitlines() == [
        "note: labels is deprecated; use output",
        "note: target is deprecated; use to",
        "note: SCENEPARSE_TARGET is deprecated; use SCENEPARSE_TO",
    ]


def test_positional_arguments_may_come_from_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verify.yaml").write_text("output: in-file\n")
    in_file = ["--config", str(tmp_path / "verify.yaml")]
    assert load_settings(VerifyConfig, in_file, "job").output == HERE + "in-file"
    monkeypatch.setenv("SCENEPARSE_OUTPUT", "in-environment")
    assert load_settings(VerifyConfig, in_file, "job").output == HERE + "in-environment"
    assert load_settings(VerifyConfig, [*in_file, "given"], "job").output == HERE + "given"


def test_missing_positional_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"output: missing; set it in a YAML file .* or as the argument OUTPUT"):
        load_settings(VerifyConfig, ["--deep"], "job")


def test_the_result_goes_to_the_option_or_to_its_former_place(capsys: pytest.CaptureFixture[str]) -> None:
    def parsed(*argv: str) -> str:
        parser = Parser("job", "Test.")
        parser.add_argument("source")
        parser.add_argument("--size")
        add_to_option(parser, metavar="FILE", help="result")
        return given_to(parser, parser.parse_intermixed_args(argv))

    assert parsed("in", "--to", "out") == parsed("--to", "out", "in") == HERE + "out"
    assert capsys.readouterr().err == ""
    assert parsed("in", "--size", "3", "out") == HERE + "out"
    assert capsys.readouterr().err == f"note: {HERE}out without an option name is deprecated; use --to {HERE}out\n"
    for argv, message in (
        (["in"], "the option --to is missing; "),
        (["in", "a", "--to", "b"], f"unexpected argument '{HERE}a'; "),
    ):
        with pytest.raises(UserError, match=message):
            parsed(*argv)
