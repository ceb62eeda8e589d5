"""Windows against what they are by definition, in plain Python: by count and by time, overlapping and with gaps, with
values that are missing and readings that come late; and with bounds whatever a clock does."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.sensing import Input
from edge_agent.window import ByCount, ByTime, Track

NAN = math.nan
MS = 1_000_000
Rows = list[list[float]]
Made = list[Any]


def push(window: ByCount | ByTime, tracks: Mapping[str, Track], name: str, values: list[float], at_ns: int = 0) -> Made:
    """One reading into its track; what the window gives, with the track cut to what it needs."""
    tracks[name].append(np.asarray(values, np.float64), at_ns, any(map(math.isnan, values)))
    made = [None if one is None else one.tolist() for one in window.take(tracks)]
    for sensor in window.sensors:
        track = tracks[sensor]
        track.drop_before(max(track.first, min(window.needs(sensor, tracks), track.next)))
    return made


def by_count(feed: Input, readings: Rows) -> tuple[Made, int]:
    """What a window by count gives, and the most readings that it held."""
    tracks = {"a": Track()}
    window, made, most = ByCount(feed, "a", tracks["a"]), [], 0
    for values in readings:
        made += push(window, tracks, "a", values)
        most = max(most, len(tracks["a"].rows))
    return made, most


def filled(readings: Rows, i: int, channel: int, feed: Input) -> float:
    """The value that stands in row `i` by definition; NaN if none can."""
    column = [row[channel] for row in readings]
    if not math.isnan(column[i]):
        return column[i]
    before = next((j for j in range(i, -1, -1) if not math.isnan(column[j])), None)
    after = next((j for j in range(i, len(column)) if not math.isnan(column[j])), None)
    if feed.missing == "hold" and before is not None and i - before <= feed.gap_most:
        return column[before]
    if feed.missing == "hold" or before is None or after is None or after - before - 1 > feed.gap_most:
        return NAN
    if feed.missing == "interpolate":
        return column[before] + (column[after] - column[before]) * (i - before) / (after - before)
    return NAN


def windows_by_definition(readings: Rows, feed: Input) -> Made:
    made: Made = []
    for start in range(0, len(readings) - feed.rows + 1, feed.step):
        rows = [
            [filled(readings, i, c, feed) for c in range(len(readings[0]))] for i in range(start, start + feed.rows)
        ]
        made.append(None if any(math.isnan(v) for row in rows for v in row) else rows)
    return made


def same(one: Made, other: Made) -> bool:
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or np.allclose(a, b, rtol=1e-9, atol=1e-9))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("count", "hop"), [(1, 1), (1, 0), (4, 4), (4, 0), (4, 1), (4, 3), (2, 5), (1, 3)])
def test_windows_begin_every_hop_readings(count: int, hop: int) -> None:
    readings = [[float(i), i + 0.5] for i in range(20)]
    feed = Input(window=count, hop=hop)
    made, most = by_count(feed, readings)
    assert made == windows_by_definition(readings, feed) and None not in made
    assert most < max(count, 2)


VALUE = st.one_of(st.just(NAN), st.integers(-9, 9).map(float))


@given(
    readings=st.lists(st.tuples(VALUE, VALUE).map(list), min_size=1, max_size=40),
    count=st.integers(1, 6),
    hop=st.integers(0, 8),
    missing=st.sampled_from(["drop", "hold", "interpolate"]),
    gap=st.integers(1, 4),
)
@settings(max_examples=500, deadline=None)
def test_missing_values_by_count(readings: Rows, count: int, hop: int, missing: Any, gap: int) -> None:
    feed = Input(window=count, hop=hop, missing=missing, gap_most=gap)
    made, most = by_count(feed, readings)
    wanted = windows_by_definition(readings, feed)
    if missing == "interpolate":  # the last ones may wait for values that come after them
        assert sum((i * feed.step + count + gap) < len(readings) for i in range(len(wanted))) <= len(made)
        wanted = wanted[: len(made)]
    assert same(made, wanted)
    assert most <= count + 2 * gap + 1
