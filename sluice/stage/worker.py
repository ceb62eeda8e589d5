"""The worker: the daemon of the fog and cloud tiers, from one Kafka topic a model to the next.

The order of one turn, which is the whole guarantee (at least once): read; work; write every outcome and wait until
Kafka has confirmed it; only then move the offsets. Whatever ends the process before that, the records come again.
What can never succeed becomes a dead letter; what must wait (a bundle being fetched, a schema newer than this
version) makes its topic partition rest while the others go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

from sluice.daemon.life import READY, Backoff
from sluice.doors.http import HttpDoor
from sluice.doors.kafka import (
    KafkaReader,
    KafkaWriter,
    Record,
    TopicPartition,
    dead_letter_headers,
)
from sluice.stage.settings import StageSettings
from sluice.stage.shelf import Shelf
from sluice.stage.step import Stage, Work, best_belief, predict, step, unpack
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome, Prediction

log = logging.getLogger(__name__)

CUT_BYTES = 1000
"""What is kept of a dead letter that is too large to be kept whole."""

Group = tuple[str, str, int]
"""(bundle digest, operating point, next segment): what may share a batch."""


class Worker:
    """One stage's worker process; `run` is its main loop."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings
        self.tier = settings.tier
        name = f"stage-{self.tier}"
        self.writer = KafkaWriter(name, settings.kafka, linger_ms=0)
        self.reader = KafkaReader(name, settings.kafka, f"sluice-{name}", on_lost=self._lost)
        door = HttpDoor(settings.cloud_url, settings.token)
        self.shelf = Shelf(self.tier, door, settings.data, settings.public_keys, settings.threads)
        self.done: dict[TopicPartition, int] = {}
        """Next offset of each topic partition whose outcomes are confirmed and not yet committed."""
        self.resting: dict[TopicPartition, tuple[str | None, float]] = {}
        """What rests: until a bundle (digest) is there, or at the latest until a time (monotonic seconds)."""
        self._next_commit = self._next_topics = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        backoff = Backoff()
        log.info(READY, extra={"tier": self.tier})
        while not stop.is_set():
            try:
                self._follow_topics()
                self._wake()
                records = self.reader.read(self.settings.batch_most, self.settings.poll_timeout_s)
                if records:
                    begun = time.perf_counter()
                    outcomes, dead, offsets = self._work(records)
                    if not self._write(outcomes, dead, stop):
                        break
                    self.done.update(offsets)
                    metrics.STAGE_BATCH_S.labels(self.tier).observe(time.perf_counter() - begun)
                self._commit()
                backoff.reset()
            except TemporaryError as error:
                log.warning("waiting: %s", error, extra={"tier": self.tier})
                stop.wait(max(error.delay, backoff.wait_s()))
        try:
            self.reader.commit(self.done)
        except TemporaryError as error:
            log.warning("what was done last will be done again: %s", error)
        self.shelf.close()
        self.reader.close()

    def _work(
        self, records: list[Record]
    ) -> tuple[list[tuple[Record, Outcome]], list[tuple[Record, str]], dict[TopicPartition, int]]:
        """(outcomes, dead letters with their reasons, next offsets) of what can be worked on now.

        A record that has to wait makes its topic partition rest from there on; the offsets stop before it.
        """
        groups: dict[Group, list[tuple[int, Work]]] = defaultdict(list)
        stages: dict[Group, Stage] = {}
        made: dict[int, Outcome] = {}
        dead: list[tuple[Record, str]] = []
        offsets: dict[TopicPartition, int] = {}
        rests: dict[TopicPartition, int] = {}
        for i, record in enumerate(records):
            place = (record.topic, record.partition)
            if place in rests:
                continue
            try:
                offload = self._open(record)
                belief = best_belief(offload)
                if offload.ttl_ms <= 0 and belief is not None:
                    made[i] = predict(offload, belief, self.tier, "final", "expired")
                    metrics.STAGE_EXPIRED.labels(self.tier).inc()
                else:
                    stage = self.shelf.get(offload.bundle)
                    if stage is None:
                        rests[place] = record.offset
                        left_s = offload.ttl_ms / 1000 if belief is not None else math.inf
                        self.resting[place] = (offload.bundle, time.monotonic() + left_s)
                        continue
                    group = (offload.bundle, offload.operating_point, offload.next_segment)
                    groups[group].append((i, unpack(offload, stage.manifest)))
                    stages[group] = stage
            except PermanentError as error:
                dead.append((record, str(error)))
            except UnknownSchemaError as error:
                log.error("%s[%d] rests at offset %d: %s", *place, record.offset, error)
                metrics.STAGE_HELD.labels(self.tier).inc()
                rests[place] = record.offset
                self.resting[place] = (None, time.monotonic() + self.settings.hold_s)
                continue
            offsets[place] = record.offset + 1
        for group, members in groups.items():
            try:
                outcomes = step(stages[group], [work for _, work in members])
            except PermanentError as error:
                dead.extend((records[i], str(error)) for i, _ in members)
                continue
            made.update((i, outcome) for (i, _), outcome in zip(members, outcomes, strict=True))
            metrics.STAGE_SAMPLES.labels(self.tier, members[0][1].offload.model).inc(len(members))
        if rests:
            self.reader.seek(rests)
            self.reader.pause(rests)
        return [(records[i], made[i]) for i in sorted(made)], dead, offsets

    def _open(self, record: Record) -> Offload:
        """The offload of `record`, its time to live less what it spent in Kafka, by the servers' clocks."""
        outcome = messages.decode(record.value, self.settings.message_limit_bytes)
        if not isinstance(outcome, Offload):
            raise PermanentError("a prediction on an offload topic")
        if outcome.tier != self.tier:
            raise PermanentError(f"offload is meant for tier {outcome.tier}")
        age_ms = max(0, time.time_ns() // 1_000_000 - record.timestamp_ms)
        return replace(outcome, ttl_ms=outcome.ttl_ms - age_ms, bytes_sent=outcome.bytes_sent + len(record.value))

    def _write(
        self, outcomes: list[tuple[Record, Outcome]], dead: list[tuple[Record, str]], stop: threading.Event
    ) -> bool:
        """Write all and wait until Kafka has confirmed it; False when told to stop before that."""
        refused: list[tuple[Record, str]] = []
        failures: list[Exception] = []

        def note(record: Record, error: Exception | None) -> None:
            if isinstance(error, PermanentError):
                refused.append((record, str(error)))
            elif error is not None:
                failures.append(error)

        for record, outcome in outcomes:
            kind = "prediction" if isinstance(outcome, Prediction) else "offload"
            topic = (
                names.PREDICTIONS
                if isinstance(outcome, Prediction)
                else names.offload_topic(outcome.tier, outcome.model)
            )
            self._put(
                topic,
                messages.encode(outcome),
                key=outcome.device_id,
                on_delivery=lambda error, record=record: note(record, error),
            )
            metrics.STAGE_OUTCOMES.labels(self.tier, kind).inc()
        for letters in (dead, refused):
            for record, reason in letters:
                self._put_dead_letter(record, reason, failures)
            while self.writer.flush(0.5):
                if stop.is_set():
                    return False
        if failures:
            raise RuntimeError(f"Kafka lost a record for good: {failures[0]}")
        return True

    def _put_dead_letter(self, record: Record, reason: str, failures: list[Exception]) -> None:
        log.error("dead letter: %s", reason, extra={"topic": record.topic, "offset": record.offset})
        metrics.STAGE_DEAD.labels(self.tier).inc()
        self._put_letter(record, reason, record.value, failures)

    def _put_letter(self, record: Record, reason: str, value: bytes, failures: list[Exception]) -> None:
        """Write it whole, or its beginning where Kafka takes it no larger than it was."""

        def note(error: Exception | None) -> None:
            if isinstance(error, PermanentError) and len(value) > CUT_BYTES:
                cut = f"{reason} (too large to keep whole: {len(value)} bytes)"
                self._put_letter(record, cut, value[:CUT_BYTES], failures)
            elif error is not None:
                failures.append(error)

        headers = dead_letter_headers(reason, f"stage-{self.tier}", record.topic, record.partition, record.offset)
        self._put(names.DEAD_LETTER, value, key=record.key, headers=headers, on_delivery=note)

    def _put(self, topic: str, value: bytes, **options: Any) -> None:
        while True:
            try:
                self.writer.write(topic, value, **options)
            except TemporaryError:
                self.writer.poll(0.1)
            else:
                return

    def _commit(self) -> None:
        now = time.monotonic()
        if self.done and now >= self._next_commit:
            self.reader.commit(self.done)
            self.done.clear()
            self._next_commit = now + self.settings.commit_interval_s

    def _lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away: commit what is done on them, forget them."""
        self.reader.commit({place: self.done.pop(place) for place in places if place in self.done})
        for place in places:
            self.resting.pop(place, None)

    def _wake(self) -> None:
        """Let go on what waited for a bundle that is here now, or for a time that has come."""
        here, now = self.shelf.arrived(), time.monotonic()
        awake = [place for place, (digest, until) in self.resting.items() if digest in here or until <= now]
        for place in awake:
            del self.resting[place]
        if awake:
            self.reader.resume(awake)

    def _follow_topics(self) -> None:
        """Subscribe to the topics of this tier's models, as they come to be."""
        now = time.monotonic()
        if now < self._next_topics:
            return
        self._next_topics = now + self.settings.topics_interval_s
        prefix = names.offload_prefix(self.tier)
        wanted = {prefix + model for model in self.settings.models}
        topics = sorted(
            topic for topic in self.reader.topic_names() if (topic in wanted if wanted else topic.startswith(prefix))
        )
        if topics and topics != self.reader.topics:
            log.info("working on %s", ", ".join(topics), extra={"tier": self.tier})
            self.reader.subscribe(topics)
