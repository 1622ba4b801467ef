"""The page of jobs/report.py in a browser: filters, orders, slider, keyboard, dark mode, and names that stay text."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser import browser, opened, outside, smallest_chart_text
from tests.output_samples import build, failed, scene_photo, write_output
from tests.small_output import NAMES, PALETTE, labelled
from tests.test_report_job import holed_photo

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


def test_a_card_names_the_largest_class(page: Page) -> None:
    expect(page.locator("#cards li", has_text="boat.png")).to_contain_text("confidence 0.300 · 100.0% boat")


def test_failures_come_before_the_pictures(page: Page) -> None:
    assert page.locator("#failures").bounding_box()["y"] < page.locator("#pictures").bounding_box()["y"]


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


def open_picture(page: Page, words: str) -> None:
    page.locator("#search").fill(words)
    page.locator("#cards button:visible").click()
    page.wait_for_function("document.querySelector('.outlines').width !== 300")  # once its mask is decoded


def point_at(page: Page, x: float, y: float) -> None:
    """Move the pointer to a place of the open picture's stage, given as fractions of its sides."""
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])


def colors_of(page: Page, canvas: str) -> set[str]:
    """Of the pixels of a canvas; an empty string if it has transparent ones."""
    return set(
        page.evaluate(
            """kind => { const canvas = document.querySelector(`#stage .${kind}`);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const found = new Set();
            for (let at = 0; at < data.length; at += 4) found.add(data[at + 3] ? data.slice(at, at + 3).join() : "");
            return [...found]; }""",
            canvas,
        )
    )


def test_the_open_picture_shows_one_class_alone(page: Page) -> None:
    page.locator("#search").fill("scene0")
    page.locator("#cards button:visible").click()
    legend = page.locator("#legend button")
    sky = legend.filter(has_text="sky")
    assert legend.count() > 2
    sky.click()
    assert sky.get_attribute("aria-pressed") == "true"
    assert colors_of(page, "alone") == {"", ",".join(map(str, PALETTE[SKY]))}
    assert page.locator("#stage .alone").is_visible()
    page.locator("#apart").check()
    image, alone = page.locator("#stage .image").bounding_box(), page.locator("#stage .alone").bounding_box()
    assert image["x"] + image["width"] <= alone["x"]
    sky.click()
    page.mouse.move(0, 0)
    assert not page.locator("#stage .alone").is_visible()


def test_outlines_show_where_classes_meet(page: Page) -> None:
    open_picture(page, "scene0")
    expect(page.locator("#pointed")).to_be_hidden()  # until the pointer is there
    assert colors_of(page, "outlines") == {"", "0,0,0", "255,255,255"}
    assert page.locator("#stage .outlines").is_visible()
    page.locator("#outlined").uncheck()
    assert not page.locator("#stage .outlines").is_visible()


def test_a_mask_of_one_class_is_a_frame_around_the_picture(page: Page) -> None:
    open_picture(page, "boat.png")
    assert colors_of(page, "outlines") == {"", "0,0,0", "255,255,255"}
    edge, middle = page.evaluate(
        """() => { const canvas = document.querySelector(".outlines"), context = canvas.getContext("2d");
        return [[canvas.width - 1, 5], [canvas.width / 2, canvas.height / 2]]
            .map(([x, y]) => context.getImageData(x, y, 1, 1).data[3]); }"""
    )
    assert (edge, middle) == (255, 0)


def test_the_name_of_the_class_under_the_pointer_is_shown(page: Page) -> None:
    open_picture(page, "scene0")
    point_at(page, 0.5, 0.08)
    expect(page.locator("#pointed")).to_have_text("sky")
    expect(page.locator("#legend .pointed")).to_contain_text("sky")
    page.locator("#apart").check()
    stage = page.locator("#stage").bounding_box()
    for x in (0.25, 0.75):  # over the image and over the mask
        point_at(page, x, (stage["height"] - stage["width"] / 2 * 129 / 193) / 2 / stage["height"] + 0.03)
        expect(page.locator("#pointed")).to_have_text("sky")
    page.mouse.move(1, 1)
    expect(page.locator("#pointed")).to_be_hidden()


