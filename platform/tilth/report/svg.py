"""Matplotlib figures as inline SVG that follows the page: its colours, its font, its dark mode, its screen reader."""

from __future__ import annotations

import io
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Drawn in these colours, written as CSS variables of the page, which has a light and a dark value for each.
INK, MUTED, RULE, BAD = "#1b1f23", "#66707a", "#d5d9de", "#b3362b"
SERIES = ("#2166ac", "#c2660c", "#2b7a4b", "#8e4a9e", "#0e8a8a", "#8a6d1b")
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", BAD: "bad"} | {c: f"c{i}" for i, c in enumerate(SERIES, 1)}

#: axes of what is counted: no tick between two of them
_COUNTED = ("step", "round")

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tilth",
    "text.parse_math": False,  # a label may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Picture:
    """An SVG element for the page, with what a screen reader says of it."""

    svg: Markup
    title: str
    description: str


@contextmanager
def drawing(width: float, height: float, panels: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `width` x `height` inches with panels side by side, in the report's style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])


class Pictures:
    """Makes pictures whose ids are unique within one page."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def of(self, figure: Figure, title: str, description: str) -> Picture:
        """The figure as inline SVG with a title and a description."""
        for axes in figure.axes:
            if axes.get_xlabel() in _COUNTED and axes.get_xscale() == "linear":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with mpl.rc_context(_STYLE):
            figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
        root = ET.fromstring(drawn.getvalue())
        prefix = f"figure{next(self._numbers)}-"
        _tidy(root)
        for element in root.iter():
            _adapt(element, prefix)
        _describe(root, prefix, title, description)
        ET.register_namespace("", _SVG.strip("{}"))
        return Picture(Markup(ET.tostring(root, encoding="unicode")), title, description)


def _tidy(root: ET.Element) -> None:
    """No metadata, no style sheet that would reach the whole page, no fixed size but an upper bound."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    root.set("style", f"max-width: {root.attrib['width']}")
    for name in ("width", "height", "version"):
        del root.attrib[name]


def _adapt(element: ET.Element, prefix: str) -> None:
    """Ids unique in the page, colours as variables."""
    if "id" in element.attrib:
        element.set("id", prefix + element.attrib["id"])
    if _HREF in element.attrib:
        element.set("href", element.attrib.pop(_HREF).replace("#", f"#{prefix}", 1))
    for name, value in element.attrib.items():
        value = re.sub(r"url\(#", f"url(#{prefix}", value)
        element.set(name, re.sub(r"#[0-9a-f]{6}\b", _variable, value) if name == "style" else value)
    if element.tag == f"{_SVG}text":
        style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", element.get("style", ""))
        # text that no colour was set for is black in Matplotlib's file; on the page it is ink
        element.set("style", style if "fill:" in style else f"{style}; fill: var(--ink)")


def _variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match.group())
    return f"var(--{name})" if name else match.group()


def _describe(root: ET.Element, prefix: str, title: str, description: str) -> None:
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}title {prefix}description")
    for place, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{_SVG}{name}", id=prefix + ("description" if name == "desc" else name))
        element.text = label(text, 4000)
        root.insert(place, element)


def label(text: str, width: int = 28) -> str:
    """Text that fits a figure: one line, no control characters (XML has no way to write them), cut with an ellipsis."""
    flat = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
