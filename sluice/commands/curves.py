"""Curves in a terminal: values over epochs, drawn in Braille, two by four dots a character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white")
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a Braille character, by column and row."""
BLANK = 0x2800

Curves = Mapping[str, Sequence[float | None]]
"""By name the value after each epoch, the first one's first; None where there is none."""


def chart(curves: Curves, width: int = 72, height: int = 12) -> Text:
    """The curves in one frame of `width` by `height` characters, with their range, and below it their names and last
    values. Nothing but a word where no curve has a value."""
    values = [value for curve in curves.values() for value in curve if value is not None]
    if not values:
        return Text("nothing to draw yet")
    low, high = min(values), max(values)
    epochs = max(len(curve) for curve in curves.values())
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for number, curve in enumerate(curves.values()):
        for x, y in _points(curve, low, high, epochs, 2 * width, 4 * height):
            row, column = y // 4, x // 2
            dots, _ = cells.get((row, column), (0, ""))
            cells[row, column] = dots | DOTS[x % 2][y % 4], COLOURS[number % len(COLOURS)]
    text = Text()
    for row in range(height):
        text.append(f"{high:8.4g} ┤" if row == 0 else f"{low:8.4g} ┤" if row == height - 1 else "         │")
        for column in range(width):
            dots, colour = cells.get((row, column), (0, ""))
            text.append(chr(BLANK + dots) if dots else " ", colour)
        text.append("\n")
    text.append("         └" + "─" * width + f"\n          1{f'epoch {epochs}':>{width - 1}}\n")
    for number, (name, curve) in enumerate(curves.items()):
        last = next((value for value in reversed(curve) if value is not None), None)
        text.append("  ━ ", COLOURS[number % len(COLOURS)])
        text.append(f"{name} {last:.4g}" if last is not None else name)
    return text


def _points(
    curve: Sequence[float | None], low: float, high: float, epochs: int, width: int, height: int
) -> list[tuple[int, int]]:
    """Where there are dots, from above left: the curve's values, joined by lines."""
    across, up = (width - 1) / max(epochs - 1, 1), (height - 1) / (high - low or 1)
    at = [(i * across, (high - value) * up) for i, value in enumerate(curve) if value is not None]
    found = [(round(x), round(y)) for x, y in at]
    for (x, y), (next_x, next_y) in pairwise(at):
        steps = int(max(next_x - x, abs(next_y - y))) + 1
        found += [(round(x + (next_x - x) * i / steps), round(y + (next_y - y) * i / steps)) for i in range(1, steps)]
    return found
