"""Named queries for common questions, each a SQL file in pipeline/query/queries.

A file begins with comments: a line that describes the result, then one line per parameter,

    -- name (kind) = default: description

where required parameters have no default, and the kind is one of Kind. The statement refers to the value as $name; it
is always text.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pipeline.errors import UserError

FOLDER = Path(__file__).parent / "queries"
Kind = Literal["number", "class", "prefix", "run or prefix"]
PARAMETER = re.compile(
    rf"-- (?P<name>\w+) \((?P<kind>{'|'.join(get_args(Kind))})\)(?: = (?P<default>[^:]*))?: (?P<description>.+)"
)
MAX_LISTED = 20  # names in a message


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: Kind
    default: str | None  # None: required
    description: str


@dataclass(frozen=True)
class NamedQuery:
    name: str
    title: str
    parameters: tuple[Parameter, ...]
    sql: str

    @property
    def usage(self) -> str:
        given = (p.name.upper() if p.default is None else f"[{p.name.upper()}]" for p in self.parameters)
        return " ".join([self.name, *given])

    def values(self, arguments: Sequence[str]) -> dict[str, str]:
        """Return parameter values by name, from arguments in order or as NAME=VALUE. Raises UserError."""
        values = {p.name: p.default for p in self.parameters}
        in_order = iter(self.parameters)
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if equals and name in values:
                values[name] = value
                continue
            place = next(in_order, None)
            if place is None:
                raise UserError(f"query {self.name}: unexpected value {argument!r}; usage: {self.usage}")
            values[place.name] = argument
        given = {name: value for name, value in values.items() if value is not None}
        if missing := [p for p in self.parameters if p.name not in given]:
            lacking = ", ".join(f"{p.name} ({p.description})" for p in missing)
            raise UserError(f"query {self.name}: missing {lacking}; usage: {self.usage}")
        return given


def named_queries() -> dict[str, NamedQuery]:
    """Return all named queries by name."""
    return {
        path.stem: _parsed(path.stem, path.read_text())
        for path in sorted(FOLDER.glob("*.sql"), key=lambda path: path.stem)
    }


def named_query(name: str) -> NamedQuery:
    """Return the query of this name. Raises UserError that suggests similar names."""
    queries = named_queries()
    if name not in queries:
        hint = suggestion(name, queries, "the named queries are")
        raise UserError(f"query {name!r}: neither a named query nor a SQL statement; {hint}")
    return queries[name]


def suggestion(name: str, known: Iterable[str], introduction: str) -> str:
    """Return a hint for a wrong name: up to three known names close to it in any case, or the known ones if none is."""
    names = [*known]
    by_folded = {one.casefold(): one for one in names}
    if near := difflib.get_close_matches(name.casefold(), by_folded):
        return f"did you mean {' or '.join(by_folded[one] for one in near)}?"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{introduction} {', '.join(names[:MAX_LISTED])}{more}"


def _parsed(name: str, text: str) -> NamedQuery:
    lines = text.splitlines()
    count = next(n for n, line in enumerate(lines) if not line.startswith("-- "))
    title, *described = lines[:count]
    parameters = []
    for line in described:
        found = PARAMETER.fullmatch(line)
        assert found, f"{name}.sql: {line}"
        kind = cast(Kind, found["kind"])
        parameters.append(Parameter(found["name"], kind, found["default"], found["description"]))
    return NamedQuery(name, title.removeprefix("-- "), tuple(parameters), "\n".join(lines[count:]).strip())
