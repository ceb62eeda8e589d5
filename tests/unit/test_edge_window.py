"""Windows against what they are by definition, in plain Python: by count and by time, overlapping and with gaps, with
values that are missing and readings that come late; and with bounds whatever a clock does."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.sensing import Input, Sensor
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


Series = dict[str, list[tuple[int, list[float]]]]
"""Readings by sensor: (time in ms, values), times rising."""


def by_time(feed: Input, sensors: dict[str, Sensor], series: Series) -> tuple[Made, int]:
    """What a window by time gives of readings that arrive in the order of their times, and the most that it held."""
    tracks = {name: Track() for name in sensors}
    window, made, most = ByTime(feed, sensors, tracks), [], 0
    for at, name, values in sorted((at, name, values) for name, readings in series.items() for at, values in readings):
        made += push(window, tracks, name, values, at * MS)
        most = max(most, *(len(track.rows) for track in tracks.values()))
    return made, most


def value_at(readings: list[tuple[int, list[float]]], i: int, channel: int, feed: Input, gap: float) -> float:
    """What reading `i` has in a channel after filling."""
    at, values = readings[i]
    if not math.isnan(values[channel]):
        return values[channel]
    known = [(t, v[channel]) for t, v in readings if not math.isnan(v[channel])]
    before, after = [one for one in known if one[0] < at], [one for one in known if one[0] > at]
    if feed.missing == "hold" and before and at - before[-1][0] <= gap:
        return before[-1][1]
    if feed.missing == "interpolate" and before and after and after[0][0] - before[-1][0] <= gap:
        (t0, v0), (t1, v1) = before[-1], after[0]
        return v0 + (v1 - v0) * (at - t0) / (t1 - t0)
    return NAN


def windows_in_time_by_definition(feed: Input, sensors: dict[str, Sensor], series: Series) -> Made:
    assert feed.rate_hz is not None
    made: Made = []
    if not all(series.values()):
        return made
    period = 1000 / feed.rate_hz
    anchor, k = float(max(readings[0][0] for readings in series.values())), 0
    while True:
        points = [anchor + (k + i) * period for i in range(feed.rows)]
        if any(readings[-1][0] < points[-1] for readings in series.values()):
            return made
        ends: list[int] = []
        rows: list[list[float]] = [[] for _ in points]
        for name, readings in series.items():
            gap = feed.gap_of(sensors[name]) * 1000
            used = range(
                max(i for i, (at, _) in enumerate(readings) if at <= points[0]) if readings[0][0] <= points[0] else 0,
                min(i for i, (at, _) in enumerate(readings) if at >= points[-1]) + 1,
            )
            ends += [readings[i][0] for i in used[1:] if readings[i][0] - readings[i - 1][0] > gap]
            channels = range(len(readings[0][1]))
            values = {(i, c): value_at(readings, i, c, feed, gap) for i in used for c in channels}
            for row, point in zip(rows, points, strict=True):
                before = max(i for i in used if readings[i][0] <= point) if readings[used[0]][0] <= point else used[0]
                at = readings[before][0]
                for c in channels:
                    if at == point or feed.resample == "hold":
                        row.append(values[before, c])
                    else:
                        share = (point - at) / (readings[before + 1][0] - at)
                        row.append(values[before, c] * (1 - share) + values[before + 1, c] * share)
            if feed.missing == "drop" and any(math.isnan(v) for i in used for v in readings[i][1]):
                rows[0].append(NAN)
        if ends:
            anchor, k = float(max(ends)), 0
            made.append(None)
            continue
        made.append(None if any(math.isnan(v) for row in rows for v in row) else rows)
        k += feed.step


STEPS = st.lists(st.integers(1, 45), min_size=1, max_size=60)
"""Milliseconds between readings; 20 in the mean of a rate of 50 Hz."""


@st.composite
def series_of(draw: st.DrawFn, names: str, missing: bool) -> Series:
    value = VALUE if missing else st.integers(-9, 9).map(float)
    made: Series = {}
    for name in names:
        times = np.cumsum([draw(st.integers(0, 50)), *draw(STEPS)]).tolist()
        made[name] = [(at, [draw(value), draw(value)]) for at in times]
    return made


@given(
    data=st.data(),
    names=st.sampled_from(["a", "ab", "abc"]),
    count=st.integers(1, 6),
    hop=st.integers(1, 8),
    resample=st.sampled_from(["linear", "hold"]),
    missing=st.sampled_from(["refuse", "drop", "hold", "interpolate"]),
    gap=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=600, deadline=None)
def test_windows_by_time(
    data: st.DataObject, names: str, count: int, hop: int, resample: Any, missing: Any, gap: int
) -> None:
    series = data.draw(series_of(names, missing != "refuse"))
    sensors = {name: Sensor(time_path="t") for name in names}
    feed = Input(window=count, hop=hop, rate_hz=50, resample=resample, missing=missing, gap_most=gap, wait_s=1e6)
    made, _ = by_time(feed, sensors, series)
    wanted = windows_in_time_by_definition(feed, sensors, series)
    if missing == "interpolate":  # the last ones may wait for values that come after them
        wanted = wanted[: len(made)]
    assert same(made, wanted), (made, wanted)


def test_a_value_exactly_as_far_back_as_it_may_be_is_held() -> None:
    """60 ms at 50 Hz with a gap of three: as seconds in floating point it is a hair more."""
    b = [(1, [NAN, NAN]), (11, [NAN, 0.0]), (26, [0.0, NAN]), (71, [NAN, NAN])]
    series: Series = {"a": [(at, [1.0]) for at in range(1, 62)], "b": b}
    sensors = {name: Sensor(time_path="t") for name in "ab"}
    feed = Input(window=1, rate_hz=50, resample="linear", missing="hold", gap_most=3, wait_s=1e6)
    made, _ = by_time(feed, sensors, series)
    assert same(made, windows_in_time_by_definition(feed, sensors, series))
    assert made[-1] == [[1.0, 0.0, 0.0]]
