"""Explanation of invalid settings to the user."""

import os
import re
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings.exceptions import SettingsError

from pipeline.config.command_line import closest
from pipeline.config.fields import JobSettings, annotation_of, is_positional, section_of
from pipeline.url_credentials import masked


class Explanation:
    """Explanation of invalid settings: each key, where its value comes from, and what is allowed."""

    def __init__(self, settings: type[JobSettings], argv: list[str], path: str | None) -> None:
        self._settings, self._path = settings, path
        self._options = {argument.partition("=")[0] for argument in argv if argument.startswith("--")}

    def of(self, error: ValidationError) -> str:
        lines = [line for item in error.errors() for line in self._lines(item)]
        settings = "settings" if len(lines) > 1 else "setting"
        return "\n".join([f"{where(self._path)}: {len(lines)} invalid {settings}", *lines])

    def _lines(self, item: Any) -> list[str]:
        location = item["loc"]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            return [f"  {key}: missing; set it {self._ways(key)}" for key in self._required(location)]
        if item["type"] == "extra_forbidden":
            known = _siblings(self._settings, location)
            close = closest(str(location[-1]), known)
            meant = f"did you mean {close}? Allowed here" if close else "allowed here"
            return [f"  {self._name(location)}: no such key; {meant}: {', '.join(known)}"]
        if not location:
            return [f"  {message}"]
        if item["type"] == "value_error":
            return [f"  {self._name(location)}: {message}"]  # the message contains the value, if it is not long
        value = _shortened(masked(repr(item["input"])))
        return [f"  {self._name(location)}: {value} is not allowed: {message}"]

    def _name(self, location: tuple[int | str, ...]) -> str:
        """Return the key, with the environment variable if its value comes from there."""
        key = _dotted(location)
        for length in range(len(location), 0, -1):
            part = _dotted(location[:length])
            if self._options & {f"--{name.replace('_', '-')}" for name in (part, *self._short_names(part))}:
                return key
            variable = f"{self._settings.model_config['env_prefix']}{part.replace('.', '__')}".upper()
            if variable in map(str.upper, os.environ):
                return f"{key} (environment variable {variable})"
        return key

    def _short_names(self, key: str) -> list[str]:
        return [name for name, full in self._settings.short_names.items() if full == key]

    def _required(self, location: tuple[int | str, ...]) -> list[str]:
        """Return the keys to set for a missing one: itself, or those that its section requires."""
        annotation = annotation_of(self._settings, _dotted(location))
        section = None if _several_values(annotation) else section_of(annotation)
        if section is None:
            return [_dotted(location)]
        return [_dotted((*location, name)) for name, field in section.model_fields.items() if field.is_required()]

    def _ways(self, key: str) -> str:
        """Return how a missing key can be set."""
        file = "in the file" if self._path else "in a YAML file (--config)"
        if key in self._settings.model_fields and is_positional(self._settings, key):
            return f"{file} or as the argument {key.upper()}"
        if _several_values(annotation_of(self._settings, key)) or any(part.isdigit() for part in key.split(".")):
            return file
        names = [f"--{name.replace('_', '-')}" for name in (key, *self._short_names(key))]
        return f"{file} or with {' or '.join(reversed(names))}"


def explain_syntax(error: SettingsError, settings: type[JobSettings]) -> str:
    """Return a message about an option or environment variable whose value is not the JSON that its key needs."""
    found = re.search(r'field "(\w+)" from source "(\w+)"', str(error))
    if found is None:
        return f"the command line: {error}"
    key = found[1]
    if found[2] == "EnvSettingsSource":
        variable = f"{settings.model_config['env_prefix']}{key}".upper()
        given = sorted(name for name in os.environ if f"{name.upper()}__".startswith(f"{variable}__"))
        place = f"environment variable {' or '.join(given)}"
    else:
        place = f"option --{key.replace('_', '-')}"
    return f"{place}: the value is not valid JSON; correct it, or set the keys one by one, such as {key}.KEY"


def where(path: str | None) -> str:
    return f"configuration {path} and the command line" if path else "the command line"


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))


def _siblings(settings: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed at the last part of `location`."""
    model = section_of(annotation_of(settings, _dotted(location[:-1]))) if len(location) > 1 else settings
    return list(model.model_fields) if model else []


def _several_values(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list, dict)
