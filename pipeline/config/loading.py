"""How every job gets its settings: one pydantic model, filled from YAML, environment and command line."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from pipeline.errors import UserError
from pipeline.url_credentials import credentials_refusal, masked


def _several(value: Any) -> Any:
    """What `_quoted` made of the command line as a list; a single text stands for itself."""
    if isinstance(value, str):
        return json.loads(f"[{value}]") if value.startswith('"') else [value]
    return value


MAX_VALUES = 100_000  # of a YAML file, with all that its aliases repeat
MAX_DIGITS = 1000  # of a number in it; Python prints 4,300

# Paths and patterns: each occurrence on the command line is one, with all commas and brackets that it has.
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_several)]


class Section(BaseModel):
    """A named group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobSettings(BaseSettings):
    """Base of all jobs: the command line beats SCENEPARSE_* variables, which beat the YAML file."""

    model_config = SettingsConfigDict(
        env_prefix="SCENEPARSE_",
        env_nested_delimiter="__",
        extra="forbid",
        allow_inf_nan=False,
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
            return command_line, env_settings, InitSettingsSource(settings_cls, in_file)

    try:
        merged = FromEverywhere()  # not of keywords, among which a key of the file could be one of pydantic's own
        # A plain instance of the public class: it can be pickled to workers.
        values = {name: getattr(merged, name) for name in settings.model_fields}
        _require_text(merged, path)
        _check_no_credentials(merged, path)
        return cast(Settings, settings.model_construct(**values))
    except ValidationError as error:
        raise UserError(masked(_explain(error, settings, path))) from None
    except SettingsError as error:
        raise UserError(masked(f"{_where(path)}: {error}")) from None
    except RecursionError:
        raise UserError(f"{_where(path)}: a value is nested too deeply; write it flat") from None


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
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"configuration {path}: no such file; give --config the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"configuration {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: not a text file in UTF-8: {error.reason}") from None
    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
            _require_limits(root)
        content = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"configuration {path}: is nested too deeply, or contains itself; write it flat") from None
    except Exception as error:  # PyYAML raises whatever a value runs into, such as the 31st of February
        raise UserError(f"configuration {path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: holds a {type(content).__name__}, but must hold keys and values")
    return {str(key): value for key, value in content.items()}  # YAML takes `on:` for true


def _require_limits(root: yaml.Node) -> None:
    """Raise ValueError for endless numbers, and for aliases (*name) that stand for more values than anyone writes."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:  # of another base than ten, Python reads it
                raise ValueError(f"a number of {len(node.value):,} digits; the limit is {MAX_DIGITS:,}")
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = inner if isinstance(node, yaml.MappingNode) else [(one,) for one in inner]
            counts[id(node)] = 1 + sum(count(one) for pair in pairs for one in pair)
        return counts[id(node)]

    if (found := count(root)) > MAX_VALUES:
        raise ValueError(f"its aliases make {found:,} values of it; the limit is {MAX_VALUES:,}")


def _require_text(settings: BaseModel, path: str | None) -> None:
    """Raise UserError for text with half characters or bytes of another encoding, which no table or file can hold."""
    for name, value in settings.model_dump().items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 20) : error.end + 20]
            raise UserError(
                f"{_where(path)}: {name}: {near!r} is not text in UTF-8; correct it, and rename files of such names"
            ) from None


def _check_no_credentials(settings: BaseModel, path: str | None) -> None:
    """Raise UserError for a URL with credentials, since settings are saved and printed."""

    def look(name: str, value: Any) -> None:
        if isinstance(value, str) and (refusal := credentials_refusal(value)):
            raise UserError(f"{_where(path)}: {name}: {masked(value)} {refusal}")
        for key, each in value.items() if isinstance(value, dict) else ():
            look(f"{name}.{key}" if name else key, each)
        for each in value if isinstance(value, list | tuple) else ():
            look(name, each)

    look("", settings.model_dump())


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
            lines.append(f"  {key}: {_shortened(masked(repr(item['input'])))} is not allowed: {message}")
        else:
            lines.append(f"  {message}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


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
