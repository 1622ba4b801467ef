"""Loading of a job's settings: one pydantic model, filled from YAML, environment variables and the command line."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
)
from pydantic_settings.exceptions import SettingsError

from pipeline.config.command_line import Parser, closest
from pipeline.config.explanation import Explanation, explain_syntax, where
from pipeline.config.fields import JobSettings, is_positional, section_of
from pipeline.config.option_help import OptionHelp
from pipeline.console import log, warn_deprecated
from pipeline.errors import UserError
from pipeline.url_credentials import credentials_refusal, masked

CACHE = "cache"  # SCENEPARSE_CACHE is a folder of models/kernels/compiled.py, not a setting
MAX_VALUES = 100_000  # in a YAML file, with its aliases expanded
MAX_DIGITS = 1000  # of a number in a YAML file; Python refuses to print more than 4,300

Settings = TypeVar("Settings", bound=JobSettings)


def load_settings(settings: type[Settings], argv: list[str], prog: str) -> Settings:
    """Load a job's settings from `--config FILE`, the environment and the command line.

    `--help` prints the help and ends the process with exit code 0.

    Raises: UserError for an unknown option, or one that lists every wrong key with its value and the allowed values.
    """
    if unknown := unknown_variables(settings):
        log(f"warning: no job reads the environment variable {', '.join(unknown)}; correct or unset it", sys.stderr)
    argv = _quoted(_without_deprecated([_kebab(argument) for argument in argv], settings), settings)
    path = _option(argv, "--config") or os.environ.get("SCENEPARSE_CONFIG")
    in_file = _renamed(_read_yaml(path) if path else {}, settings)

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
            command_line: Any = CliSettingsSource(
                settings_cls,
                cli_parse_args=argv,
                root_parser=Parser(prog, settings.__doc__ or "", settings.examples),
                add_argument_method=OptionHelp(settings).add_argument,
                cli_shortcuts={key.replace("_", "-"): name for name, key in settings.short_names.items()},
            )
            return command_line, env_settings, InitSettingsSource(settings_cls, in_file)

    try:
        merged = FromEverywhere()  # without keyword arguments: a key in the file could be one of pydantic's own
        # A plain instance of the public class can be pickled to workers.
        values = {name: getattr(merged, name) for name in settings.model_fields}
        _require_text(merged, path)
        _check_no_credentials(merged, path)
        return cast(Settings, settings.model_construct(**values))
    except ValidationError as error:
        raise UserError(masked(Explanation(settings, argv, path).of(error))) from None
    except SettingsError as error:
        raise UserError(masked(explain_syntax(error, settings))) from None
    except RecursionError:
        raise UserError(f"{where(path)}: a value is nested too deeply; flatten it") from None


def unknown_variables(settings: type[JobSettings]) -> list[str]:
    """Return the SCENEPARSE_* environment variables that no job reads, each with the closest one that this job does."""
    prefix = settings.model_config["env_prefix"]
    known = {name for job in _kinds(JobSettings) for name in (*job.model_fields, *job.deprecated)} | {CACHE}
    unknown = []
    for variable in sorted(os.environ):
        key = variable[len(prefix) :].lower().replace("__", ".")
        if variable.upper().startswith(prefix) and key.partition(".")[0] not in known:
            close = closest(key, _keys(settings))
            meant = f" (did you mean {prefix}{close.replace('.', '__').upper()}?)" if close else ""
            unknown.append(variable + meant)
    return unknown


def _kinds(settings: type[JobSettings]) -> Iterator[type[JobSettings]]:
    """Yield a class of settings and all its subclasses."""
    yield settings
    for kind in settings.__subclasses__():
        yield from _kinds(kind)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a model that an environment variable can set."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = section_of(field.annotation)
        if section and get_origin(field.annotation) not in (tuple, list):
            yield from _keys(section, f"{prefix}{name}.")


def _kebab(argument: str) -> str:
    """Return `--train.batch-size=4` for `--train.batch_size=4`, so that keys can be typed as in the YAML file."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _without_deprecated(argv: list[str], settings: type[JobSettings]) -> list[str]:
    """Return `argv` with deprecated options in their present form, and print a note for each."""
    # A positional argument was an option of the same name.
    fields = {name: name for name in settings.model_fields if is_positional(settings, name)} | settings.deprecated
    options = {f"--{old.replace('_', '-')}": field for old, field in fields.items()}
    present = []
    for argument in argv:
        option, equals, value = argument.partition("=")
        field = options.get(option)
        if field is None:
            present.append(argument)
        elif is_positional(settings, field):
            warn_deprecated(f"option {option}", f"{field.upper()} without an option name")
            present += [value] if equals else []  # otherwise the next argument is the value
        else:
            warn_deprecated(f"option {option}", f"--{field}")
            present.append(f"--{field}{equals}{value}")
    return present


