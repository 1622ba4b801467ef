"""The code blocks of the documentation, as its pages print them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.requirements import INT8

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")])
LANGUAGES = ("sh", "python", "sql")  # of what a reader types

# Titles of blocks that no test runs. Readers see them, too.
REASONS = (
    *("needs a cluster", "needs a GPU", "needs CamVid", "needs fiftyone", "needs the internet"),
    *("takes minutes", "takes an hour or more"),
)
# Titles of blocks that tests run where the machine has what they need.
CONDITIONS = {"needs a CPU with VNNI": INT8}
# The title of blocks that tests/test_one_machine.py runs.
TWO_TERMINALS = "in two terminals"
# The title of a block that is run, and stopped as soon as it serves.
ENDLESS = "runs until stopped"

FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(\$ )?(\.venv/bin/)?(python3?|ray|make|pip|jobs/\w+\.py)(\s|$)")


@dataclass(frozen=True)
class Block:
    """Code between fences."""

    page: str  # below the repository
    line: int  # of the page, on which the code begins
    language: str
    title: str | None
    code: str

    @property
    def is_run(self) -> bool:
        """Return whether tests run the block with its page, on a machine that has what it needs."""
        return self.language in LANGUAGES and self.title not in (*REASONS, TWO_TERMINALS)

    @property
    def can_run(self) -> bool:
        return self.title not in CONDITIONS or CONDITIONS[self.title].is_met()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    name = page.relative_to(REPOSITORY).as_posix()
    return [
        Block(name, text.count("\n", 0, found.start(3)) + 1, found[1], found[2], found[3])
        for found in FENCE.finditer(text)
    ]


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def commands_elsewhere(page: Path) -> list[str]:
    """Commands in indented code, and in blocks that are of no language which a reader types."""
    indented = [line for line in without_blocks(page.read_text()).splitlines() if line.startswith("    ")]
    others = [line for block in blocks(page) if block.language not in LANGUAGES for line in block.code.splitlines()]
    return [line for line in indented + others if COMMAND.match(line.strip())]


BLOCKS = [block for page in PAGES for block in blocks(page)]
