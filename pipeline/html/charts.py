"""Charts in a common style, as inline SVG that fits dark and light pages."""

import io
from typing import Any

import cycler
import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

# Distinct on white and on dark gray, also with red-green color blindness (Okabe and Ito, 2008).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
INK = "#808890"  # lines and text, legible on both backgrounds; in a page, its color of secondary text
PAGE_INK = "#010203"  # text on pale cells of a matrix; in a page, its color of text
# Starts fully transparent, so that it fits dark and light pages.
BLUES = LinearSegmentedColormap.from_list("blues", [to_rgba(COLORS[0], 0), to_rgba(COLORS[0])]).with_extremes(
    bad=to_rgba(INK, 0.3)
)
PHONE_WIDTH = 3.75  # inches; as wide as the window of a phone, 390 pixels, text of STYLE is 11 pixels high or more

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sceneparse",  # makes the SVG deterministic
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.prop_cycle": cycler.cycler(color=COLORS),
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def figure(width: float = PHONE_WIDTH, height: float = 2.5) -> Figure:
    """Return a new figure with this size in inches; create its axes and draw on them inside `with style():`.

    A wider figure is legible on a phone only in an element that scrolls.
    """
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def style() -> Any:
    """Return a context manager that applies the project's style."""
    return matplotlib.rc_context(STYLE)


def svg(drawn: Figure) -> Markup:
    """Return the figure as an <svg> element, safe to embed in a page because matplotlib escapes all text.

    INK and PAGE_INK become the page's own colors, light or dark.
    """
    buffer = io.StringIO()
    with style():
        FigureCanvasSVG(drawn).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(PAGE_INK, "currentColor").replace(INK, f"var(--soft, {INK})")
    return Markup(text)


def png(drawn: Figure, dots_per_inch: int = 150) -> bytes:
    """Return the figure as a PNG file with a white background."""
    buffer = io.BytesIO()
    with style():
        FigureCanvasAgg(drawn).print_figure(buffer, dpi=dots_per_inch, facecolor="white", format="png")
    return buffer.getvalue()
