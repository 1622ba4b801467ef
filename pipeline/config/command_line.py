"""Command lines of all jobs: help that begins with examples, and errors of one line that name the closest option."""

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from pipeline.config.uris import absolute_uri
from pipeline.console import warn_deprecated
from pipeline.errors import UserError

WIDTH = 100  # columns of the help


class Parser(argparse.ArgumentParser):
    """Argument parser of a job, whose errors are UserErrors of one line.

    Args:
        prog: the job as users call it, `jobs/train.py` or `sceneparse train`.
        description: what the job does, in a sentence or two.
        examples: arguments of typical calls.
    """

    def __init__(self, prog: str, description: str, examples: Iterable[str] = ()) -> None:
        calls = [f"  {_command(prog)} {example}".rstrip() for example in examples]
        super().__init__(
            prog=prog,
            description="\n".join([description, *(["", "examples:"] if calls else []), *calls]),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,  # an option of the next release could make an abbreviation ambiguous
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="show this help and exit")

    def format_usage(self) -> str:
        """Return the usage in one line, since some jobs have seventy options."""
        arguments = [
            str(action.metavar or action.dest)
            for action in self._get_positional_actions()
            if action.help != argparse.SUPPRESS
        ]
        return " ".join(["usage:", _command(self.prog), *arguments, "[OPTIONS]"]) + "\n"

    def format_help(self) -> str:
        self.usage = self.format_usage().removeprefix("usage: ").rstrip()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message, or with the closest known option."""
        if unknown := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            words = unknown[1].split(" ")
            options = [word.partition("=")[0] for word in words if word.startswith("-")]
            message = "; ".join(map(self._unknown, options)) or f"unexpected argument {words[0]!r}"
        raise UserError(f"{message}; {_command(self.prog)} --help lists the options")

    def _unknown(self, option: str) -> str:
        close = closest(option, self._option_string_actions)
        return f"unknown option {option}{f' (did you mean {close}?)' if close else ''}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that shows an option's value once, not after each of its names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(sorted(action.option_strings, key=len))
        if not names or action.nargs == 0:
            return names or super()._format_action_invocation(action)
        return f"{names} {self._format_args(action, action.dest.upper())}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a wrong one, as a whole or after its last dot; None if none is."""
    names = {one.replace("_", "-"): one for one in known}
    last_words = {one.rpartition(".")[2].lstrip("-"): names[one] for one in sorted(names, reverse=True)}
    name = name.replace("_", "-")
    for text, candidates in ((name, names), (name.rpartition(".")[2].lstrip("-"), last_words)):
        if found := get_close_matches(text, candidates, 1, 0.75):
            return candidates[found[0]]
    return None


def uri(location: str) -> str:
    """Convert an argument to an absolute URI, as the `type` of argparse."""
    try:
        return absolute_uri(location)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_to_option(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """Add the option --to, for the result of a job; `given_to` returns its value."""
    parser.add_argument("--to", type=uri, metavar=metavar, help=help)
    parser.add_argument("deprecated_to", nargs="?", type=uri, help=argparse.SUPPRESS)


def given_to(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return the value of --to, or of the last positional argument, which had its place in the previous release."""
    if arguments.to is None and arguments.deprecated_to is None:
        parser.error("the option --to is missing")
    if arguments.deprecated_to is None:
        return str(arguments.to)
    if arguments.to is not None:
        parser.error(f"unrecognized arguments: {arguments.deprecated_to}")
    warn_deprecated(f"{arguments.deprecated_to} without an option name", f"--to {arguments.deprecated_to}")
    return str(arguments.deprecated_to)


def _command(prog: str) -> str:
    return f"python {prog}" if prog.endswith(".py") else prog
