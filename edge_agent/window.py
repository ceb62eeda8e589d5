"""Windows: what readings become the input of a model, by count (`ByCount`) or on a grid in time (`ByTime`).

A `Track` holds the readings of a sensor that any window still needs, numbered one after the other; they stand in the
store's journal as well. A window only remembers where it is in the tracks, so what it makes follows from the readings
alone: no clock is asked and nothing is counted twice after a restart. `take` gives every window that is complete, and
None for each that had to be dropped because it could not be completed honestly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.filling import fill, onto_grid
from edge_agent.sensing import Input, Sensor
from edge_agent.sensor import Values
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec

ROW_BYTES = 250
"""About what a reading takes in memory beside its numbers."""
_NEVER = -(2**63)


class Track:
    """Readings `first` … `next` - 1 of one sensor. `at` are their times, ns; where a window goes by time, they rise."""

    def __init__(self) -> None:
        self.first = 0
        self.at: list[int] = []
        self.rows: list[Values] = []
        self.missing: list[int] = []
        """Numbers of the readings with a missing value."""
        self.bytes = 0
        self.newest = _NEVER
        """Time of the last reading, also of one that is no longer held."""

    @property
    def next(self) -> int:
        """Number of the next reading."""
        return self.first + len(self.rows)

    def append(self, values: Values, at_ns: int, missing: bool) -> None:
        """Take in a reading."""
        if missing:
            self.missing.append(self.next)
        self.rows.append(values)
        self.at.append(at_ns)
        self.newest = at_ns
        self.bytes += values.nbytes + ROW_BYTES

    def drop_before(self, number: int) -> None:
        """Let go the readings before `number`."""
        gone = number - self.first
        self.bytes -= sum(values.nbytes for values in self.rows[:gone]) + gone * ROW_BYTES
        del self.rows[:gone], self.at[:gone]
        self.first = number
        while self.missing and self.missing[0] < number:
            self.missing.pop(0)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Readings `start` … `stop` - 1 as (n, channels)."""
        return np.asarray(self.rows[start - self.first : stop - self.first])

    def misses(self, start: int, stop: int) -> bool:
        """Whether a value is missing in readings `start` … `stop` - 1."""
        return bool(self.missing) and bisect_left(self.missing, start) < bisect_left(self.missing, stop)


def filling(feed: Input) -> Literal["hold", "interpolate"] | None:
    """How values that are missing are filled, if they are."""
    return feed.missing if feed.missing == "hold" or feed.missing == "interpolate" else None  # noqa: PLR1714  # for mypy


class ByCount:
    """Windows of `rows` readings of one sensor, a new one every `step` readings.

    Missing values are filled from readings at most `gap_most` back (hold) or with at most `gap_most` missing in a row
    (interpolate), from before and after the window too; for the latter it waits.
    """

    def __init__(self, feed: Input, sensor: str, track: Track) -> None:
        self.feed = feed
        self.sensors = [sensor]
        self.since = self.start = track.next
        self._fills = filling(feed)
        self._context = feed.gap_most if self._fills else 0
        self._rows, self._step = feed.rows, feed.step

    def state(self, tracks: Mapping[str, Track]) -> list[int]:
        """Where it is, relative to what the tracks hold."""
        first = tracks[self.sensors[0]].first
        return [max(self.since - first, 0), self.start - first]

    def resume(self, state: list[int], tracks: Mapping[str, Track]) -> None:
        """Go on from `state`."""
        first = tracks[self.sensors[0]].first
        self.since, self.start = first + state[0], first + state[1]

    @property
    def begun(self) -> bool:
        """Whether it is known where the next window begins."""
        return True

    def begin_anew(self, sensor: str, number: int) -> bool:
        """What comes before reading `number` is of no use; True if a window had begun."""
        del sensor
        begun = self.start < number
        self.since = self.start = number
        return begun

    def needs(self, sensor: str, tracks: Mapping[str, Track]) -> int:
        """Number of the oldest reading that it still needs."""
        del sensor, tracks
        return max(self.start - self._context, self.since)

    def take(self, tracks: Mapping[str, Track]) -> Iterator[NDArray[Any] | None]:
        """The windows that are complete now, each (rows, channels); None for one that is dropped."""
        track = tracks[self.sensors[0]]
        while track.next >= (stop := self.start + self._rows):
            whole: NDArray[Any] | None
            if not track.misses(self.start, stop):
                whole = track.block(self.start, stop)
            elif how := self._fills:
                begin = max(self.start - self._context, self.since)
                x = np.arange(begin, track.next, dtype=np.float64)
                most = self.feed.gap_most + (how == "interpolate")
                filled, may_be = fill(x, track.block(begin, track.next), how, most)
                mine = slice(self.start - begin, stop - begin)
                whole = filled[mine]
                missing = np.isnan(whole)
                if missing.any():
                    if may_be[mine][missing].all():
                        return
                    whole = None
            else:
                whole = None
            self.start += self._step
            yield whole


