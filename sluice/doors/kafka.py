"""The door to Kafka (confluent_kafka): records in and out, watermarks.

Next to it `kafka_transactions.py`, `kafka_topics.py`, and `kafka_gaps.py`, which tells what retention took.
Temporary trouble becomes `TemporaryError`; a Kafka that is away is one log line, librdkafka keeps trying by itself.
Keys are partitioned by murmur2, as every other Kafka client does.
"""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, overload

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient
from pydantic import BaseModel, ConfigDict

from sluice.doors.kafka_gaps import Gaps
from sluice.doors.kafka_stalls import Stalls
from sluice.wire import metrics
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

BEGINNING = ck.OFFSET_BEGINNING
"""In place of an offset: from the first record that is there."""
ASK_S = 2.0
"""Longest wait for Kafka's word where only a count depends on it."""

Headers = list[tuple[str, str | bytes | None]]
TopicPartition = tuple[str, int]


class KafkaCluster(BaseModel):
    """Where Kafka is and how to speak with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bootstrap: str = "127.0.0.1:9092"
    """Bootstrap servers, `host:port,…`."""
    options: dict[str, str] = {}
    """Further librdkafka settings, such as `security.protocol` and `sasl.*`."""

    def config(self, name: str) -> dict[str, Any]:
        """librdkafka's configuration for a client of the door called `name`."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": f"sluice-{name}",
            "error_cb": _Errors(name, self.bootstrap),
            "log_level": 0,
            "log.connection.close": False,
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 5000,
            **self.options,
        }


class _Errors:
    """librdkafka's error callback: one line when Kafka goes away, whatever the number of tries."""

    def __init__(self, name: str, bootstrap: str) -> None:
        self.name = name
        self.bootstrap = bootstrap
        self.down = False

    def __call__(self, error: ck.KafkaError) -> None:
        if error.fatal():
            log.error("%s: Kafka: %s", self.name, error)
        elif error.code() == ck.KafkaError._ALL_BROKERS_DOWN and not self.down:
            self.down = True
            metrics.DOOR_DOWN.labels(door=self.name).inc()
            log.warning("%s: Kafka at %s is away; trying again until it is back", self.name, self.bootstrap)

    def works(self) -> None:
        """Something came through: the next loss is news again."""
        if self.down:
            self.down = False
            log.info("%s: Kafka at %s is back", self.name, self.bootstrap)