def _renamed(values: dict[str, Any], settings: type[JobSettings]) -> dict[str, Any]:
    """Return the values of a file with its deprecated keys, and those of the environment, under their present names."""
    prefix = settings.model_config["env_prefix"]
    for old, field in settings.deprecated.items():
        for name, source in ((old, values), (prefix + old.upper(), os.environ)):
            if name in source:
                warn_deprecated(name, field if source is values else prefix + field.upper())
                values = {**values, field: source[name]}
                values.pop(old, None)
    return values


def _quoted(argv: list[str], settings: type[JobSettings]) -> list[str]:
    """Return `argv` with the values of Texts options in quotes, since pydantic-settings joins them with commas."""
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
    """Return the option's value; the last occurrence wins, as in argparse."""
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
        raise UserError(f"configuration {path}: no such file; set --config to the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"configuration {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: not a UTF-8 text file: {error.reason}") from None
    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
            _require_limits(root)
        content = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"configuration {path}: is nested too deeply, or contains itself; flatten it") from None
    except Exception as error:  # PyYAML passes on any exception of a value's constructor, for example for February 31
        raise UserError(f"configuration {path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration {path}: contains a {type(content).__name__}, but must contain keys and values")
    return {str(key): value for key, value in content.items()}  # YAML 1.1 parses the key `on` as true


def _require_limits(root: yaml.Node) -> None:
    """Raise ValueError if a number is too long, or if the aliases (*name) expand to too many values."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:  # in other bases Python has no limit
                raise ValueError(f"a number has {len(node.value):,} digits; the limit is {MAX_DIGITS:,}")
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = inner if isinstance(node, yaml.MappingNode) else [(one,) for one in inner]
            counts[id(node)] = 1 + sum(count(one) for pair in pairs for one in pair)
        return counts[id(node)]

    if (found := count(root)) > MAX_VALUES:
        raise ValueError(f"its aliases expand to {found:,} values; the limit is {MAX_VALUES:,}")


def _require_text(settings: BaseModel, path: str | None) -> None:
    """Raise UserError for text with lone surrogates or non-UTF-8 bytes, which no table or file can hold."""
    for name, value in settings.model_dump().items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 20) : error.end + 20]
            raise UserError(
                f"{where(path)}: {name}: {near!r} is not valid UTF-8; correct it, and rename files with such names"
            ) from None


def _check_no_credentials(settings: BaseModel, path: str | None) -> None:
    """Raise UserError for a URL that contains credentials, since settings are saved and printed."""

    def look(name: str, value: Any) -> None:
        if isinstance(value, str) and (refusal := credentials_refusal(value)):
            raise UserError(f"{where(path)}: {name}: {masked(value)} {refusal}")
        for key, each in value.items() if isinstance(value, dict) else ():
            look(f"{name}.{key}" if name else key, each)
        for each in value if isinstance(value, list | tuple) else ():
            look(name, each)

    look("", settings.model_dump())