class ByTime:
    """Windows of `rows` points of a grid in time, a new one every `step` points, from one sensor or several.

    The grid begins at the first time that all its sensors know of. A hole, longer between two readings of a sensor
    than is bridged, drops the window that it is in, and the grid begins anew where the hole ends.
    """

    def __init__(self, feed: Input, sensors: Mapping[str, Sensor], tracks: Mapping[str, Track]) -> None:
        assert feed.rate_hz is not None
        self.feed = feed
        self.sensors = list(sensors)
        self.since = {name: tracks[name].next for name in sensors}
        """The first reading of each that is of use."""
        self.anchor: int | None = None
        """Time of point 0, ns."""
        self.k = 0
        """The point that the next window begins with."""
        self._period = 1e9 / feed.rate_hz
        self._gap = {name: round(feed.gap_of(sensor) * 1e9) for name, sensor in sensors.items()}
        self._wait = round(feed.wait_s * 1e9)
        self._fills = filling(feed)
        self._back = 2 if self._fills else 1
        """Longest gaps that it looks back: to the reading before the window, and from there to one to fill it with."""
        self._rows, self._step = feed.rows, feed.step

    def state(self, tracks: Mapping[str, Track]) -> list[Any]:
        """Where it is, relative to what the tracks hold."""
        return [{name: max(self.since[name] - tracks[name].first, 0) for name in self.sensors}, self.anchor, self.k]

    def resume(self, state: list[Any], tracks: Mapping[str, Track]) -> None:
        """Go on from `state`."""
        since, self.anchor, self.k = state
        self.since = {name: tracks[name].first + since[name] for name in self.sensors}

    @property
    def begun(self) -> bool:
        """Whether it is known where the next window begins: not while a sensor is silent."""
        return self.anchor is not None

    def begin_anew(self, sensor: str, number: int) -> bool:
        """What comes before reading `number` of `sensor` is of no use; True if a window had begun."""
        begun = self.anchor is not None
        self.since[sensor], self.anchor = number, None
        return begun

    def needs(self, sensor: str, tracks: Mapping[str, Track]) -> int:
        """Number of the oldest reading of `sensor` that it still needs."""
        track = tracks[sensor]
        if self.anchor is not None:
            oldest = self._time(self.k)
        else:  # the others have to come soon
            oldest = max(tracks[name].newest for name in self.sensors) - self._wait
        oldest -= self._back * self._gap[sensor]
        return max(track.first + bisect_left(track.at, oldest, self._from(sensor, track)), self.since[sensor])

    def _from(self, sensor: str, track: Track) -> int:
        return max(self.since[sensor] - track.first, 0)

    def _time(self, point: int) -> int:
        assert self.anchor is not None
        return self.anchor + round(point * self._period)

    def take(self, tracks: Mapping[str, Track]) -> Iterator[NDArray[Any] | None]:
        """The windows that are complete now, each (rows, channels); None for one that is dropped."""
        while True:
            if self.anchor is None:
                firsts = [(tracks[name], self._from(name, tracks[name])) for name in self.sensors]
                if any(len(track.at) <= at for track, at in firsts):
                    return
                self.anchor, self.k = max(track.at[at] for track, at in firsts), 0
            begin, end = self._time(self.k), self._time(self.k + self._rows - 1)
            newest = [tracks[name].newest for name in self.sensors]
            if min(newest) < end and max(newest) < end + self._wait:
                return
            holes = [self._hole(name, tracks[name], begin, end) for name in self.sensors]
            if any(hole is not None for hole in holes):
                self.anchor, self.k = max(hole for hole in holes if hole is not None), 0
                yield None
                continue
            if min(newest) < end and self.feed.resample == "linear":
                reached = self._reached(self.sensors[newest.index(max(newest))], tracks, end)
                late = 1 + max(0, int((reached - self._wait - end) / (self._step * self._period)))
                self.k += late * self._step
                yield from (None for _ in range(late))
                continue
            found = [self._column(name, tracks[name], begin, end) for name in self.sensors]
            columns = [column for column in found if column is not None]
            if len(columns) < len(found):
                if max(newest) < end + self._wait:
                    return
                columns = [np.full((self._rows, 1), np.nan)]
            self.k += self._step
            whole = np.concatenate(columns, axis=1)
            yield None if np.isnan(whole).any() else whole

    def _hole(self, sensor: str, track: Track, begin: int, end: int) -> int | None:
        """The time at which the last hole ends that points from `begin` to `end` lie in; None without any."""
        at, start = track.at, self._from(sensor, track)
        before = bisect_right(at, begin, start) - 1
        times = np.asarray(at[max(before, start) : bisect_left(at, end, start) + 1], np.int64)
        ends = np.flatnonzero(np.diff(times) > self._gap[sensor])
        if ends.size:
            return int(times[ends[-1] + 1])
        return int(times[0]) if before < start and times.size else None

    def _reached(self, sensor: str, tracks: Mapping[str, Track], end: int) -> int:
        """How far its readings go beyond `end` without a hole."""
        track, start = tracks[sensor], self._from(sensor, tracks[sensor])
        times = np.asarray(track.at[max(bisect_left(track.at, end, start) - 1, start) :], np.int64)
        holes = np.flatnonzero(np.diff(times) > self._gap[sensor])
        return int(times[holes[0] if holes.size else -1])

    def _column(self, sensor: str, track: Track, begin: int, end: int) -> NDArray[np.float64] | None:
        """The sensor's part of the window that begins and ends there, (rows, channels), with NaN where nothing honest
        can stand; None while later readings may fill what is missing."""
        at, start = track.at, self._from(sensor, track)
        if start >= len(at):
            return np.full((self._rows, 1), np.nan)
        first, stop = bisect_right(at, begin, start) - 1, min(bisect_left(at, end, start) + 1, len(at))
        gap = self._gap[sensor]
        times = (np.asarray(at, np.int64) - begin).astype(np.float64)  # whole ns: seconds would miss a bound by a hair
        x = times[first:stop]
        if not track.misses(track.first + first, track.first + stop):
            values = track.block(track.first + first, track.first + stop)
        elif how := self._fills:
            context = bisect_left(at, begin - self._back * gap, start)
            block = track.block(track.first + context, track.next)
            filled, may_be = fill(times[context:], block, how, gap)
            mine = slice(first - context, stop - context)
            values = filled[mine]
            missing = np.isnan(values)
            if missing.any() and may_be[mine][missing].all():
                return None
        else:
            return np.full((self._rows, 1), np.nan)
        assert self.anchor is not None
        points = self.anchor - begin + np.rint((self.k + np.arange(self._rows)) * self._period).astype(np.int64)
        column = onto_grid(points.astype(np.float64), x, values, self.feed.resample)
        column[points > at[stop - 1] - begin + gap] = np.nan
        return column


