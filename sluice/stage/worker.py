"""The worker: the daemon of the fog and cloud tiers, from one Kafka topic a model to the next.

One turn: read; work; hand what came of it to the delivery (`delivery.py`), which moves the offsets after the outcomes
or with them. Whatever ends the process before that, the records come again. What can never succeed becomes a dead
letter; what must wait (a bundle being fetched, a schema newer than this version) makes its topic partition rest while
the others go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from sluice.daemon.life import READY, Backoff
from sluice.doors.http import HttpDoor
from sluice.doors.kafka import KafkaReader, Record, TopicPartition
from sluice.stage.audit import audits
from sluice.stage.delivery import AtLeastOnce, Offsets
from sluice.stage.exactly_once import ExactlyOnce
from sluice.stage.settings import StageSettings
from sluice.stage.shelf import Shelf
from sluice.stage.step import Stage, Work, best_belief, predict, step, unpack
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome

log = logging.getLogger(__name__)

AHEAD_KB, AHEAD = 8192, 500
"""Read ahead of the batch at hand (kB, or records of a topic partition); what comes for another model waits for no more
than that."""

SOON_S = 15.0
"""A transaction that may take longer than that could still be committed when a stall is seen."""
BATCH_S = 15.0
"""A batch takes about so long at most; who is silent for 60 s is out of its group (`KafkaReader`)."""
Group = tuple[str, tuple[str, int, bool]]
"""(bundle digest, kind of work): what may share a batch."""


class Worker:
    """One stage's worker process; `run` is its main loop."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings
        self.tier = settings.tier
        name = f"stage-{self.tier}"
        self.reader = KafkaReader(
            name,
            settings.kafka,
            f"sluice-{name}",
            on_lost=self._lost,
            on_overtaken=self._overtaken,
            ahead_kb=AHEAD_KB,
            ahead=AHEAD,
            skips_pending=settings.transaction_timeout_s <= SOON_S,
        )
        kind = ExactlyOnce if settings.delivery == "exactly-once" else AtLeastOnce
        self.delivery: AtLeastOnce | ExactlyOnce = kind(settings, self.reader, self._rewound)
        door = HttpDoor(settings.cloud_url, settings.token, settings.cloud_ca)
        self.shelf = Shelf(
            self.tier,
            door,
            settings.data,
            settings.public_keys,
            threads=settings.threads,
            most=settings.bundles_most,
            idle_s=settings.bundle_idle_s,
            keep_s=settings.bundle_keep_s,
        )
        self.resting: dict[TopicPartition, tuple[str | None, float]] = {}
        """What rests: until a bundle (digest) is there, or at the latest until a time (monotonic seconds)."""
        self._next_topics = 0.0
        self._pace_s: float | None = None
        """What the last batch took for each of its records."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        backoff = Backoff()
        records: list[Record] = []
        log.info(READY, extra={"tier": self.tier})
        while not stop.is_set():
            try:
                self.delivery.settle(stop, idle=not records)
                self._follow_topics()
                self._wake()
                records = self._read()
                if records:
                    begun = time.perf_counter()
                    self.delivery.take(*self._work(records))
                    metrics.STAGE_BATCH.labels(self.tier).observe(len(records))
                    taken_s = time.perf_counter() - begun
                    self._pace_s = taken_s / len(records)
                    metrics.STAGE_BATCH_S.labels(self.tier).observe(taken_s)
                backoff.reset()
            except TemporaryError as error:
                log.warning("waiting: %s", error, extra={"tier": self.tier})
                stop.wait(max(error.delay, backoff.wait_s()))
        try:
            self.delivery.stop()
        except TemporaryError as error:
            log.warning("what was done last will be done again: %s", error)
        self.shelf.close()
        self.reader.close()

    def _read(self) -> list[Record]:
        """The next batch, maybe empty: not for longer than the delivery has patience."""
        most, patience_s = self.settings.poll_timeout_s, self.delivery.patience_s
        wait_s = most if patience_s is None else min(most, patience_s)
        return self.reader.read(self._most(), wait_s, self.settings.batch_wait_s)

    def _most(self) -> int:
        """How many records to take at once: no more than it will be through with in good time for its group."""
        if self._pace_s is None:
            return 1
        return max(1, min(self.settings.batch_most, int(BATCH_S / max(self._pace_s, 1e-9))))

    def _work(self, records: list[Record]) -> tuple[list[tuple[Record, Outcome]], list[tuple[Record, str]], Offsets]:
        """(outcomes, dead letters with their reasons, next offsets) of what can be worked on now.

        A record that has to wait makes its topic partition rest from there on; the offsets stop before it.
        """
        groups: dict[Group, list[tuple[int, Work]]] = defaultdict(list)
        stages: dict[Group, Stage] = {}
        made: dict[int, Outcome] = {}
        checks: list[tuple[Record, Outcome]] = []
        dead: list[tuple[Record, str]] = []
        offsets: Offsets = {}
        rests: Offsets = {}
        for i, record in enumerate(records):
            place = (record.topic, record.partition)
            if place in rests:
                continue
            try:
                offload = self._open(record)
                belief = best_belief(offload) if offload.audit is None else None  # an audit has no time to keep
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
                    work = unpack(offload, stage.manifest)
                    group = (offload.bundle, work.kind)
                    groups[group].append((i, work))
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
            checks += [(records[members[at][0]], one) for at, one in self._audits(stages[group], members, outcomes)]
            metrics.STAGE_SAMPLES.labels(self.tier, members[0][1].offload.model).inc(len(members))
        if rests:
            self.reader.seek(rests)
            self.reader.pause(rests)
        return [*((records[i], made[i]) for i in sorted(made)), *checks], dead, offsets

    def _audits(
        self, stage: Stage, members: list[tuple[int, Work]], outcomes: list[Outcome]
    ) -> list[tuple[int, Outcome]]:
        """The audits of a batch, each with its place in `members`, under its sample's seq: no receipt is waited for.

        One that fails takes nothing from the samples, which are answered.
        """
        works, share = [work for _, work in members], self.settings.audit_share
        try:
            return audits(stage, works, outcomes, share, lambda answer: answer.seq)
        except PermanentError as error:
            log.error("no audits: %s", error, extra={"tier": self.tier})
            return []

    def _open(self, record: Record) -> Offload:
        """The offload of `record`, its time to live less what it spent in Kafka, by the servers' clocks."""
        outcome = messages.decode(record.value, self.settings.message_limit_bytes)
        if not isinstance(outcome, Offload):
            raise PermanentError("a prediction on an offload topic")
        if outcome.tier != self.tier:
            raise PermanentError(f"offload is meant for tier {outcome.tier}")
        age_ms = max(0, time.time_ns() // 1_000_000 - record.timestamp_ms)
        return replace(outcome, ttl_ms=outcome.ttl_ms - age_ms, bytes_sent=outcome.bytes_sent + len(record.value))

    def _lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away."""
        for place in places:
            self.resting.pop(place, None)
        self.delivery.lost(places)

    def _overtaken(self, place: TopicPartition, lost: int) -> None:
        """Retention was faster than we: their devices keep the provisional answers that they gave."""
        metrics.STAGE_RETENTION.labels(self.tier).inc(lost)
        log.error("%s[%d]: retention took %d records before they were worked on", *place, lost)

    def _rewound(self, places: Iterable[TopicPartition]) -> None:
        """These are read again from an earlier offset on: none of them may rest before it comes to where it rested."""
        awake = [place for place in places if self.resting.pop(place, None)]
        if awake:
            self.reader.resume(awake)

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
