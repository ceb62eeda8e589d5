"""Names written into a plot, beside what they name, where they cover nothing.

All positions here are the figure's pixels; axes must have their limits and scales before names are placed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import IdentityTransform

from partitioner.report import svg
from partitioner.report.shape import Choice
from partitioner.report.svg import LETTER, LIGHT

INK, MUTED = LIGHT["ink"], LIGHT["muted"]
SMALL = LETTER - 2
AWAY = 18
"""Between the edge of a plot and the name of a line."""
PLACES = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.1), (0, -1.1), (1, 2.2), (-1, 2.2))
"""Sides of a dot where its name may stand, the best first: 1 right, -1 left; 1 above, -1 below."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True, slots=True)
class Named:
    """A line's name, the point where the line ends, and its look."""

    text: str
    x: float
    y: float
    color: str
    bold: bool = False


def name_dots(ax: Axes, choices: Sequence[Choice]) -> None:
    """Names of what was chosen and of baselines, beside their dots, where they cover no other dot or name."""
    window = ax.get_window_extent()
    whole = (window.x0, window.y0, window.x1, window.y1)
    dots = [ax.transData.transform((c.latency_ms, c.bytes)) for c in choices]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots]
    for c, (x, y) in sorted(zip(choices, dots, strict=True), key=lambda pair: not pair[0].chosen):
        if not (c.chosen or c.baseline):
            continue
        text = svg.label(c.name.partition(", codec ")[0]) if c.baseline else "chosen"
        away = 14 if c.chosen else 10
        places = [(side, _box(x + side * away, y + up * (away + 4), side, text)) for side, up in PLACES]
        side, box = min(places, key=lambda place: _badness(place[1], taken, whole))
        taken.append(box)
        ax.text(
            (box[0] + box[2] + side * (box[0] - box[2])) / 2,
            (box[1] + box[3]) / 2,
            text,
            transform=IdentityTransform(),
            ha={1: "left", -1: "right", 0: "center"}[side],
            va="center_baseline",
            weight="bold" if c.chosen else "normal",
            color=INK if c.chosen else MUTED,
            zorder=6,
        )


def room_for(names: Sequence[str]) -> float:
    """Pixels that `name_lines` needs for these names."""
    return _wide(max((svg.label(name) for name in names), key=len)) + AWAY + 4


def name_lines(ax: Axes, named: Sequence[Named], right: bool) -> None:
    """Names of lines beside their ends, at the right or left edge of the plot, moved apart."""
    box = ax.get_window_extent()
    ends = [ax.transData.transform((one.x, one.y)) for one in named]
    order = sorted(range(len(named)), key=lambda i: float(ends[i][1]))
    placed = _apart([float(ends[i][1]) for i in order], LETTER + 4, box.y0, box.y1)
    edge, away = (box.x1, 1) if right else (box.x0, -1)
    for i, height in zip(order, placed, strict=True):
        one, (x, y) = named[i], ends[i]
        lead = [(x, y), (edge, y), (edge + away * 8, height), (edge + away * (AWAY - 4), height)]
        ax.plot(*zip(*lead, strict=True), color=one.color, linewidth=0.9, transform=IdentityTransform(), clip_on=False)
        ax.text(
            edge + away * AWAY,
            height,
            svg.label(one.text),
            color=one.color,
            ha="left" if right else "right",
            va="center_baseline",
            weight="bold" if one.bold else "normal",
            transform=IdentityTransform(),
        )


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising `heights`, moved as little as needed so that neighbours are `gap` apart and all stay within low..high."""
    placed = list(heights)
    for _ in range(200):
        for i in range(len(placed) - 1):
            lack = gap - (placed[i + 1] - placed[i])
            if lack > 0.01:
                placed[i] -= lack / 2
                placed[i + 1] += lack / 2
        if placed and placed[0] < low:
            placed[0] = low
        if placed and placed[-1] > high:
            placed[-1] = high
    return placed


def name_marks(ax: Axes, marks: Sequence[tuple[float, str, bool]]) -> None:
    """Vertical lines at x, with names above the plot, as long as there is room; bold for what was chosen."""
    free = -math.inf
    for x, text, chosen in sorted(marks):
        ax.axvline(x, color=INK if chosen else MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        wide = _wide(text)
        at = float(ax.transData.transform((x, 1))[0])
        if at - wide / 2 > free or chosen:
            look = {"weight": "bold" if chosen else "normal", "color": INK if chosen else MUTED}
            ax.text(x, 1.04, text, ha="center", transform=ax.get_xaxis_transform(), **look)
            free = at + wide / 2 + 8


def _box(x: float, y: float, side: int, text: str) -> Box:
    """What `text` covers that begins (side 1) or ends (-1) at x, or has its middle there (0)."""
    left = x - _wide(text) * (1 - side) / 2
    return left, y - LETTER / 2 - 2, left + _wide(text), y + LETTER / 2 + 2


def _badness(box: Box, taken: Sequence[Box], whole: Box) -> float:
    """How much of `taken` a box covers, and how far it reaches out of `whole`."""
    covered = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    out = [whole[0] - box[0], whole[1] - box[1], box[2] - whole[2], box[3] - whole[3]]
    return covered + 50 * sum(max(0.0, length) for length in out)


def _wide(text: str) -> float:
    """About how wide `text` becomes in whatever font the reader has."""
    return 0.62 * LETTER * len(text)