def as_inputs(
    rows: NDArray[Any], specs: Sequence[TensorSpec], widths: Sequence[int], *, checked: bool
) -> dict[str, NDArray[Any]]:
    """The columns of a window for each of the model's inputs: `widths[i]` columns for `specs[i]`, by its name.

    `checked`: the values are known to fit the inputs' dtypes; else `PermanentError` if they do not.
    """
    if len(specs) == 1:
        return {specs[0].name: as_input(rows, specs[0], checked=checked)}
    parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    return {spec.name: as_input(part, spec, checked=checked) for spec, part in zip(specs, parts, strict=True)}


def as_input(values: NDArray[Any], spec: TensorSpec, *, checked: bool = False) -> NDArray[Any]:
    """`values` in the dtype and shape of the model's input (no batch axis); rounded, if that takes whole numbers.

    Raises `PermanentError` when they are too many or too few, or do not fit the dtype.
    """
    if values.size != spec.size:
        raise PermanentError(f"{values.size} values where input {spec.name!r} takes {spec.size}")
    if not checked:
        check_range(values, spec)
    if values.dtype.kind == "f" and spec.dtype != "bool" and not spec.is_float:
        values = np.rint(values)
    return values.astype(spec.dtype).reshape(spec.shape)


def check_range(values: NDArray[Any], spec: TensorSpec) -> None:
    """Raise `PermanentError` for values that do not fit the dtype of the model's input; NaN is passed over."""
    if spec.dtype == "bool":
        return
    info = np.finfo(spec.dtype) if spec.is_float else np.iinfo(spec.dtype)
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    if low < info.min or high > info.max:
        raise PermanentError(f"values from {low:g} to {high:g} do not fit {spec.dtype}")
