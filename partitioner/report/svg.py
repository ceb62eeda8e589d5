"""From a Matplotlib figure to SVG that lives inside the report's page: its colours, its letters, its light and dark.

A figure is drawn with the colours of `LIGHT`; in the SVG each of them becomes the page's variable of the same name, so
that a plot follows the page into dark mode. Text stays text, in the page's font. Nothing in the output depends on time
or chance, and nothing of it (ids, styles) reaches beyond its own `<svg>`.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

LIGHT = {
    "paper": "#fcfcfa",
    "panel": "#f4f4f0",
    "ink": "#1c2024",
    "muted": "#5b6570",
    "line": "#dcdfd9",
    "edge": "#00795a",
    "fog": "#b35c00",
    "cloud": "#1f5fa8",
    "edge-tint": "#e0f1ea",
    "fog-tint": "#fbead6",
    "cloud-tint": "#e1ecf8",
    "warn": "#8f4700",
    "warn-tint": "#fdf0d8",
    "first": "#0067a8",
    "second": "#c24e00",
    "third": "#008563",
    "fourth": "#a84f86",
    "fifth": "#7a6500",
    "sixth": "#3a86b8",
    "seventh": "#6b6f76",
}
DARK = {
    "paper": "#16191c",
    "panel": "#1f2327",
    "ink": "#e7e9eb",
    "muted": "#9ea8b2",
    "line": "#353b41",
    "edge": "#41cfa2",
    "fog": "#f0a55c",
    "cloud": "#80b5f0",
    "edge-tint": "#14342b",
    "fog-tint": "#3b2a15",
    "cloud-tint": "#182b41",
    "warn": "#f3b765",
    "warn-tint": "#35280f",
    "first": "#5aaee8",
    "second": "#ff9152",
    "third": "#3fd0a5",
    "fourth": "#e39ac6",
    "fifth": "#d3bd4c",
    "sixth": "#8fcdf2",
    "seventh": "#a9adb3",
}
"""Palettes after Okabe and Ito, which the colour-blind can tell apart; each text colour has contrast on its paper."""
LINES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
LETTER = 13
"""Size of letters; they shrink with the plot on a narrow screen."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sluice",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": LETTER,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.size": 4,
    "xtick.major.pad": 5,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
PIXELS = 72
"""An inch of Matplotlib, so that one of its points is one of the SVG's units."""
LONGEST_LABEL = 34

_VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_TIP = "tip"


@contextmanager
def style() -> Iterator[None]:
    """In here figures are made, drawn and saved in the report's style; without warnings of letters that only the
    browser has."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(width: int, height: int) -> Figure:
    """An empty figure of that many pixels."""
    made = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
    FigureCanvasSVG(made)
    return made


def axes(made: Figure, left: float, top: float, width: float, height: float, **more: object) -> Axes:
    """Axes at that place of the figure, in pixels from its upper left corner."""
    across, down = made.get_size_inches() * PIXELS
    return made.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), **more)


def label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A name that came from outside, for a plot: printable, in one line, its middle left out if it is long."""
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def dot(ax: Axes, x: float, y: float, tip: str = "", **look: object) -> PathCollection:
    """One dot, which says `tip` when it is pointed at."""
    gid = f"{_TIP}{len(ax.collections)}:{label(tip, 200)}" if tip else None
    return ax.scatter([x], [y], gid=gid, **look)


def inline(made: Figure, name: str, title: str) -> Markup:
    """The figure as an `<svg>` element; `name` sets its ids apart from other figures', `title` is read aloud."""
    file = io.BytesIO()
    made.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ET.fromstring(file.getvalue())
    linked = _prefix_links(root, name)
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(_SVG)
        for child in list(element):
            if child.tag.removeprefix(_SVG) in ("metadata", "style"):
                element.remove(child)
        if "style" in element.attrib:
            element.attrib["style"] = _themed(element.attrib["style"])
        if element.attrib.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        gid = element.attrib.pop("id", "")
        if gid in linked:
            element.attrib["id"] = f"{name}-{gid}"
        elif gid.startswith(_TIP) and ":" in gid:
            tip = ET.Element("title")
            tip.text = gid.partition(":")[2]
            element.insert(0, tip)
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": title, "class": "plot"}
    return Markup(ET.tostring(root, encoding="unicode"))


def _prefix_links(root: ET.Element, name: str) -> set[str]:
    """Let links inside the SVG point to ids that begin with `name`; returns the ids that are pointed to."""
    linked: set[str] = set()

    def prefixed(link: re.Match[str]) -> str:
        linked.add(link[1])
        return f"#{name}-{link[1]}"

    for element in root.iter():
        if _LINK in element.attrib:
            element.attrib["href"] = re.sub(r"#(.+)", prefixed, element.attrib.pop(_LINK))
        if "clip-path" in element.attrib:
            element.attrib["clip-path"] = re.sub(r"#([^)]+)", prefixed, element.attrib["clip-path"])
    return linked


def _themed(css: str) -> str:
    """Colours as variables of the page; letters in the page's font."""
    css = re.sub(r"#[0-9a-f]{6}", lambda color: _VARIABLES.get(color[0], color[0]), css)
    return re.sub(r" ?font-family: [^;]+;?", "", css)