def test_a_place_without_data_is_said_to_have_none(chromium: Browser, tmp_path: Path) -> None:
    write_output(tmp_path / "labels", [holed_photo(tmp_path / "photos")])
    build(tmp_path / "labels")
    with opened(chromium, tmp_path / "labels" / "report.html") as page:
        open_picture(page, "0.tif")
        expect(page.locator("#picture-notes")).to_have_text("33.3% of the pixels have no data")
        stage = page.locator("#stage").bounding_box()
        height = stage["width"] * 129 / 193 / stage["height"]  # of the picture, as a fraction of the stage's
        for y, told in ((0.1, "no data"), (0.9, "sky")):
            point_at(page, 0.5, 0.5 + (y - 0.5) * min(1, height))
            expect(page.locator("#pointed")).to_have_text(told)


def test_a_hostile_class_name_under_the_pointer_stays_text(page: Page) -> None:
    open_picture(page, "scene1")
    page.locator("#legend button", has_text=CLASS_ATTACK).click()
    x, y = page.evaluate(
        """() => { const canvas = document.querySelector(".alone"), { width, height } = canvas;
        const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        for (let at = 0; ; at += 1) if (data[4 * at + 3]) {
          const box = canvas.getBoundingClientRect(), fit = Math.min(box.width / width, box.height / height);
          return [box.x + box.width / 2 + (at % width + 0.5 - width / 2) * fit,
                  box.y + box.height / 2 + (Math.floor(at / width) + 0.5 - height / 2) * fit]; } }"""
    )
    page.mouse.move(x, y)
    expect(page.locator("#pointed")).to_have_text(CLASS_ATTACK)


def test_a_picture_is_enlarged_around_the_pointer_and_moved(page: Page) -> None:
    open_picture(page, "scene0")
    zoom, image = page.locator("#zoom"), page.locator("#stage .image")
    before = image.bounding_box()
    point_at(page, 0.5, 0.08)
    page.mouse.wheel(0, -600)
    expect(zoom).not_to_have_text("100%")
    expect(page.locator("#pointed")).to_have_text("sky")
    after = image.bounding_box()
    assert after["width"] > 2 * before["width"]
    pointer = page.locator("#stage").bounding_box()
    y = pointer["y"] + 0.08 * pointer["height"]
    assert (y - after["y"]) / after["height"] == pytest.approx((y - before["y"]) / before["height"], abs=0.01)
    page.mouse.down()
    point_at(page, 0.6, 0.08)
    page.mouse.up()
    assert image.bounding_box()["x"] == pytest.approx(after["x"] + 0.1 * pointer["width"], abs=1)
    for keys in ("0", "+-"):
        for key in keys:
            page.keyboard.press(key)
        expect(zoom).to_have_text("100%")
    page.locator("#larger").click()
    expect(zoom).to_have_text("150%")
    page.locator("#search").evaluate("search => { search.value = ''; search.dispatchEvent(new Event('input')); }")
    page.locator("#next").click()
    expect(zoom).to_have_text("100%")


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


def test_the_controls_of_an_open_picture_fit_a_phone_on_its_side(chromium: Browser, report: Path) -> None:
    with opened(chromium, report, width=844, height=390) as page:
        page.locator("#cards button").first.click()
        for control in page.locator("#viewer .controls > *, #close").all():
            expect(control).to_be_in_viewport(ratio=0.99)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_the_page_and_of_an_open_picture(chromium: Browser, report: Path, dark: bool) -> None:
    with opened(chromium, report, width=390, height=844, dark=dark) as page:
        assert outside(page) == []
        assert smallest_chart_text(page) >= 11
        page.locator("#cards button").first.click()
        for control in page.locator("#viewer .controls > *, #close").all():
            expect(control).to_be_in_viewport(ratio=0.99)
        page.locator("#legend li").last.scroll_into_view_if_needed()
        expect(page.locator("#stage")).to_be_in_viewport(ratio=0.9)  # it stays above the legend
