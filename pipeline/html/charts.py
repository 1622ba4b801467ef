"""Charts in a common style, as inline SVG that fits dark and light pages."""

import io
from typing import Any

import cycler
import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Distinct on white and on dark gray, also with red-green color blindness (Okabe and Ito, 2008).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
INK = "#808890"  # lines and text, legible on both backgrounds

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


def figure(width: float = 6.0, height: float = 3.0) -> Figure:
    """Return a new figure with this size in inches; create its axes and draw on them inside `with style():`."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def style() -> Any:
    """Return a context manager that applies the project's style."""
    return matplotlib.rc_context(STYLE)


def svg(drawn: Figure) -> Markup:
    """Return the figure as an <svg> element, safe to embed in a page because matplotlib escapes all text."""
    buffer = io.StringIO()
    with style():
        FigureCanvasSVG(drawn).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def png(drawn: Figure, dots_per_inch: int = 150) -> bytes:
    """Return the figure as a PNG file with a white background."""
    buffer = io.BytesIO()
    with style():
        FigureCanvasAgg(drawn).print_figure(buffer, dpi=dots_per_inch, facecolor="white", format="png")
    return buffer.getvalue()
