"""The report's plots. Each function takes a part of the report and gives an `<svg>` element, or nothing where there is
nothing to see.

Lines and dots are named where they are, not in a legend; what was chosen is drawn in ink, everything else in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from partitioner.report import svg, words
from partitioner.report.plot_names import SMALL, Named, name_dots, name_lines, name_marks, room_for
from partitioner.report.shape import Choice, Exit, Links, SplitPoint
from partitioner.report.svg import LIGHT

INK, MUTED, LINE = LIGHT["ink"], LIGHT["muted"], LIGHT["line"]
STRETCH = 0.002
"""How near to 1 the stretched axis of confidences still tells them apart."""
WIDE_RANGE = 12
"""Largest over smallest value from which on an axis is logarithmic."""
DEVICE = LinearSegmentedColormap.from_list("device", ["#f2c14e", "#d1495b", "#4f2a87"])
"""From little to much work for the device; rising darkness, so that it reads without colour too."""
CODECS = ("float32", "int8", "int8-zstd", "coarse")
"""Those that are drawn at split points, if they are there; the table has all."""
Z95 = 1.96

Values = NDArray[np.float64]


def crowded(exits: Sequence[Exit]) -> bool:
    """Whether most confidences lie so near to 1 that an even axis would show nothing."""
    thresholds = sorted(swept.threshold for one in exits for swept in one.sweep if swept.threshold <= 1)
    return bool(thresholds) and thresholds[len(thresholds) // 2] > 0.9


def sweep(one: Exit, chosen: float | None, name: str, stretched: bool = False) -> Markup | None:
    """Agreement and accuracy of an exit's answers, and how many it would give, by threshold; `chosen` is marked."""
    swept = sorted((s for s in one.sweep if s.threshold <= 1), key=lambda s: s.threshold)
    if len({s.threshold for s in swept}) < 2:
        return None
    at = [s.threshold for s in swept]
    low = min(at[0], 0.99 if chosen is None else chosen, 0.99)
    good = {
        "agree with the full model": ("first", [s.agreement for s in swept]),
        "are right": ("second", [s.accuracy for s in swept]),
    }
    good = {what: line for what, line in good.items() if any(value is not None for value in line[1])}
    with svg.style():
        drawn = svg.figure(480, 340)
        above = svg.axes(drawn, 58, 48, 404, 112)
        below = svg.axes(drawn, 58, 196, 404, 98)
        for (what, (color, values)), x, side in zip(good.items(), (0, 1), ("left", "right"), strict=False):
            line = [math.nan if value is None else value for value in values]
            above.plot(at, line, color=LIGHT[color])
            above.text(x, 1.1, f"… {what}", color=LIGHT[color], ha=side, transform=above.transAxes)
        above.text(0, 1.1 + 19 / 112, "Of the answers at this threshold or above …", transform=above.transAxes)
        above.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        below.fill_between(at, [s.share for s in swept], color=LIGHT["third"], alpha=0.15, linewidth=0)
        below.plot(at, [s.share for s in swept], color=LIGHT["third"])
        below.text(0, 1.07, "Share of samples that it would answer", color=LIGHT["third"], transform=below.transAxes)
        below.set_ylim(0, 1.02)
        below.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        below.set_xlabel("threshold of the exit's confidence")
        for ax in (above, below):
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.4g} %"))
            _confidences(ax, low, stretched)
        above.tick_params(labelbottom=False)
        if chosen is not None and chosen <= 1:
            for ax in (above, below):
                ax.axvline(chosen, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            share = float(np.interp(chosen, at, [s.share for s in swept]))
            marks = [(above, color, _at(chosen, at, values)) for color, values in good.values()]
            for ax, color, value in (*marks, (below, "third", share)):
                if math.isnan(value):
                    continue
                svg.dot(ax, chosen, value, words.percent(value), color=LIGHT[color], s=40, zorder=5, clip_on=False)
            left = below.transAxes.inverted().transform(below.transData.transform((chosen, 0)))[0] > 0.5
            below.annotate(
                f"chosen: {words.threshold(chosen)}, answers {words.percent(share)}",
                (chosen, 0),
                (-7 if left else 7, 7),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=SMALL,
                bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
            )
        return svg.inline(drawn, name, f"Exit {svg.label(one.name)}: quality and share of its answers by threshold")


def reliability(one: Exit, right: str, name: str) -> Markup | None:
    """Confidence against the share of samples that are `right`, with 95 % intervals, and how many samples there are."""
    bins = [b for b in one.reliability.bins if b.count] if one.reliability else []
    if not one.reliability or not bins:
        return None
    low = min(0.9, math.floor(min(min(b.confidence, b.right) for b in bins) * 10) / 10)
    with svg.style():
        drawn = svg.figure(480, 340)
        above = svg.axes(drawn, 58, 48, 404, 180)
        below = svg.axes(drawn, 58, 240, 404, 54)
        above.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for b in bins:
            above.plot([b.confidence] * 2, [b.confidence, b.right], color=LIGHT["second"], linewidth=1.4, zorder=3)
            lower, upper = _interval(b.right, b.count)
            above.plot([b.confidence] * 2, [lower, upper], color=LIGHT["first"], linewidth=5, alpha=0.25)
            seen = f"{words.percent(b.right)} {right}, {words.count(b.count)} samples"
            tip = f"confidence {words.percent(b.confidence)}: {seen}"
            svg.dot(above, b.confidence, b.right, tip, color=LIGHT["first"], s=34, zorder=4, clip_on=False)
        above.text(0, 1.055, f"Share of its answers that {right}", color=LIGHT["first"], transform=above.transAxes)
        ece = f"expected calibration error {words.percent(one.reliability.ece)}"
        above.text(0, 1.055 + 19 / 180, ece.capitalize(), transform=above.transAxes)
        above.text(
            0.98, 0.05, "below the line: too sure", ha="right", fontsize=SMALL, color=MUTED, transform=above.transAxes
        )
        width = (1 - low) / 45
        below.bar([b.confidence for b in bins], [b.count for b in bins], width, color=LIGHT["first"], alpha=0.6)
        below.set_ylim(0, max(b.count for b in bins) * 1.05)
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        below.set_xlabel("confidence")
        below.text(0.01, 0.96, "samples", va="top", fontsize=SMALL, color=MUTED, transform=below.transAxes)
        for ax in (above, below):
            ax.set_xlim(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))
        above.set_ylim(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))
        above.tick_params(labelbottom=False)
        return svg.inline(drawn, name, f"Exit {svg.label(one.name)}: reliability diagram, {ece}")