class Record(NamedTuple):
    """A record as it was read; `timestamp_ms` is the broker's or the producing server's, never a device's.

    A tuple, since many of them are made: a frozen dataclass takes three times as long.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    timestamp_ms: int
    headers: Headers


def _record(message: ck.Message) -> Record:
    headers = message.headers()
    return Record(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        _as_bytes(message.key()),
        _as_bytes(message.value()) or b"",
        message.timestamp()[1],
        [(str(k), v) for k, v in list(headers)] if headers else [],
    )


def _place(message: ck.Message) -> TopicPartition:
    return message.topic() or "", message.partition() or 0


class Block(Sequence[Record]):
    """Records of one topic partition in the order of their offsets, in columns: `offsets`, `keys`, `values`.

    To make a `Record` of each takes longer than to read them, so that is done only of those that are asked for.
    """

    def __init__(self, messages: Sequence[ck.Message]) -> None:
        self._messages = messages
        self.offsets = cast("list[int]", [message.offset() for message in messages])

    @property
    def values(self) -> list[bytes]:
        """The values; empty where a record has none."""
        return cast("list[bytes]", [message.value() or b"" for message in self._messages])

    @property
    def keys(self) -> list[bytes | None]:
        """The keys."""
        return cast("list[bytes | None]", [message.key() for message in self._messages])

    def within(self, begin: int, end: int) -> Block:
        """Those with offsets from `begin` on, before `end`."""
        if not self.offsets or (begin <= self.offsets[0] and self.offsets[-1] < end):
            return self
        return Block(self._messages[bisect_left(self.offsets, begin) : bisect_left(self.offsets, end)])

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [_record(message) for message in self._messages[at]]
        return _record(self._messages[at])

    def __iter__(self) -> Iterator[Record]:
        return map(_record, self._messages)


Delivered = Callable[[Exception | None], None]


class KafkaWriter:
    """An idempotent producer, acks=all. Not for several threads at once but for `poll` in the owner's loop.

    `linger_ms` is how long a record may wait for company; `compression` librdkafka's name of one.
    """

    def __init__(
        self,
        name: str,
        cluster: KafkaCluster,
        *,
        linger_ms: float = 1,
        compression: str = "none",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        config = cluster.config(name) | {
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": linger_ms,
            "compression.type": compression,
            "delivery.timeout.ms": 2_147_483_647,
            **(options or {}),
        }
        self._errors = config["error_cb"]
        self._config = config
        self._producer = ck.Producer(config)
        self.name = name

    def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int | None = None,
        headers: Headers | None = None,
        on_delivery: Delivered | None = None,
        on_offset: Callable[[int, int], None] | None = None,
    ) -> None:
        """Queue one record. `on_delivery(None | error)` is called from `poll` or `flush` when its fate is known;
        `on_offset(topic partition, offset)` before it, if the record is in Kafka.

        Raises `TemporaryError` when the queue is full: call `poll` and try again. A record that can never be
        delivered (too large, no such topic) reports `PermanentError` to `on_delivery`, or raises it where there is
        none. Raises `RuntimeError` when the producer is broken for good: only a new process helps.
        """

        def report(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is None and isinstance(self._errors, _Errors):
                self._errors.works()
            if error is None and on_offset is not None:
                on_offset(message.partition() or 0, message.offset() or 0)
            if on_delivery is not None:
                on_delivery(None if error is None else failure(error, topic))

        try:
            extra: dict[str, Any] = {} if partition is None else {"partition": partition}
            self._producer.produce(topic, value, key=key, headers=headers, on_delivery=report, **extra)
        except BufferError as error:
            raise TemporaryError(f"{self.name}: too many records wait for Kafka", 0.05) from error
        except ck.KafkaException as error:
            reason = self._refusal(error.args[0], topic)
            if on_delivery is None or not isinstance(reason, PermanentError):
                raise reason from error
            on_delivery(reason)

    def _refusal(self, error: ck.KafkaError, topic: str) -> Exception:
        """What it means that the client would not even take a record."""
        if error.code() == ck.KafkaError._FATAL:
            return RuntimeError(f"{self.name}: Kafka: {error.str()}")
        return failure(error, topic)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Run delivery callbacks, waiting up to `timeout_s` for the first."""
        self._producer.poll(timeout_s)

    def flush(self, timeout_s: float) -> int:
        """Wait until nothing is under way, `timeout_s` at most; returns how many records still are."""
        return self._producer.flush(timeout_s)

    def write_all(self, topic: str, pairs: Iterable[tuple[bytes | str | None, bytes | None]], timeout_s: float) -> None:
        """Write (key, value) pairs and wait for all; `TemporaryError` if not all were confirmed in time."""
        failures: list[Exception] = []

        def note(error: Exception | None) -> None:
            if error is not None:
                failures.append(error)

        for key, value in pairs:
            self.write(topic, value, key=key, on_delivery=note)
        left = self.flush(timeout_s)
        if failures:
            raise failures[0]
        if left:
            self._producer.purge()
            raise TemporaryError(f"Kafka confirmed not all records for {topic} within {timeout_s:g} s")


