"""Down: answers from `sluice.predictions` and desired state from `sluice.desired` go to the devices over MQTT.

Offsets of answers move when the broker has taken them, in order for each topic partition. Whether a device has them
is not known here: one that does not get its answer asks the control plane for it. What the broker refuses is tried
some times and then left to that. A device's own answers are not sent back to it, nor are audits of them, but for those
it gave because a sample expired: whether such an answer is final is decided by its place in the topic.

A prediction that may be of a newer schema makes its topic partition rest while the others go on. What cannot be read
is passed by: the results writer reads the same topics and keeps it as a dead letter, once, however many gateways there
are.

Desired state is read from the beginning at each start, and again when the broker comes back, which may have forgotten
it, and published as a retained message: a device ignores what it knows. The topic is compacted, but only some time
later, so what is read is held until the end of the topic partition: of each device's states the newest alone is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

from gateway.progress import Progress
from gateway.settings import GatewaySettings
from sluice.daemon.life import Backoff
from sluice.doors.kafka import KafkaReader, Record, TopicPartition
from sluice.doors.mqtt import MqttDoor
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Prediction
from sluice.wire.state import MAX_STATE_BYTES, Signed, parse_state

log = logging.getLogger(__name__)

BATCH = 200
AHEAD_KB, AHEAD = 8192, 1000
"""Read ahead of the batch at hand."""
WAIT_S = 0.02
"""Longest wait for a record or a word from the broker; whatever comes ends it."""
NEWEST_MOST = 500
"""Devices whose desired state is held until the end of the topic partition is read."""
COMMIT_EVERY_S, COMMIT_EVERY = 0.5, 200
"""Time between two commits, or answers: each waits for Kafka, and the answers behind it do."""
TOPICS_EVERY_S = 1.0
"""Least time between two looks whether the topics are there."""
HOLD_S = 10.0
"""Time between two tries of a topic partition that rests."""
STAY_S = 1.0
"""Without room nothing is read, but Kafka is told that often that this reader is still there."""
LAST_S = 1.0
"""How long the broker's last words are waited for, at the end or when topic partitions are taken away."""
TRIES = 5
"""How often an answer that the broker refuses is published, with a pause that doubles, before it is passed by."""
PAUSE_S = 0.5


@dataclass(slots=True)
class Sent:
    """An answer on its way to the broker."""

    place: TopicPartition
    offset: int
    topic: str
    payload: bytes
    tries: int = 1