def pareto(choices: Sequence[Choice], name: str) -> Markup | None:
    """Latency against bytes, colour: work of the device; baselines are diamonds, what was chosen has a ring."""
    if len(choices) < 2:
        return None
    with svg.style():
        drawn = svg.figure(720, 400)
        ax = svg.axes(drawn, 74, 30, 532, 316)
        _amounts(ax, "x", [c.latency_ms for c in choices], words.duration)
        _amounts(ax, "y", [c.bytes for c in choices], words.size)
        ax.set_xlabel("expected latency, mean of all samples")
        ax.text(0, 1.03, "bytes from the device, mean of all samples", color=MUTED, transform=ax.transAxes)
        scale = _shade([c.device_us for c in choices])
        for c in sorted(choices, key=lambda c: c.chosen):
            tip = (
                f"{c.name}: {words.duration(c.latency_ms)}, {words.size(c.bytes)}, device "
                f"{words.duration(c.device_us / 1000)}, agreement {words.percent(c.agreement)}"
            )
            look = {
                "s": 58 if c.baseline else 68,
                "marker": "D" if c.baseline else "o",
                "edgecolor": MUTED,
                "linewidth": 0.8,
            }
            if c.chosen:
                svg.dot(ax, c.latency_ms, c.bytes, facecolor="none", edgecolor=INK, linewidth=2, s=210, clip_on=False)
            face = to_hex(DEVICE(scale(c.device_us)))
            svg.dot(ax, c.latency_ms, c.bytes, tip, facecolor=face, zorder=4, clip_on=False, **look)
        name_dots(ax, choices)
        _device_bar(ax, [c.device_us for c in choices])
        return svg.inline(drawn, name, "Latency against bytes of the ways to run the model that no other beats")


