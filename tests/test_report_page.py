"""The page of jobs/report.py in a browser: filters, orders, slider, keyboard, dark mode, and names that stay text."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser import browser, opened
from tests.output_samples import build, failed, scene_photo, write_output
from tests.small_output import NAMES, PALETTE, labelled

pytestmark = pytest.mark.slow

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CLASS_ATTACK = "'\"><script>alert(3)</script>"
SKY, BOAT = NAMES.index("sky"), NAMES.index("boat")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, a photo of boat alone, one that is gone, and one with a name that would like to run."""
    folder = tmp_path_factory.mktemp("page")
    rows = [scene_photo(folder / "photos", f"scene{n}.jpg", n, 0.95 - 0.05 * n) for n in range(8)]
    Image.new("RGB", (200, 100), (250, 250, 250)).save(folder / "photos" / "boat.png")
    rows.append(labelled((folder / "photos" / "boat.png").as_uri(), np.full((100, 200), BOAT, np.uint8), 0.3))
    for name, confidence in (("gone.jpg", 0.2), (ATTACK, 0.1)):
        rows.append(labelled(f"file://{folder}/photos/{name}", np.full((64, 64), SKY, np.uint8), confidence))
    rows.append(failed(f"s3://photos/{ATTACK}"))
    names = [*NAMES[:-1], CLASS_ATTACK]
    write_output(folder / "labels", rows, names)
    build(folder / "labels")
    return folder / "labels" / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium: Browser, report: Path) -> Iterator[Page]:
    with opened(chromium, report) as page:
        yield page


def names(page: Page) -> list[str]:
    """Of the cards, in the order in which they are seen."""
    return page.locator("#cards > li:visible .name").all_inner_texts()


def focused(page: Page) -> str:
    return page.evaluate(
        "document.activeElement.id || document.activeElement.querySelector('.name')?.textContent || ''"
    )


def test_a_script_that_got_into_the_page_does_not_run(chromium: Browser, report: Path, tmp_path: Path) -> None:
    inside = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'></body>"
    hostile = tmp_path / "report.html"
    hostile.write_text(report.read_text().replace("</body>", inside))
    page = chromium.new_page()
    page.goto(hostile.as_uri())
    assert "<script>window.ran" in page.content()
    page.locator("#search").fill("boat")
    expect(page.locator("#cards > li:visible")).to_have_count(1)  # our own script runs
    assert page.evaluate("window.ran") is None
    page.close()


def test_names_stay_text(page: Page) -> None:
    expect(page.get_by_text(ATTACK).first).to_be_visible()
    assert page.locator("script").count() == 2  # ours
    assert page.locator("img[src=x]").count() == 0
    page.locator("#search").fill("alert")
    page.locator("#cards button:visible").click()
    assert ATTACK in page.locator("#viewer-name").inner_text()
    assert page.locator("script").count() == 2
    # That nothing ran, `opened` makes sure: there was no dialog, no error, no request.


def test_a_class_filters_and_orders_by_its_share(page: Page) -> None:
    everything = names(page)
    assert len(everything) == 11
    assert page.locator("#order option[value=share]").is_disabled()
    page.locator("#class").select_option(str(BOAT))
    assert names(page)[0] == "boat.png"  # the least confident first
    assert len(names(page)) == 9
    assert "gone.jpg" not in names(page)
    expect(page.locator("#count")).to_have_text(f"{len(names(page))} of 11 pictures")
    expect(page.locator("#cards li:visible").first).to_contain_text("100.0% boat")
    page.locator("#order").select_option("share")
    shares = [
        float(text.split(" · ")[1].split("%")[0].strip("<"))
        for text in page.locator("#cards li:visible span.soft").all_inner_texts()
    ]
    assert shares == sorted(shares, reverse=True)
    page.locator("#class").select_option("")
    assert names(page) == everything  # an order by share of no class would be none
    assert page.locator("#order").input_value() == "least"


def test_orders(page: Page) -> None:
    least = names(page)
    assert least[1:3] == ["gone.jpg", "boat.png"]
    page.locator("#order").select_option("most")
    assert names(page) == least[::-1]
    page.locator("#order").select_option("key")
    assert [name for name in names(page) if name.startswith("scene")] == [f"scene{n}.jpg" for n in range(8)]


