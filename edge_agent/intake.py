"""The intake: from sensor messages to complete inputs of the models, each exactly once.

`take` reads a message (`sensor.py`), drops repeats, adds the reading to its sensor's track and asks the windows of all
models that this sensor feeds (`window.py`). Readings that a window still needs stand in the store's journal; where each
window is stands there too, written once a transaction by `save`, which the store calls before it commits. So readings,
windows and the samples made of them become durable together, and a restart goes on where the last commit left off.

What bad readings and broken clocks cost is bounded and counted: see `counters` and docs/sensors.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sensing import Input, overlap
from edge_agent.sensor import Reading, read
from edge_agent.sensor_avro import schema_of
from edge_agent.settings import ANY, EdgeSettings
from edge_agent.store import Store
from edge_agent.window import ByCount, ByTime, Track, as_inputs, check_range
from sluice.doors.mqtt import Incoming
from sluice.wire import metrics
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec

log = logging.getLogger(__name__)

TOPICS_MOST = 1000
"""Topics whose sensor is remembered; a filter with wildcards may bring any number."""
_FACT = "intake"
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Specs = Sequence[TensorSpec]


@dataclass(frozen=True, slots=True)
class Complete:
    """An input that is complete: `tensors` by name, each in the dtype and shape of the model's input; `source_id` is
    that of the reading which completed it."""

    model: str
    source_id: str | None
    tensors: dict[str, NDArray[Any]]


@dataclass(slots=True)
class Feed:
    """A running model and the window that feeds it. `signature` says by which settings."""

    model: str
    window: ByCount | ByTime
    specs: Specs
    widths: list[int]
    signature: str
    alone: bool
    """Whether it has one sensor and one input: then `widths[0]` is what a reading has to bring."""
    checked: bool
    """Whether each reading is looked at for values that do not fit; else each window is."""


def check_schemas(settings: EdgeSettings) -> None:
    """Raise `PermanentError` for an Avro schema of a sensor that cannot be used."""
    for name, sensor in settings.sensors_by_name.items():
        if sensor.schema_file is not None:
            try:
                schema_of(sensor.schema_file)
            except PermanentError as error:
                raise PermanentError(f"sensor {name!r}: {error}") from error


def check_fed(settings: EdgeSettings, model: str, specs: Specs) -> None:
    """Raise `PermanentError` if the settings cannot feed a `model` of these inputs, as far as that can be known."""
    _widths(settings, model, specs)


def _widths(settings: EdgeSettings, model: str, specs: Specs) -> list[int]:
    """Columns of a row for each input of the model."""
    feed, sensors = settings.input_of(model), settings.sensors_by_name
    names = list(feed.tensors)
    if names or len(specs) > 1:
        wanted = [spec.name for spec in specs]
        if sorted(names) != sorted(wanted):
            raise PermanentError(
                f"model {model!r} has inputs {', '.join(wanted)}; inputs.{model}.tensors in the settings feeds "
                f"{', '.join(names) or 'none'}"
            )
    widths = []
    for spec in specs:
        order = feed.tensors[spec.name] if names else feed.order(sensors)
        known = [sensors[name].width for name in order]
        width, rest = divmod(spec.size, feed.rows)
        told = sum(one or 0 for one in known)
        if rest or (None not in known and told != width):
            columns = f" of {told} values" if None not in known else ""
            raise PermanentError(
                f"{feed.rows} rows{columns} make no input {spec.name!r} of {spec.size} for model {model!r}"
            )
        widths.append(width)
    return widths


class Intake:
    """All sensors of the device, and the windows of all running models. Belongs to the main loop's thread."""

    def __init__(self, settings: EdgeSettings, store: Store) -> None:
        check_schemas(settings)
        self.settings = settings
        self.store = store
        self.counters: Counter[str] = Counter()
        self.sensors = settings.sensors_by_name
        self.filters = {name: settings.topic_of(name) for name in self.sensors}
        self._tracks = {name: Track() for name in self.sensors}
        self._feeds: dict[str, Feed] = {}
        self._of_sensor: dict[str, list[Feed]] = {}
        self._timed: set[str] = set()
        """Sensors that feed a window by time."""
        self._topics: dict[str, str] = {}
        self._inputs: dict[str, Specs] = {}
        self._moved = False
        self._saved: dict[str, Any] = {}
        """What the store has: where the windows are, by model the settings' signature and the window's state."""
        self._found: dict[str, Any] = {}
        """Where they were in the run before, until it is known which models run."""
        self._rebooted = False
        self._boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        self._load()
        store.before_commit = self.save

    @property
    def subscriptions(self) -> list[str]:
        """The MQTT topic filters of all sensors."""
        return list(self.filters.values())

    def take(self, incoming: Incoming, inputs: Mapping[str, Specs]) -> list[Complete]:
        """Take in a message of a sensor; returns the inputs that it completes.

        `inputs` are the inputs of all running models by the model's name, each in the order of the manifest; a model
        that is no longer among them loses what it has of a window. Raises `PermanentError` for a reading that cannot be
        read, or that none of the models which its sensor feeds can use; windows are then as before.
        """
        if incoming.retained and self.settings.sensor_broker.version != 5:  # it comes again with each connection
            self._count("readings_retained")
            return []
        if inputs != self._inputs:
            self._run(inputs)
        name = self._sensor_of(incoming.topic)
        sensor, track = self.sensors[name], self._tracks[name]
        reading = read(incoming.payload, sensor)
        if sensor.width not in (None, reading.values.size):
            raise PermanentError(f"reading has {reading.values.size} values, sensor {name!r} has {sensor.width}")
        feeds = self._of_sensor.get(name)
        if not feeds:
            self._count("readings_unused")
            return []
        unfit = self._unfit(reading, feeds)
        if len(unfit) == len(feeds):
            raise PermanentError(unfit[0][1])
        metrics.EDGE_READINGS.inc()
        if reading.source_id is not None:
            known = reading.source_id if name == ANY else f"{name}/{reading.source_id}"
            if not self.store.first_seen(known):
                metrics.EDGE_REPEATS.inc()
                self.counters["readings_repeated"] += 1
                return []
        at_ns = self._time_of(name, reading, incoming)
        if at_ns is None:
            self._count("readings_late")
            return []
        for feed, reason in unfit:
            log.debug("model %s cannot use a reading of sensor %s: %s", feed.model, name, reason)
            self._begin_anew(feed, name, track.next + 1)
        made = self._push(name, reading, at_ns, feeds)
        self.store.dirty |= self._moved
        return made

    def _time_of(self, name: str, reading: Reading, incoming: Incoming) -> int | None:
        """The time of a reading; None if it is late. Where its clock was set back, windows begin anew."""
        track = self._tracks[name]
        at_ns = incoming.arrived_ns if reading.at_ns is None else reading.at_ns
        if name in self._timed and at_ns <= track.newest:
            if reading.at_ns is None and at_ns == track.newest:
                return at_ns + 1
            if reading.at_ns is not None and track.newest - at_ns <= self.sensors[name].back_s * 1e9:
                return None
            self._count("clocks_set_back")
            for feed in self._of_sensor[name]:
                if isinstance(feed.window, ByTime):
                    self._begin_anew(feed, name, track.next)
        return at_ns

    def save(self) -> None:
        """Write down where the windows are, if that has changed; the store calls it before each commit."""
        if not self._moved:
            return
        self._moved = False
        windows = {model: [feed.signature, feed.window.state(self._tracks)] for model, feed in self._feeds.items()}
        state = {"boot": self._boot, "windows": windows}
        if state != self._saved:
            self._saved = state
            self.store.set_fact(_FACT, json.dumps(state).encode())

    def _push(self, name: str, reading: Reading, at_ns: int, feeds: list[Feed]) -> list[Complete]:
        """A reading into its track and the journal, and what it completes."""
        track = self._tracks[name]
        number = track.next
        track.append(reading.values, at_ns, reading.missing)
        made, moved = [], False
        for feed in feeds:
            for rows in feed.window.take(self._tracks):
                moved = True
                if rows is None:
                    self._drop(feed, "cannot be completed")
                    continue
                try:
                    tensors = as_inputs(rows, feed.specs, feed.widths, checked=feed.checked)
                except PermanentError as error:
                    self._drop(feed, str(error))
                else:
                    made.append(Complete(feed.model, reading.source_id, tensors))
        if track.bytes > self.settings.journal_bytes:
            for feed in feeds:
                self._begin_anew(feed, name, track.next)
            log.error("sensor %s: its windows need more than EDGE_JOURNAL_BYTES; they begin anew", name)
            moved = True
        self._moved |= moved
        if self._moved or len(track.rows) == 1 or any(not feed.window.begun for feed in feeds):
            self._trim(name, number, all_sensors=moved)
        if number >= track.first:
            self.store.push_reading(name, number, at_ns, reading.values)
        return made

    def _trim(self, name: str, number: int, *, all_sensors: bool) -> None:
        """Let go what no window needs; reading `number` of sensor `name` is not in the journal yet."""
        names = {other for feed in self._of_sensor[name] for other in feed.window.sensors} if all_sensors else {name}
        for one in names:
            track = self._tracks[one]
            feeds = self._of_sensor[one]
            needed = min([track.next, *(feed.window.needs(one, self._tracks) for feed in feeds)])
            if needed > track.first:
                if one != name or track.first < number:
                    self.store.drop_readings(one, needed)
                track.drop_before(needed)
                self._moved = True

    def _unfit(self, reading: Reading, feeds: list[Feed]) -> list[tuple[Feed, str]]:
        """The models that cannot use the reading, and why."""
        unfit = []
        for feed in feeds:
            settings, size = feed.window.feed, reading.values.size
            if feed.alone and size != feed.widths[0]:
                reason = f"reading has {size} values; {settings.rows} such make no input of {feed.specs[0].size}"
            elif reading.missing and settings.missing == "refuse":
                reason = "reading has values that are missing (null, NaN or empty)"
            else:
                if not feed.checked:
                    continue
                try:
                    for spec in feed.specs:
                        check_range(reading.values, spec)
                    continue
                except PermanentError as error:
                    reason = str(error)
            unfit.append((feed, reason))
        return unfit

    def _begin_anew(self, feed: Feed, name: str, number: int) -> None:
        self._moved = True
        if feed.window.begin_anew(name, number):
            self._drop(feed, "begins anew")

    def _drop(self, feed: Feed, why: str) -> None:
        self._count("windows_dropped")
        log.debug("window dropped: %s", why, extra={"model": feed.model})

    def _count(self, what: str) -> None:
        self.counters[what] += 1
        metrics.EDGE_INTAKE_DROPPED.labels(what).inc()

    def _sensor_of(self, topic: str) -> str:
        found = self._topics.get(topic)
        if found is None:
            found = next((name for name, wanted in self.filters.items() if overlap(wanted, topic)), None)
            if found is None:
                raise PermanentError(f"no sensor has topic {topic[:200]!r}")
            if len(self._topics) >= TOPICS_MOST:
                self._topics.clear()
            self._topics[topic] = found
        return found

    def _run(self, inputs: Mapping[str, Specs]) -> None:
        """Other models run now, or others of their bundles: windows that go on feeding the same stay as they are."""
        before, self._feeds = self._feeds, {}
        for model, specs in inputs.items():
            try:
                widths = _widths(self.settings, model, specs)
            except PermanentError as error:
                log.error("%s", error)
                continue
            settings = self.settings.input_of(model)
            signature = self._signature(settings)
            old = before.pop(model, None)
            if old is not None and old.widths == widths:
                self._feeds[model] = self._as_feed(model, old.window, specs, widths, signature)
                continue
            if old is not None:
                before[model] = old
            self._feeds[model] = self._feed(model, settings, specs, widths, signature)
        for feed in before.values():
            if any(self._tracks[name].next > feed.window.needs(name, self._tracks) for name in feed.window.sensors):
                self._drop(feed, "the model no longer runs")
        self._found.clear()
        self._inputs = dict(inputs)
        self._of_sensor = {}
        for feed in self._feeds.values():
            for name in feed.window.sensors:
                self._of_sensor.setdefault(name, []).append(feed)
        self._timed = {
            name for feed in self._feeds.values() if isinstance(feed.window, ByTime) for name in feed.window.sensors
        }
        for name, track in self._tracks.items():
            if name not in self._of_sensor and track.rows:
                self.store.drop_readings(name, track.next)
                track.drop_before(track.next)
        self._moved = True

    def _feed(self, model: str, settings: Input, specs: Specs, widths: list[int], signature: str) -> Feed:
        """What feeds a model, from where it was before the restart if that is known."""
        order = settings.order(self.sensors)
        window: ByCount | ByTime
        if settings.rate_hz is None:
            window = ByCount(settings, order[0], self._tracks[order[0]])
        else:
            window = ByTime(settings, {name: self.sensors[name] for name in order}, self._tracks)
        feed = self._as_feed(model, window, specs, widths, signature)
        found = self._found.get(model)
        if found is None:
            return feed
        stopped_clock = self._rebooted and isinstance(window, ByTime) and not self.sensors[order[0]].has_time
        if found[0] != signature or stopped_clock:
            self._drop(feed, "other settings, or the device was started anew")
            return feed
        window.resume(found[1], self._tracks)
        return feed

    @staticmethod
    def _as_feed(model: str, window: ByCount | ByTime, specs: Specs, widths: list[int], signature: str) -> Feed:
        alone = len(window.sensors) == 1 and len(specs) == 1
        checked = window.feed.rows == 1 or not all(spec.is_float for spec in specs)
        return Feed(model, window, specs, widths, signature, alone, checked)

    def _signature(self, settings: Input) -> str:
        sensors = {name: self.sensors[name].model_dump(mode="json") for name in settings.order(self.sensors)}
        written = json.dumps([settings.model_dump(mode="json"), sensors], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def _load(self) -> None:
        """Take up what an earlier run left."""
        self._saved = json.loads(self.store.fact(_FACT) or b"{}")
        self._found = dict(self._saved.get("windows", {}))
        self._rebooted = self._saved.get("boot") != self._boot
        for name, number, at_ns, values in self.store.readings():
            track = self._tracks.get(name)
            if track is None:
                self.store.drop_readings(name, number + 1)
                continue
            if not track.rows:
                track.first = number
            track.append(values, at_ns, values.dtype.kind == "f" and bool(np.isnan(values).any()))