def links(given: Links, name: str) -> Markup | None:
    """Latency of each strategy by speed of the uplink; the link that was planned for is marked."""
    if len(given.rates_bps) < 2 or not given.strategies:
        return None
    values = [value for strategy in given.strategies for value in strategy.latency_ms]
    colors = islice(cycle(svg.LINES), len(given.strategies))
    looks = [(s, INK if s.chosen else LIGHT[color]) for s, color in zip(given.strategies, colors, strict=True)]
    apart = [_spread([strategy.latency_ms[i] for strategy in given.strategies]) for i in (0, -1)]
    end = -1 if apart[1] >= apart[0] * 0.8 else 0
    with svg.style():
        drawn = svg.figure(720, 400)
        room = room_for([strategy.name for strategy in given.strategies])
        ax = svg.axes(drawn, 74 if end else room, 30, 720 - 74 - room, 316)
        _amounts(ax, "y", values, words.duration)
        _amounts(ax, "x", given.rates_bps, words.rate, padding=0)
        for strategy, color in looks:
            thick = 3 if strategy.chosen else 1.8
            ax.plot(
                given.rates_bps, strategy.latency_ms, color=color, linewidth=thick, zorder=4 if strategy.chosen else 3
            )
        ax.set_xlabel("speed of the uplink")
        ax.text(
            0 if end else 1, 1.03, "mean latency", color=MUTED, ha="left" if end else "right", transform=ax.transAxes
        )
        if given.rates_bps[0] <= given.uplink.rate_bps <= given.rates_bps[-1]:
            ax.axvline(given.uplink.rate_bps, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
            ax.annotate(
                "planned for",
                (given.uplink.rate_bps, 0.98),
                (5, 0),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                va="top",
            )
        if end == 0:
            ax.yaxis.tick_right()
        at = given.rates_bps[end]
        name_lines(ax, [Named(s.name, at, s.latency_ms[end], color, s.chosen) for s, color in looks], right=end == -1)
        return svg.inline(drawn, name, "Mean latency by speed of the uplink for each strategy")


def splits(points: Sequence[SplitPoint], name: str) -> Markup | None:
    """Bytes that would cross at each split point along the model, by codec; what was chosen is marked."""
    if len(points) < 3:
        return None
    total = max(p.macs_before + p.macs_after for p in points) or 1
    x = [p.macs_before / total for p in points]
    known = list(dict.fromkeys(codec for p in points for codec in p.bytes))
    codecs = [codec for codec in CODECS if codec in known] or known[: len(CODECS)]
    lines = {codec: [(at, p) for at, p in zip(x, points, strict=True) if codec in p.bytes] for codec in codecs}
    with svg.style():
        drawn = svg.figure(980, 320)
        ax = svg.axes(drawn, 66, 34, 800, 232)
        _amounts(ax, "y", [p.bytes[codec] for codec, line in lines.items() for _, p in line], words.size)
        named = []
        for (codec, line), color in zip(lines.items(), svg.LINES, strict=False):
            ax.plot([at for at, _ in line], [p.bytes[codec] for _, p in line], color=LIGHT[color], linewidth=1.4)
            named.append(Named(codec, line[-1][0], line[-1][1].bytes[codec], LIGHT[color]))
            for at, p in line:
                tip = f"{p.name}: {words.size(p.bytes[codec])} as {codec}, after {words.percent(at)} of the MACs"
                face = LIGHT[color] if p.block_end else LIGHT["paper"]
                look = {"s": 30 if p.block_end else 12, "facecolor": face, "edgecolor": LIGHT[color], "zorder": 4}
                svg.dot(ax, at, p.bytes[codec], tip, clip_on=False, **look)
        chosen = [(at, p) for at, p in zip(x, points, strict=True) if p.chosen or p.exit]
        name_marks(ax, [(at, svg.label(p.name, 24), p.chosen) for at, p in chosen])
        ax.set_xlim(-0.012, 1)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))
        ax.set_xlabel("MACs done before the cut")
        name_lines(ax, named, right=True)
        return svg.inline(drawn, name, "Bytes that cross at each split point, by codec")