def test_search_by_key_and_by_reason(page: Page) -> None:
    page.locator("#search").fill("SCENE3")
    assert names(page) == ["scene3.jpg"]
    page.locator("#search").fill("nowhere")
    assert names(page) == []
    expect(page.locator("#count")).to_have_text("No matching pictures.")
    page.locator("#search").fill("")
    page.locator("#reason").select_option("least confident")
    found = names(page)
    assert 0 < len(found) < 11
    page.locator("#reason").select_option("")
    assert len(names(page)) == 11


def color_at(page: Page, selector: str) -> tuple[int, ...]:
    """Of the pixel in an element's middle, as the browser paints it."""
    content = page.locator(selector).first.screenshot()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 2))


def test_the_slider_goes_from_image_to_mask(page: Page) -> None:
    page.locator("#search").fill("boat.png")
    stack, slider = "#cards li:visible .stack", page.locator("#opacity")
    slider.fill("0")
    assert np.abs(np.subtract(color_at(page, stack), 250)).max() <= 2
    slider.fill("100")
    assert color_at(page, stack) == tuple(PALETTE[BOAT])
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "95"
    assert page.locator("#viewer input[type=range]").input_value() == "95"


def test_everything_works_from_the_keyboard(page: Page) -> None:
    order = names(page)
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("scene/")  # a slash is a letter here
    assert page.locator("#search").input_value() == "scene/"
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    assert focused(page) == order[0]
    page.keyboard.press("ArrowRight")
    assert focused(page) == order[1]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    page.keyboard.press("ArrowDown")
    below = order.index(focused(page))
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert focused(page) == order[1]
    page.keyboard.press("End")
    assert focused(page) == order[-1]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text().endswith("boat.png")
    expect(page.locator("#position")).to_have_text("3 of 11")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert focused(page) == "boat.png"  # where one was
    # One stop of Tab for all cards.
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "opacity"
    page.keyboard.press("Tab")
    assert focused(page) == "boat.png"


def test_the_open_picture_shows_one_class_alone(page: Page) -> None:
    page.locator("#search").fill("scene0")
    page.locator("#cards button:visible").click()
    legend = page.locator("#legend button")
    sky = legend.filter(has_text="sky")
    assert legend.count() > 2
    sky.click()
    assert sky.get_attribute("aria-pressed") == "true"
    colors = page.evaluate(
        """() => { const canvas = document.querySelector("#stage canvas");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const found = new Set();
        for (let at = 0; at < data.length; at += 4) found.add(data[at + 3] ? data.slice(at, at + 3).join() : "");
        return [...found].sort(); }"""
    )
    assert colors == ["", ",".join(map(str, PALETTE[SKY]))]
    assert page.locator("#stage canvas").is_visible()
    page.locator("#apart").check()
    image, alone = page.locator("#stage .image").bounding_box(), page.locator("#stage canvas").bounding_box()
    assert image["x"] + image["width"] <= alone["x"]
    sky.click()
    page.mouse.move(0, 0)
    assert not page.locator("#stage canvas").is_visible()


def test_an_image_that_is_gone_has_its_note(page: Page) -> None:
    page.locator("#search").fill("gone.jpg")
    expect(page.locator("#cards li:visible")).to_contain_text("image not available")
    assert color_at(page, "#cards li:visible .stack") == tuple(PALETTE[SKY])  # its mask, whatever the slider says
    page.locator("#cards button:visible").click()
    expect(page.locator("#picture-notes")).to_contain_text("NotFound: the file does not exist")


def luminance(css: str) -> float:
    red, green, blue = (int(part) for part in css.removeprefix("rgb(").removesuffix(")").split(","))
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


@pytest.mark.parametrize("dark", [False, True])
def test_dark_and_light(chromium: Browser, report: Path, dark: bool) -> None:
    with opened(chromium, report, dark=dark) as page:
        page.locator("#cards button").first.click()
        for selector in ("body", ".card", "dialog", "select", "input[type=search]"):
            colors = page.evaluate(
                "selector => { const s = getComputedStyle(document.querySelector(selector)); "
                "return [s.backgroundColor, s.color]; }",
                selector,
            )
            paper, ink = map(luminance, colors)
            assert (paper < ink) == dark, selector
            assert abs(paper - ink) > 0.6, selector


@pytest.mark.parametrize("width", [360, *(pytest.param(w, marks=pytest.mark.exhaustive) for w in (600, 1200, 1920))])
def test_a_page_is_as_wide_as_its_window(chromium: Browser, report: Path, width: int) -> None:
    with opened(chromium, report, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#cards button").first.click()
        box = page.locator("#viewer").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        stage = page.locator("#stage").bounding_box()
        assert stage["width"] > width / 2
