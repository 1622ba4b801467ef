"""Files, sections, jobs and options that the documentation names exist."""

import functools
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.documented_blocks import BLOCKS, PAGES
from tests.in_process import run_script

JOBS = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "jobs").glob("[!_]*.py")}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COLUMNS = 100  # of code, which fit beside the site's navigation
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def sections(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[tuple[str, str]]:
    """(job or benchmark, rest of its command line) of every command that a page shows, over all its lines."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    shown = re.findall(r"((?:jobs|benchmarks)/\w+\.py)([^`\n]*)", text)
    return [(script, rest) for script, rest in shown if (REPOSITORY / script).exists()]


@functools.cache
def help_of(script: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        done = run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, section = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (section and section not in sections(file)):
            broken.append(target)
    assert broken == []


def test_the_text_of_a_link_is_not_the_name_of_a_page() -> None:
    texts = re.compile(r"\[([^\]]*)\]\([^)\s]+\.md(?:#[^)]*)?\)")
    named = [
        (page.name, text)
        for page in PAGES
        for text in texts.findall(page.read_text())
        if re.fullmatch(r"`?[\w/]+\.md`?|decisions/\d+", text)
    ]
    assert named == []


def test_code_is_not_wider_than_the_page_of_the_site() -> None:
    wide = [(str(block), line) for block in BLOCKS for line in block.code.splitlines() if len(line) > COLUMNS]
    assert wide == []


def test_commands_name_the_python_of_the_checkout() -> None:
    """After `ray job submit ... --` it is the cluster's, on a line of its own."""
    bare = [
        (str(block), line)
        for block in BLOCKS
        for line in block.code.splitlines()
        if re.match(r"(\$ )?python3? (jobs|benchmarks)/", line)
    ]
    assert bare == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_option_that_is_shown_is_one_of_its_job_or_benchmark(page: Path) -> None:
    unknown = []
    for script, rest in commands(page):
        # What follows a command in the same sentence or line is not its own.
        own = re.split(r"[|;&]|\s#\s| -- ", rest)[0]
        options = OPTION.findall(own)
        known = set(OPTION.findall(help_of(script))) if options else set()
        unknown += [f"{script} {option}" for option in options if option not in known]
    assert unknown == []


def test_every_job_is_told_of_in_the_readme_or_the_docs() -> None:
    told = {script for page in PAGES for script, _ in commands(page)}
    assert JOBS - told == {"jobs/demo.py"}  # which `make demo` is


def test_the_messages_of_the_troubleshooting_page_are_ones_that_are_given() -> None:
    """A message that is worded anew has to be worded anew there."""
    sources = [
        path.read_text() for folder in ("models", "pipeline", "jobs") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    # As one text each, where the source breaks it into several.
    given = re.sub(r'"\n\s*f?"', "", "\n".join(sources))
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    page = re.sub(r"<!-- kinds of failures -->.*?<!-- end -->", "", page, flags=re.DOTALL)  # made from the source
    rows = re.findall(r"^\| (`.+?`) \| ", page, re.MULTILINE)
    told = [message for row in rows for message in re.findall("`([^`]+)`", row)]
    assert len(told) > 15
    assert [message for message in told if message not in given] == []
