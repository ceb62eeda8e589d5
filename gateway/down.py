"""Down: answers from `sluice.predictions` and desired state from `sluice.desired` go to the devices over MQTT.

Offsets of answers move when the broker has taken them, in order for each topic partition. Desired state is read from
the beginning at each start and published as a retained message: the topic is compacted, and a device ignores what it
knows. A device's own answers are not sent back to it, but for those it gave because a sample expired: whether such
an answer is final is decided by its place in the topic. Audits are nobody's answers.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque

from gateway.settings import GatewaySettings
from sluice.daemon.life import Backoff
from sluice.doors.kafka import KafkaReader, KafkaWriter, Record, TopicPartition, dead_letter_headers
from sluice.doors.mqtt import MqttDoor
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Prediction
from sluice.wire.state import MAX_STATE_BYTES, Signed, parse_state

log = logging.getLogger(__name__)

BATCH = 200
HOLD_S = 10.0


class Progress:
    """Which offsets of which topic partition are done, and so up to where it may be committed."""

    def __init__(self) -> None:
        self._open: dict[TopicPartition, OrderedDict[int, bool]] = {}

    def begin(self, record: Record) -> None:
        """A record is being worked on."""
        offsets = self._open.setdefault((record.topic, record.partition), OrderedDict())
        if offsets and record.offset <= next(reversed(offsets)):
            offsets.clear()  # the topic partition went and came back: from here on everything is read again
        offsets[record.offset] = False

    def done(self, place: TopicPartition, offset: int) -> None:
        """A record is through; one of a topic partition that was taken away is forgotten already."""
        if offset in self._open.get(place, ()):
            self._open[place][offset] = True

    def forget(self, places: list[TopicPartition]) -> None:
        """These topic partitions are someone else's now."""
        for place in places:
            self._open.pop(place, None)

    def pop_offsets(self) -> dict[TopicPartition, int]:
        """The next offset of each topic partition that has moved since the last call."""
        moved = {}
        for place, offsets in self._open.items():
            while offsets and offsets[next(iter(offsets))]:
                moved[place] = offsets.popitem(last=False)[0] + 1
        return moved

    def __len__(self) -> int:
        return sum(len(offsets) for offsets in self._open.values())


class Down:
    """The way down; `run` is its loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.topics = names.MqttTopics(settings.topic_prefix)
        self.answers = KafkaReader(
            f"{settings.name}-answers", settings.kafka, settings.answers_group, on_lost=self._lost
        )
        self.desired = KafkaReader(f"{settings.name}-desired", settings.kafka, f"sluice-{settings.name}-desired")
        self.writer = KafkaWriter(f"{settings.name}-down", settings.kafka)
        self._published: deque[int] = deque()
        self.door = MqttDoor("downlink", settings.broker, f"{settings.name}-down", on_published=self._published.append)
        self.progress = Progress()
        self._by_mid: dict[int, tuple[TopicPartition, int]] = {}
        self._to_commit: dict[TopicPartition, int] = {}
        """Offsets that Kafka has not taken yet."""
        self._follows_desired = False

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        self.door.start()
        backoff = Backoff()
        held = False
        while not stop.is_set():
            try:
                self._pass_desired()
                if not self.answers.topics and names.PREDICTIONS in self.answers.topic_names():
                    self.answers.subscribe([names.PREDICTIONS])
                if self.answers.topics and len(self.progress) < self.settings.answers_in_flight:
                    for record in self.answers.read(BATCH, 0.02):
                        self._pass_answer(record)
                elif not self.answers.topics or not self._published:
                    stop.wait(0.02)
                self._settle()
                backoff.reset()
                held = False
            except TemporaryError as error:
                if not held:
                    log.warning("waiting: %s", error)
                held = True
                stop.wait(max(error.delay, backoff.wait_s()))
        try:
            self._settle()
        except TemporaryError as error:
            log.warning("some answers will come again: %s", error)
        self.door.stop()
        self.answers.close()
        self.desired.close()

    def _pass_answer(self, record: Record) -> None:
        """One record of `sluice.predictions`, to its device if it is not that device's own word."""
        place = (record.topic, record.partition)
        try:
            prediction = messages.decode(record.value, self.settings.message_limit_bytes)
            if not isinstance(prediction, Prediction):
                raise PermanentError("an offload on the topic of predictions")
        except (PermanentError, UnknownSchemaError) as error:
            # the results writer keeps this record as a dead letter (or holds it); here it is only passed by
            log.error("not passed on: %s", error, extra={"topic": record.topic, "offset": record.offset})
            self.progress.begin(record)
            self.progress.done(place, record.offset)
            return
        self.progress.begin(record)
        own = prediction.tier == "edge" and prediction.reason != "expired"
        if own or prediction.audit is not None:
            self.progress.done(place, record.offset)
            return
        mid = self.door.publish(self.topics.of(prediction.device_id, "inbox"), record.value)
        self._by_mid[mid] = (place, record.offset)
        metrics.GATEWAY_DOWN.inc()

    def _pass_desired(self) -> None:
        """Desired state, as it is: signed by the control plane, so that nobody on the way can change it."""
        if not self._follows_desired:
            if names.DESIRED not in self.desired.topic_names():
                return
            self.desired.assign_all(names.DESIRED)
            self._follows_desired = True
        for record in self.desired.read(BATCH, 0.0):
            try:
                device = names.check_name("device", (record.key or b"").decode("ascii", "replace"))
                if len(record.value) > MAX_STATE_BYTES:
                    raise PermanentError(f"desired state of {len(record.value)} bytes")
                if record.value:
                    parse_state(Signed, record.value)
            except PermanentError as error:
                log.error("dead letter: %s", error, extra={"topic": record.topic, "offset": record.offset})
                headers = dead_letter_headers(str(error), "gateway", *_place(record))
                self.writer.write(names.DEAD_LETTER, record.value, key=record.key, headers=headers)
                continue
            self.door.publish(self.topics.of(device, "desired"), record.value, retain=True)

    def _settle(self) -> None:
        """Commit what the broker has taken."""
        self.writer.poll()
        while self._published:
            mid = self._published.popleft()
            if mid in self._by_mid:
                self.progress.done(*self._by_mid.pop(mid))
        self._to_commit |= self.progress.pop_offsets()
        self.answers.commit(self._to_commit)
        self._to_commit.clear()

    def _lost(self, places: list[TopicPartition]) -> None:
        self.progress.forget(places)
        for place in places:
            self._to_commit.pop(place, None)


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
