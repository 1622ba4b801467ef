"""A real browser for pages: headless Chromium, which the machine has or tests of pages are skipped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.requirements import BROWSER, browser_path


@dataclass
class Seen:
    """Errors and requests of a page, which should have none."""

    requests: list[str] = field(default_factory=list)  # for anything but the page itself
    problems: list[str] = field(default_factory=list)  # errors of scripts, messages, dialogs


@contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium; skips the test where there is none."""
    BROWSER.check()
    with sync_playwright() as playwright:
        # Without its sandbox, which needs rights that containers lack.
        running = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def opened(running: Browser, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A file's page in a window of this size. In the end it must not have asked for anything, nor complained."""
    context = running.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    context.set_default_timeout(10_000)
    page = context.new_page()
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("console", lambda message: seen.problems.append(message.text))
    page.on("dialog", lambda dialog: (seen.problems.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]
    assert not seen.problems


def outside(page: Page) -> list[str]:
    """Elements that reach beyond the window, also those that one can scroll to, except matrices of many classes."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(each => {
            const box = each.getBoundingClientRect();
            return box.width && (box.left < -1 || box.right > innerWidth + 1) && !each.closest("svg *, .matrix");
        }).map(each => `${each.tagName} ${each.id} ${each.textContent.trim().slice(0, 40)}`)"""
    )


def smallest_chart_text(page: Page) -> float:
    """Pixels of the height of the smallest text in the page's charts."""
    return page.evaluate(
        """() => Math.min(...[...document.querySelectorAll("svg text")].map(each => {
            const scale = each.getScreenCTM();
            return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(scale.a, scale.b);
        }))"""
    )
