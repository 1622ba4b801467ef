"""The documentation's site builds without a warning, has every page, link and section, and is searched from disk."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser import browser
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def open_page(site: Path) -> Iterator[Callable[[str, int], Page]]:
    """Return a function that opens a page of the site from disk, in a window of this width."""
    with browser() as running:

        def opened(name: str, width: int) -> Page:
            page = running.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(20_000)
            page.goto((site / name).as_uri())
            return page

        yield opened


def test_the_front_page_is_the_readmes(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert "make demo" in page
    assert 'src="scenes.jpg"' in page


def test_the_pages_of_the_navigation_are_there(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    sources = [path for path in (REPOSITORY / "docs").rglob("*.md")]
    assert {f"{path.relative_to(REPOSITORY / 'docs').with_suffix('.html').as_posix()}" for path in sources} <= pages


def test_every_link_of_the_site_leads_to_a_file_of_it(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if re.match(r"[a-z]+:|//", target) or target.startswith("/"):  # 404.html is for a site's root
                continue
            if not (page.parent / target).resolve().exists():
                broken.append((page.name, target))
    assert broken == []


def test_no_page_needs_anything_from_elsewhere(site: Path) -> None:
    fetched = [
        (page.name, address)
        for page in site.rglob("*.html")
        for address in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
    ]
    assert fetched == []


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("pretrained", "pretrained.html"),
        ("resume", "training.html"),
        ("out of memory", "training.html"),
        ("S3 endpoint", "storage.html"),
        ("class weights", "training.html"),
        ("TensorBoard", "training.html"),
    ],
)
def test_the_search_works_from_disk_and_finds_the_page_of_the_task_first(
    words: str, first: str, open_page: Callable[[str, int], Page]
) -> None:
    page = open_page("index.html", 1200)
    page.click("[data-md-component=search-query]")
    page.keyboard.type(words)
    found = page.wait_for_selector(".md-search-result__item a", state="attached")
    assert found.get_attribute("href").partition("?")[0].rpartition("/")[2].partition("#")[0] == first


@pytest.mark.parametrize("name", ["index.html", "training.html", "python.html", "camvid.html", "cluster.html"])
def test_code_fits_a_window_just_wide_enough_for_the_navigation(
    name: str, open_page: Callable[[str, int], Page]
) -> None:
    wide = """() => [...document.querySelectorAll("pre > code")]
        .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent)"""
    assert open_page(name, 1240).evaluate(wide) == []


@pytest.mark.parametrize("name", ["index.html", "training.html", "python.html", "faq.html", "cluster.html"])
def test_a_page_is_not_wider_than_a_phone(name: str, open_page: Callable[[str, int], Page]) -> None:
    assert open_page(name, 390).evaluate("document.documentElement.scrollWidth") == 390