class KafkaReader:
    """A consumer of one group, offsets committed only by `commit`, explicit topics, `read_committed`.

    `ahead_kb`, or `ahead` records of a topic partition, are read ahead of what was asked for; whatever comes on another
    topic waits behind them. Where there is nothing to read, Kafka says so after `idle_ms`; until then it sends nothing
    of what was assigned meanwhile, either. `on_assigned` and `on_lost` get lists of (topic, partition), `on_end` a
    topic partition and the offset at which nothing more is there to read for now, `on_overtaken` a topic partition and
    how many records retention took from where reading was, or was to begin, before they were read; all are called from
    `read`. Who does not read again within `silent_s` is no member of the group any more. It is also how long a change
    of the group may take, if a member is gone and Kafka does not know. `skips_pending`: offsets that a transaction has
    kept pending for as long as a stall takes to be seen (`kafka_stalls`) are read without it; for groups whose
    transactions are over sooner.
    """

    def __init__(
        self,
        name: str,
        cluster: KafkaCluster,
        group: str,
        *,
        from_beginning: bool = True,
        on_assigned: Callable[[list[TopicPartition]], Mapping[TopicPartition, int] | None] | None = None,
        on_lost: Callable[[list[TopicPartition]], None] | None = None,
        on_end: Callable[[TopicPartition, int], None] | None = None,
        on_overtaken: Callable[[TopicPartition, int], None] | None = None,
        ahead_kb: int = 65_536,
        ahead: int = 100_000,
        idle_ms: int = 100,
        silent_s: float = 60.0,
        skips_pending: bool = True,
    ) -> None:
        tuned = {
            "session.timeout.ms": 10_000,
            "max.poll.interval.ms": int(1000 * silent_s),
            "fetch.wait.max.ms": idle_ms,
            "fetch.message.max.bytes": 2_000_000,
            "queued.max.messages.kbytes": ahead_kb,
            "queued.min.messages": ahead,
            "fetch.queue.backoff.ms": 10,
        }
        config = {
            **tuned,
            **cluster.config(name),
            "group.id": group,
            "enable.partition.eof": on_end is not None,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest" if from_beginning else "latest",
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "range",
        }
        self._config = config
        self._errors = config["error_cb"]
        self._consumer = ck.Consumer(config)
        self._on_assigned = on_assigned
        self._on_lost = on_lost
        self._on_end = on_end
        self._on_overtaken = on_overtaken
        self._gaps = Gaps(self._first_offset) if on_overtaken else None
        self._skips_pending = skips_pending
        self._stalls = Stalls(self._end_of, int(config["max.poll.interval.ms"]) / 1000)
        self._own: dict[TopicPartition, int] = {}
        """The highest offsets that this reader has committed."""
        self._joined = False
        self._paused: set[TopicPartition] = set()
        self._taken: set[TopicPartition] = set()
        """Topic partitions that were taken away during the read at hand."""
        self.name = name
        self.topics: list[str] = []

    def subscribe(self, topics: Sequence[str]) -> None:
        """Read exactly these topics from now on."""
        self.topics = sorted(topics)
        self._joined = False
        self._stalls.moves()
        self._consumer.subscribe(self.topics, on_assign=self._assigned, on_revoke=self._lost, on_lost=self._lost)

    def _assigned(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        wanted = self._on_assigned([(p.topic, p.partition) for p in partitions]) if self._on_assigned else None
        if wanted:
            for p in partitions:
                p.offset = wanted.get((p.topic, p.partition), p.offset)
        self._go_on(partitions)
        if self._gaps is not None:
            self._begin(partitions)
        self._joined = True
        self._paused.clear()
        self._stalls.moves()
        consumer.assign(partitions)
        consumer.resume(partitions)  # librdkafka keeps one paused while it is given away and back

    def _go_on(self, partitions: list[ck.TopicPartition]) -> None:
        """Begin nowhere behind what this reader has committed: a broker that was killed may have forgotten it."""
        known = [p for p in partitions if p.offset == ck.OFFSET_INVALID and (p.topic, p.partition) in self._own]
        try:
            told = self._consumer.committed(known, timeout=ASK_S) if known else []
        except ck.KafkaException:
            return  # it does not say now where the group stands, and others may have gone on
        for p, found in zip(known, told, strict=True):
            own = self._own[p.topic, p.partition]
            if found.offset < own:
                place = f"{p.topic}[{p.partition}]"
                log.error(
                    "%s: Kafka has forgotten that %s was read up to %d: it says %d", self.name, place, own, found.offset
                )
                p.offset = own

    def has_committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note what was committed for this group: `commit` does, and whoever commits it in a transaction has to."""
        for place, offset in offsets.items():
            self._own[place] = max(offset, self._own.get(place, 0))

    def _begin(self, partitions: list[ck.TopicPartition]) -> None:
        """Note where reading begins, as far as it is known."""
        assert self._gaps is not None
        stored = [p for p in partitions if p.offset == ck.OFFSET_INVALID]
        try:
            found = self._consumer.committed(stored, timeout=ASK_S) if stored else []
        except ck.KafkaException as error:
            log.warning("%s: what retention may have taken is not known: %s", self.name, error.args[0].str())
            found = []
        for p in (*partitions, *found):
            if p.offset >= 0:
                self._gaps.begin((p.topic, p.partition), p.offset)

    def _first_offset(self, place: TopicPartition) -> int | None:
        try:
            return self.watermarks(place, ASK_S)[0]
        except (PermanentError, TemporaryError):
            return None

    def _end_of(self, place: TopicPartition) -> int | None:
        try:
            return self.watermarks(place, ASK_S)[1]
        except (PermanentError, TemporaryError):
            return None

    def _answers(self) -> bool:
        try:
            return bool(self.topic_names(ASK_S))
        except TemporaryError:
            return False

    def _look_for_stall(self) -> None:
        """Raise `RuntimeError` if nothing is read although there is something to read, for good."""
        if self.topics and self._stalls.look(self._joined, lambda: self.assignment() - self._paused, self._answers):
            if not (self._joined and self._skips_pending and self._skip_pending()):
                raise RuntimeError(f"{self.name}: reading from Kafka stands still; only a new process helps")
            self._stalls.moves()

    def _skip_pending(self) -> bool:
        """Begin where the group stood before a transaction that never ends, if that is what reading waits for.

        Kafka tells nobody who reads committed records where a group stands while offsets of it are pending. A broker
        that was killed may keep them pending for ever (seen with 4.4.0, whose log has the commit).
        """
        ours = self._consumer.assignment()
        if not any(p.offset < 0 for p in self._consumer.position(ours)):
            return False
        plain = ck.Consumer({**self._config, "isolation.level": "read_uncommitted"})
        try:
            with contextlib.suppress(ck.KafkaException):
                self._consumer.committed(ours, timeout=ASK_S)
                return False  # it tells them: that is not it
            found = plain.committed(ours, timeout=ASK_S)
        except ck.KafkaException:
            return False
        finally:
            plain.close()
        log.error(
            "%s: Kafka does not tell where the group stands, because of a transaction that never ends; going on from "
            "before it: what it had committed, if it had, is done again",
            self.name,
        )
        other = ck.OFFSET_BEGINNING if self._config["auto.offset.reset"] == "earliest" else ck.OFFSET_END
        for p in found:
            own = self._own.get((p.topic, p.partition), -1)
            p.offset = max(p.offset, own) if max(p.offset, own) >= 0 else other
            if self._gaps is not None and p.offset >= 0:
                self._gaps.begin((p.topic, p.partition), p.offset)
        self._consumer.assign(found)
        if self._paused:
            self._consumer.pause([ck.TopicPartition(t, p) for t, p in self._paused])
        return True

    def _lost(self, _consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        self._joined = False
        self._stalls.moves()
        self._taken |= {(p.topic, p.partition) for p in partitions}
        if self._gaps is not None:
            self._gaps.forget((p.topic, p.partition) for p in partitions)
        if self._on_lost:
            self._on_lost([(p.topic, p.partition) for p in partitions])

    def read(self, most: int, timeout_s: float, fill_s: float = 0.0) -> list[Record]:
        """Up to `most` records: waits `timeout_s` for the first, then takes what is there or comes in `fill_s`.

        librdkafka's own `consume(n, timeout)` would wait the whole timeout for all n.
        """
        records = [_record(message) for message in self._messages(most, timeout_s, fill_s)]
        if self._gaps is not None and self._on_overtaken is not None:
            for record in records:
                self._gaps.see((record.topic, record.partition), record.offset)
            for place, count in self._gaps.lost().items():
                self._on_overtaken(place, count)
        return records

    def read_block(self, place: TopicPartition, most: int, timeout_s: float) -> Block:
        """As `read`, of a topic partition that alone is assigned; what retention took is not looked for."""
        messages = self._messages(most, timeout_s, 0.0)
        if messages and not (_place(messages[0]) == place == _place(messages[-1])):
            messages = [message for message in messages if _place(message) == place]  # of an earlier assignment
        return Block(messages)

    def _messages(self, most: int, timeout_s: float, fill_s: float) -> list[ck.Message]:
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._look_for_stall()
            return []
        self._taken.clear()
        found = self._consumer.consume(most - 1, fill_s) if most > 1 else []
        if _place(first) not in self._taken:  # else it is someone else's by now, as librdkafka knows of the others
            found.insert(0, first)
        messages = [message for message in found if message.error() is None]
        if len(messages) < len(found):
            self._tell(found)
        if messages:
            self._stalls.moves()
            if isinstance(self._errors, _Errors):
                self._errors.works()
        return messages

    def _tell(self, found: Sequence[ck.Message]) -> None:
        """What came in place of records: ends of topic partitions, and trouble."""
        for message in found:
            error = message.error()
            if error is None:
                continue
            if error.code() == ck.KafkaError._PARTITION_EOF and self._on_end is not None:
                self._on_end(_place(message), message.offset() or 0)
            elif error.code() not in _PASSING:
                log.warning("%s: Kafka: %s", self.name, error)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit the next offset to read of each topic partition; False when they are someone else's by now.

        Raises `TemporaryError` when Kafka cannot say.
        """
        if not offsets:
            return True
        try:
            self._consumer.commit(
                offsets=[ck.TopicPartition(t, p, o) for (t, p), o in offsets.items()], asynchronous=False
            )
        except ck.KafkaException as error:
            code = error.args[0].code()
            if code in _NOT_OURS:
                log.info("%s: topic partitions were given to another reader", self.name)
                return False
            raise TemporaryError(f"{self.name}: offsets could not be committed: {error.args[0].str()}") from error
        self.has_committed(offsets)
        return True

    def committed(self, places: Iterable[TopicPartition], timeout_s: float = 5.0) -> dict[TopicPartition, int]:
        """The group's next offset in those topic partitions that it ever committed; `TemporaryError`: not told."""
        try:
            found = self._consumer.committed([ck.TopicPartition(t, p) for t, p in places], timeout=timeout_s)
        except ck.KafkaException as error:
            raise TemporaryError(f"{self.name}: {error.args[0].str()}") from error
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these topic partitions from these offsets on; one that is no longer ours is left.

        Raises `RuntimeError` when one that is ours cannot be rewound: to go on would skip records.
        """
        for (topic, partition), offset in offsets.items():
            if self._gaps is not None:
                self._gaps.begin((topic, partition), offset)
            try:
                self._consumer.seek(ck.TopicPartition(topic, partition, offset))
            except ck.KafkaException as error:
                if (topic, partition) in self.assignment():
                    raise RuntimeError(f"{topic}[{partition}] cannot be rewound: {error.args[0].str()}") from error

    def partitions(self, topic: str) -> int:
        """How many topic partitions `topic` has; `PermanentError` if there is no such topic."""
        return partitions_of(self._consumer, topic)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching these topic partitions while staying their reader."""
        partitions = list(partitions)
        self._paused.update(partitions)
        self._consumer.pause([ck.TopicPartition(t, p) for t, p in partitions])

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these topic partitions again."""
        partitions = list(partitions)
        self._paused.difference_update(partitions)
        self._consumer.resume([ck.TopicPartition(t, p) for t, p in partitions])

    def group(self) -> object:
        """What a transaction has to know of this group, so that one that is no member any more cannot commit."""
        return self._consumer.consumer_group_metadata()

    def assignment(self) -> set[TopicPartition]:
        """The topic partitions that are ours now."""
        return {(p.topic, p.partition) for p in self._consumer.assignment()}

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read exactly these topic partitions from these offsets, without a group's say."""
        self._consumer.assign([ck.TopicPartition(t, p, o) for (t, p), o in offsets.items()])

    def assign_all(self, topic: str) -> None:
        """Read all partitions of `topic` from the beginning, without a group's say."""
        count = partitions_of(self._consumer, topic)
        self._consumer.assign([ck.TopicPartition(topic, p, ck.OFFSET_BEGINNING) for p in range(count)])

    def watermarks(self, partition: TopicPartition, timeout_s: float = 10.0) -> tuple[int, int]:
        """(first offset still there, offset after the last). `PermanentError`: no such topic partition."""
        try:
            return self._consumer.get_watermark_offsets(ck.TopicPartition(*partition), timeout=timeout_s)
        except ck.KafkaException as error:
            raise failure(error.args[0], f"{partition[0]}[{partition[1]}]") from error

    def topic_names(self, timeout_s: float = 5.0) -> set[str]:
        """All topics; `TemporaryError` when Kafka is away."""
        try:
            return set(self._consumer.list_topics(timeout=timeout_s).topics)
        except ck.KafkaException as error:
            raise TemporaryError(f"{self.name}: {error.args[0].str()}") from error

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


def partitions_of(client: ck.Consumer | ck.Producer | AdminClient, topic: str, timeout_s: float = 10.0) -> int:
    """How many topic partitions `topic` has; `PermanentError` if there is no such topic."""
    try:
        found = client.list_topics(topic, timeout=timeout_s).topics[topic]
    except ck.KafkaException as error:
        raise failure(error.args[0], topic) from error
    if found.error is not None or not found.partitions:
        raise PermanentError(f"Kafka has no topic {topic}")
    return len(found.partitions)


def dead_letter_headers(reason: str, room: str, origin: str, partition: int = -1, offset: int = -1) -> Headers:
    """What a dead letter says of itself: reason, room that gave up, topic it came from, its place there."""
    return [
        ("reason", reason.encode()),
        ("room", room.encode()),
        ("origin", origin.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(offset).encode()),
    ]


_PASSING = {
    ck.KafkaError._PARTITION_EOF,
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TRANSPORT,
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_RECORD_ERRORS = {
    ck.KafkaError.MSG_SIZE_TOO_LARGE,
    ck.KafkaError.INVALID_RECORD,
    ck.KafkaError.RECORD_LIST_TOO_LARGE,
}
_NOT_OURS = {
    ck.KafkaError.ILLEGAL_GENERATION,
    ck.KafkaError.REBALANCE_IN_PROGRESS,
    ck.KafkaError.UNKNOWN_MEMBER_ID,
    ck.KafkaError._ASSIGNMENT_LOST,
    ck.KafkaError._STATE,
}
_PERMANENT = _RECORD_ERRORS | {
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
    ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ck.KafkaError.TOPIC_EXCEPTION,
    ck.KafkaError.INVALID_PARTITIONS,
    ck.KafkaError.INVALID_REPLICATION_FACTOR,
    ck.KafkaError.POLICY_VIOLATION,
    ck.KafkaError._INVALID_ARG,
}


def failure(error: ck.KafkaError, what: str) -> PermanentError | TemporaryError:
    """What an error of Kafka's is to us; `RuntimeError` when the client is beyond repair."""
    if error.fatal():
        raise RuntimeError(f"Kafka, {what}: the client is beyond repair: {error.str()}")
    kind = PermanentError if error.code() in _PERMANENT else TemporaryError
    return kind(f"Kafka, {what}: {error.str()}")


def _as_bytes(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return str(value).encode()
