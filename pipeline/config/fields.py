"""Base classes and types of settings, and look-up of the type of a key."""

import json
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, CliPositionalArg, NoDecode, SettingsConfigDict

from pipeline.config.uris import absolute_uri


def _several(value: Any) -> Any:
    """Return the values that `_quoted` encoded as a list; a plain text becomes a list of one."""
    if isinstance(value, str):
        return json.loads(f"[{value}]") if value.startswith('"') else [value]
    return value


# Paths and patterns: each occurrence of the option is one value, and its commas and brackets are kept as they are.
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_several)]
Uri = Annotated[str, AfterValidator(absolute_uri)]


def _given(value: str) -> str:
    if not value:
        raise PydanticCustomError("missing", "Field required")
    return value


_POSITIONAL = get_args(CliPositionalArg[str])[1]
# A required argument without an option name. Its default is "", since argparse would otherwise require it even if the
# file or the environment sets it.
PositionalUri = Annotated[
    CliPositionalArg[str], Field(validate_default=True), AfterValidator(_given), AfterValidator(absolute_uri)
]


class Section(BaseModel):
    """Named group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobSettings(BaseSettings):
    """Base of all jobs. Precedence: the command line, then SCENEPARSE_* environment variables, then the YAML file."""

    model_config = SettingsConfigDict(
        env_prefix="SCENEPARSE_",
        env_nested_delimiter="__",
        extra="forbid",
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_parse_none_str="none",  # the word used in the descriptions
    )

    # Arguments of typical calls, for the help.
    examples: ClassVar[tuple[str, ...]] = ()
    # Short names of options that everyone uses, and their keys.
    short_names: ClassVar[dict[str, str]] = {}
    # Title of the options in the help that a class adds to those of its base classes; None: with the job's own.
    option_group: ClassVar[str | None] = None
    # Names of options in the previous release, and their fields.
    deprecated: ClassVar[dict[str, str]] = {}

    config: str | None = Field(None, description="YAML file that sets any of these options.")
    verbose: bool = Field(False, description="Also show Ray's log lines.")


def annotation_of(settings: type[BaseModel], key: str) -> Any:
    """Return the type of a dotted key, such as optimization.epochs or data.classes.0.color; None if unknown."""
    model: type[BaseModel] | None = settings
    annotation: Any = None
    for part in key.split("."):
        if part.isdigit():
            continue
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
        model = section_of(annotation)
    return annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section, or of the entries of a list of sections; None for other types."""
    inner = (annotation, *get_args(annotation))
    return next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def choices_of(annotation: Any) -> list[str]:
    """Return the words that a type allows, as it is or in a list or union; empty if it is not of words."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType, tuple, list, Annotated):
        return next((words for inner in get_args(annotation) if (words := choices_of(inner))), [])
    return []


def is_positional(settings: type[JobSettings], name: str) -> bool:
    return _POSITIONAL in settings.model_fields[name].metadata