class Down:
    """The way down; `run` is its loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.topics = names.MqttTopics(settings.topic_prefix)
        self.answers = KafkaReader(
            f"{settings.name}-answers",
            settings.kafka,
            settings.answers_group,
            on_lost=self._lost,
            on_overtaken=_overtaken,
            ahead_kb=AHEAD_KB,
            ahead=AHEAD,
        )
        self.desired = KafkaReader(
            f"{settings.name}-desired",
            settings.kafka,
            f"sluice-{settings.name}-desired",
            on_end=lambda place, _offset: self._ended.add(place),
        )
        self._newest: dict[str, Record] = {}
        """Desired states to be told, by device, the newest that was read last."""
        self._ended: set[TopicPartition] = set()
        """Topic partitions of desired states that are read to their end."""
        self.progress = Progress()
        self._words: deque[tuple[int, str | None]] = deque()
        """From paho's thread: (message id, None or why the broker refuses it)."""
        self._heard = threading.Event()
        self._broker_came = threading.Event()
        self.door = MqttDoor(
            "downlink",
            settings.broker,
            f"{settings.name}-down",
            on_up=self._broker_came.set,
            on_published=self._word,
            on_refused=self._word,
        )
        self._read: deque[Record] = deque()
        """Answers that wait for room."""
        self._sent: dict[int, Sent] = {}
        self._bytes = 0
        """Of the answers in `_sent` and `_again`."""
        self._again: deque[tuple[float, Sent]] = deque()
        """Refused: when each is published again."""
        self._states: set[int] = set()
        """Message ids of desired states."""
        self._resting: dict[TopicPartition, float] = {}
        self._to_commit: dict[TopicPartition, int] = {}
        """Offsets that Kafka has not taken yet."""
        self._through = 0
        """Answers that are through since the last commit."""
        self._next_commit = self._next_look = self._next_stay = 0.0
        self._stays = False
        """Topic partitions are paused until there is room."""
        self._follows_desired = False

    def _word(self, mid: int, refused: str | None = None) -> None:
        self._words.append((mid, refused))
        self._heard.set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        self.door.start()
        backoff, held = Backoff(), False
        while not stop.is_set():
            try:
                self._follow_topics()
                self._pass_desired()
                self._hear()
                self._pass_answers(stop)
                if self._through >= COMMIT_EVERY or time.monotonic() >= self._next_commit:
                    self._commit()
                backoff.reset()
                held = False
            except TemporaryError as error:
                if not held:
                    log.warning("waiting: %s", error)
                held = True
                stop.wait(max(error.delay, backoff.wait_s()))
        self._finish()
        self.door.stop()
        self.answers.close()
        self.desired.close()

    def _follow_topics(self) -> None:
        """Begin to read when the control plane has made the topics; desired state anew when the broker came back."""
        now = time.monotonic()
        if not (self.answers.topics and self._follows_desired) and now >= self._next_look:
            self._next_look = now + TOPICS_EVERY_S
            there = self.answers.topic_names()
            if names.PREDICTIONS in there and not self.answers.topics:
                self.answers.subscribe([names.PREDICTIONS])
            self._follows_desired = names.DESIRED in there
        if self._follows_desired and self._broker_came.is_set():
            self.desired.assign_all(names.DESIRED)
            self._newest.clear()
            self._ended.clear()
            self._broker_came.clear()

    def _pass_answers(self, stop: threading.Event) -> None:
        """Publish what there is room for; waits a little where nothing can be done."""
        if not self._room():
            self._stay()
            self._heard.wait(WAIT_S)
            self._heard.clear()
        elif not self._read and self.answers.topics:
            self._wake()
            self._read.extend(self.answers.read(BATCH, WAIT_S))
            self._next_stay = time.monotonic() + STAY_S
        elif not self._read:
            stop.wait(WAIT_S)
        while self._read and self._room():
            self._pass_answer(self._read.popleft())

    def _stay(self) -> None:
        """While the broker is away: remain a member of the group, or all that is under way would be sent again."""
        now = time.monotonic()
        if self.answers.topics and now >= self._next_stay:
            self._next_stay, self._stays = now + STAY_S, True
            self.answers.pause(self.answers.assignment())
            self._read.extend(self.answers.read(BATCH, 0.0))  # nothing, but for what was given to us just now

    def _room(self) -> bool:
        """Whether another answer may be under way."""
        most = self.settings.answers_in_flight
        return len(self._sent) + len(self._again) < most and self._bytes < self.settings.answers_in_flight_kb * 1000

    def _pass_answer(self, record: Record) -> None:
        """One record of `sluice.predictions`, to its device if it is not that device's own word."""
        place = (record.topic, record.partition)
        if place in self._resting:
            return
        try:
            prediction = messages.decode(record.value, self.settings.message_limit_bytes)
            if not isinstance(prediction, Prediction):
                raise PermanentError("an offload on the topic of predictions")
        except PermanentError as error:
            log.error("not passed on: %s", error, extra={"topic": record.topic, "offset": record.offset})
            metrics.GATEWAY_DOWN_BAD.inc()
            self.progress.begin(record)
            self.progress.done(place, record.offset)
            return
        except UnknownSchemaError as error:
            log.error("%s[%d] rests at offset %d: %s", *place, record.offset, error)
            metrics.GATEWAY_DOWN_HELD.inc()
            self._resting[place] = time.monotonic() + HOLD_S
            self.answers.pause([place])
            self.answers.seek({place: record.offset})
            return
        self.progress.begin(record)
        own = prediction.tier == "edge" and prediction.reason != "expired"
        if own or prediction.audit is not None:
            self.progress.done(place, record.offset)
            return
        topic = self.topics.of(prediction.device_id, "inbox")
        self._bytes += len(record.value)
        self._publish(Sent(place, record.offset, topic, record.value))
        metrics.GATEWAY_DOWN.inc()

    def _publish(self, sent: Sent) -> None:
        self._sent[self.door.publish(sent.topic, sent.payload)] = sent

    def _wake(self) -> None:
        """Try again what rested long enough; go on with all others when there is room again."""
        now = time.monotonic()
        awake = {place for place, until in self._resting.items() if until <= now}
        for place in awake:
            del self._resting[place]
        if self._stays:
            self._stays = False
            awake = self.answers.assignment() - self._resting.keys()
        if awake:
            self.answers.resume(awake)

    def _pass_desired(self) -> None:
        """Desired state, as it is: signed by the control plane, so that nobody on the way can change it."""
        if not self._follows_desired or not self.door.up.is_set() or len(self._states) >= BATCH:
            return
        for record in self.desired.read(BATCH, 0.0):
            try:
                device = _device_of(record)
            except PermanentError as error:  # what was desired before it still is
                log.error("not passed on: %s", error, extra={"topic": record.topic, "offset": record.offset})
                continue
            self._newest.pop(device, None)
            self._newest[device] = record
        over = len(self._newest) - NEWEST_MOST
        for number, (device, record) in enumerate(list(self._newest.items())):
            if number < over or (record.topic, record.partition) in self._ended:
                del self._newest[device]
                self._states.add(self.door.publish(self.topics.of(device, "desired"), record.value, retain=True))
        self._ended.clear()

    def _hear(self) -> None:
        """What the broker has taken is through, what it refuses is published again later, some times."""
        now = time.monotonic()
        while self._words:
            mid, refused = self._words.popleft()
            if mid in self._states:
                self._states.remove(mid)
                if refused:
                    log.error("the broker refuses a desired state: %s", refused)
            elif (sent := self._sent.pop(mid, None)) is None:
                continue
            elif refused and sent.tries < TRIES:
                self._again.append((now + PAUSE_S * 2**sent.tries, sent))
            else:
                if refused:
                    log.error("passed by, the broker refuses it: %s", refused, extra={"topic": sent.topic})
                    metrics.GATEWAY_DOWN_REFUSED.inc()
                self._bytes -= len(sent.payload)
                self._through += 1
                self.progress.done(sent.place, sent.offset)
        for _ in range(len(self._again)):
            due, sent = self._again.popleft()
            if due <= now:
                sent.tries += 1
                self._publish(sent)
            else:
                self._again.append((due, sent))

    def _commit(self) -> None:
        """Commit what is through."""
        self._next_commit, self._through = time.monotonic() + COMMIT_EVERY_S, 0
        self._to_commit |= self.progress.pop_offsets()
        if self.answers.commit(self._to_commit):  # else `_lost` says which are not ours any more
            self._to_commit.clear()

    def _finish(self) -> None:
        """Wait a little for what is under way, and commit."""
        end = time.monotonic() + LAST_S
        while self._sent and self.door.up.is_set() and (left := end - time.monotonic()) > 0:
            self._heard.wait(min(left, WAIT_S))
            self._heard.clear()
            self._hear()
        try:
            self._commit()
        except TemporaryError as error:
            log.warning("some answers will come again: %s", error)

    def _lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away: say how far they are, forget them."""
        self._finish()
        self.progress.forget(places)
        for place in places:
            self._to_commit.pop(place, None)
            self._resting.pop(place, None)
        gone = set(places)
        kept = [record for record in self._read if (record.topic, record.partition) not in gone]
        self._read.clear()  # in place: a read that is under way adds to it
        self._read.extend(kept)


def _overtaken(place: TopicPartition, lost: int) -> None:
    """Their devices ask the control plane for them."""
    metrics.GATEWAY_RETENTION.inc(lost)
    log.error("%s[%d]: retention took %d records before they were read", *place, lost)


def _device_of(record: Record) -> str:
    """The device of a desired state; `PermanentError` for what no device could read."""
    device = names.check_name("device", (record.key or b"").decode("ascii", "replace"))
    if len(record.value) > MAX_STATE_BYTES:
        raise PermanentError(f"desired state of {len(record.value)} bytes")
    if record.value:
        parse_state(Signed, record.value)
    return device
