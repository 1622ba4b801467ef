"""The documentation's site builds without a warning: every page is in it, and every link and section is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


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
