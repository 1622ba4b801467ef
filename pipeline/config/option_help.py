"""Help of the options that pydantic-settings derives from a job's settings."""

import re
from inspect import get_annotations
from typing import Any

from pipeline.config.command_line import Parser
from pipeline.config.fields import JobSettings, annotation_of, choices_of

WORDS = {"output": "FOLDER", "to": "FOLDER", "checkpoint": "FOLDER", "weights": "FOLDER", "root": "FOLDER"}

EMPTY_DEFAULT = re.compile(r" \(default: ([Nn]one|\(\)|\{\}|\[\]|)\)$")


class OptionHelp:
    """Registration of options with words instead of types, in groups by the class that defines them."""

    def __init__(self, settings: type[JobSettings]) -> None:
        self._settings = settings
        self._groups: dict[str, Any] = {}

    def add_argument(self, container: Any, *names: str, **kwargs: Any) -> None:
        """Add an option to a parser or a group, as pydantic-settings asks for."""
        key = kwargs.get("dest") or names[0]
        if "metavar" in kwargs and names[0].startswith("-"):
            choices = choices_of(annotation_of(self._settings, key))
            kwargs["metavar"] = "{" + ",".join(choices) + "}" if choices else _word(key)
        # The descriptions say what happens without a value.
        kwargs["help"] = EMPTY_DEFAULT.sub("", kwargs.get("help") or "")
        title = self._title(key) if isinstance(container, Parser) else None
        if title and title not in self._groups:
            self._groups[title] = container.add_argument_group(title)
        (self._groups[title] if title else container).add_argument(*names, **kwargs)

    def _title(self, key: str) -> str | None:
        """Return the title that the class which defines a field gives to its options."""
        for kind in self._settings.__mro__:
            if key in get_annotations(kind):
                title: str | None = vars(kind).get("option_group")
                return title
        return None


def _word(key: str) -> str:
    """Return the word that stands for an option's value in the help: `optimization.batch_size` -> `BATCH-SIZE`."""
    name = key.rpartition(".")[2]
    return WORDS.get(name, name.replace("_", "-").upper())
