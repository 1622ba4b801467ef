"""How every job gets its settings: one pydantic model, filled from YAML, environment and command line."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.errors import UserError


def _several(value: Any) -> Any:
    """What `_quoted` made of the command line as a list; a single text stands for itself."""
    if isinstance(value, str):
        return json.loads(f"[{value}]") if value.startswith('"') else [value]
    return value


# Paths and patterns: each occurrence on the command line is one, with all commas and brackets that it has.
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_several)]


class Section(BaseModel):
    """A named group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobSettings(BaseSettings):
    """Base of all jobs: the command line beats SCENEPARSE_* variables, which beat the YAML file."""

    model_config = SettingsConfigDict(
        env_prefix="SCENEPARSE_",
        env_nested_delimiter="__",
        extra="forbid",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_parse_none_str="none",  # as the descriptions say it
    )

    config: str | None = Field(None, description="YAML file with any of these options.")
    verbose: bool = Field(False, description="Show Ray's own log lines.")


Settings = TypeVar("Settings", bound=JobSettings)


def load_settings(settings: type[Settings], argv: list[str], prog: str) -> Settings:
    """Read a job's settings from `--config FILE`, the environment and the command line.

    Raises UserError that names every wrong key with its value and what is allowed. `--help` and unknown
    options end the process as argparse does (exit codes 0 and 2).
    """
    argv = _quoted([_kebab(argument) for argument in argv], settings)
    path = _option(argv, "--config") or os.environ.get("SCENEPARSE_CONFIG")
    in_file = _read_yaml(path) if path else {}

    class FromEverywhere(settings):  # type: ignore[valid-type, misc]
        __doc__ = settings.__doc__

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: Any = CliSettingsSource(settings_cls, cli_parse_args=argv, cli_prog_name=prog)
            return command_line, env_settings, init_settings

    try:
        merged = FromEverywhere(**in_file)
        # A plain instance of the public class: it can be pickled to workers.
        values = {name: getattr(merged, name) for name in settings.model_fields}
        return cast(Settings, settings.model_construct(**values))
    except ValidationError as error:
        raise UserError(_explain(error, settings, path)) from None
    except SettingsError as error:
        raise UserError(f"{_where(path)}: {error}") from None


def _kebab(argument: str) -> str:
    """`--train.batch_size=4` -> `--train.batch-size=4`: keys may be typed as they stand in the YAML file."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _quoted(argv: list[str], settings: type[JobSettings]) -> list[str]:
    """Values of Texts in quotes, since pydantic-settings joins them with commas."""
    texts = {
        f"--{name.replace('_', '-')}" for name, field in settings.model_fields.items() if NoDecode in field.metadata
    }
    quoted = []
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if position and argv[position - 1] in texts:
            argument = json.dumps(argument)
        elif name in texts and equals:
            argument = name + equals + json.dumps(value)
        quoted.append(argument)
    return quoted


def _option(argv: list[str], name: str) -> str | None:
    """The option's value; the last one counts, as for argparse."""
    value = None
    for position, argument in enumerate(argv):
        if argument == name and position + 1 < len(argv):
            value = argv[position + 1]
        if argument.startswith(name + "="):
            value = argument.partition("=")[2]
    return value


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"configuration {path}: no such file; give --config the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"configuration {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: not a text file in UTF-8: {error.reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: holds a {type(content).__name__}, but must hold keys and values")
    return {str(key): value for key, value in content.items()}  # YAML takes `on:` for true


def _explain(error: ValidationError, settings: type[JobSettings], path: str | None) -> str:
    lines = [f"{_where(path)}: {error.error_count()} wrong setting(s)"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            lines.append(f"  {key}: missing; set it in the file or with --{key.replace('_', '-')}")
        elif item["type"] == "extra_forbidden":
            lines.append(f"  {key}: no such key; allowed here: {', '.join(_siblings(settings, item['loc']))}")
        elif key and item["type"] == "value_error":
            lines.append(f"  {key}: {message}")  # of a whole section; the message names the values
        elif key:
            lines.append(f"  {key}: {item['input']!r} is not allowed: {message}")
        else:
            lines.append(f"  {message}")
    return "\n".join(lines)


def _where(path: str | None) -> str:
    return f"configuration {path} with the command line" if path else "the command line"


def _siblings(settings: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where the last part of `location` stands."""
    model: Any = settings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