def _confidences(ax: Axes, low: float, stretched: bool) -> None:
    """The x axis of thresholds, from `low` to 1."""
    if stretched:
        ax.set_xscale("function", functions=(_stretched, _even))
        ax.xaxis.set_major_locator(FixedLocator([at for at in (0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999) if at >= low]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(low, 1)


def _stretched(confidence: Values) -> Values:
    """Room for what lies near 1; beyond it nothing does."""
    return -(np.maximum(1 + STRETCH - confidence, 0) ** 0.25)


def _even(place: Values) -> Values:
    """Back from `_stretched`."""
    return 1 + STRETCH - (-place) ** 4


def _at(chosen: float, at: Sequence[float], values: Sequence[float | None]) -> float:
    """The value at `chosen`, between its neighbours; NaN where nothing is known."""
    return float(np.interp(chosen, at, [math.nan if value is None else value for value in values]))


def _interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in `n` samples (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return middle - half, middle + half


def _amounts(ax: Axes, which: str, values: Sequence[float], say: Callable[[float], str], padding: float = 0.07) -> None:
    """Scale, limits and ticks of an axis of `values` ≥ 0: logarithmic where they differ much, with room for zeros."""
    axis: Axis = getattr(ax, f"{which}axis")
    scale, limits = getattr(ax, f"set_{which}scale"), getattr(ax, f"set_{which}lim")
    window = ax.get_window_extent()
    places = window.width / 76 if which == "x" else window.height / 26
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (0.0, 1.0)
    if low == 0 or high / low < WIDE_RANGE:
        low = min(values) if positive else 0.0
        if low < high / 3:
            low = 0.0
        room = (high - low) * padding or high * 0.1
        limits(max(0.0, low - room) if low else 0.0, high + room)
        axis.set_major_locator(MaxNLocator(min(6, int(places))))
    else:
        room = (high / low) ** padding
        fine = 3 * math.log10(high / low) < places
        if len(positive) < len(values):
            first = 10 ** math.floor(math.log10(low))
            scale("symlog", linthresh=first, linscale=0.4)
            decades = [first * 10**k for k in range(math.ceil(math.log10(high / first)) + 1)]
            axis.set_major_locator(FixedLocator([0, *decades]))
            limits(-0.1 * first, high * room)
        else:
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,), numticks=20))
            limits(low / room, high * room)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))


def _spread(values: Sequence[float]) -> float:
    """How well names can stand beside lines that end at `values`: the sum of steps between them, large ones capped."""
    logs = sorted(math.log(max(value, 1e-9)) for value in values)
    return sum(min(b - a, 0.3) for a, b in pairwise(logs))


def _shade(values: Sequence[float]) -> Callable[[float], float]:
    """0..1 for a value between the smallest and the largest, in equal ratios where they differ much."""
    low, high = min(values), max(values)
    if high <= low:
        return lambda _: 0.5
    if low > 0 and high / low >= WIDE_RANGE:
        return lambda value: math.log(value / low) / math.log(high / low)
    return lambda value: (value - low) / (high - low)


def _device_bar(ax: Axes, values: Sequence[float]) -> None:
    """What the colours of dots mean, at the right of the plot."""
    figure = ax.figure
    bar = svg.axes(figure, 628, 60, 12, 200)
    steps = 40
    colors = [to_hex(DEVICE(i / (steps - 1))) for i in range(steps)]
    bar.bar(0.5, 2 / steps, 1, [i / steps for i in range(steps)], color=colors)
    bar.set_xlim(0, 1)
    bar.set_ylim(0, 1)
    bar.set_axis_off()
    bar.text(0, 1.06, "device compute", ha="left", fontsize=SMALL, color=MUTED, transform=bar.transAxes)
    low, high = min(values), max(values)
    ends = [(0.5, low)] if high <= low else [(0.0, low), (1.0, high)]
    for at, value in ends:
        bar.text(1.6, at, words.duration(value / 1000), va="center", fontsize=SMALL, color=MUTED)
