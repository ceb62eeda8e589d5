"""Dead letters on `sluice.dead-letter`: found, told, and where each one goes when it is sent again.

A letter keeps the record that could not be worked on, byte for byte, with its reason and origin in headers. Kafka keeps
letters as long as the topic's retention says; sending one again removes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record, TopicPartition
from sluice.wire import messages, names
from sluice.wire.errors import PermanentError, SluiceError, TemporaryError
from sluice.wire.messages import Offload

QUIET_S = 10.0
"""Longest wait for the next letter of those that are there."""
CUT = "too large to keep whole"
"""What the reason of a letter says that holds only the beginning of its record."""
SHOWN_BYTES = 256
"""Of content that is neither a message nor text."""
REPLAYED = "replayed-from"
"""Header of a record that was sent again: the letter's place."""
WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be worked on (`key`, `value`), and what is known of it."""

    place: str
    """`partition:offset` on the topic of dead letters."""
    at: datetime
    reason: str
    room: str
    origin: str
    """The topic that it came from: Kafka's, or MQTT's for what a gateway or a device refused."""
    origin_place: tuple[int, int] | None
    """Topic partition and offset there, if it was Kafka's."""
    key: bytes | None
    value: bytes

    def summary(self) -> dict[str, Any]:
        """All but the content, for a table or JSON."""
        origin = self.origin if self.origin_place is None else "{}:{}:{}".format(self.origin, *self.origin_place)
        return {
            "place": self.place,
            "at": self.at.isoformat(timespec="seconds"),
            "room": self.room,
            "reason": self.reason,
            "origin": origin,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "bytes": len(self.value),
        }


def find(
    cluster: KafkaCluster, last: int | None = None, wanted: Callable[[Letter], bool] = lambda _: True
) -> list[Letter]:
    """The letters that are there now and `wanted`, oldest first; with `last` of each topic partition's newest so many.

    Raises `TemporaryError` when Kafka does not answer, `PermanentError` when it has no such topic.
    """
    with _reading(cluster) as (reader, ended):
        spans = {}
        for partition in range(reader.partitions(names.DEAD_LETTER)):
            first, end = reader.watermarks((names.DEAD_LETTER, partition))
            spans[names.DEAD_LETTER, partition] = (first if last is None else max(first, end - last), end)
        found = [letter_of(record) for record in _read(reader, spans, ended)]
    return sorted((one for one in found if wanted(one)), key=lambda one: one.at)


def get(cluster: KafkaCluster, place: str) -> Letter:
    """The letter at `place` (`partition:offset`); `PermanentError` if there is none."""
    try:
        partition, offset = (int(part) for part in place.split(":"))
    except ValueError:
        raise PermanentError(f"{place[:40]!r} is no place of a letter: write partition:offset") from None
    with _reading(cluster) as (reader, ended):
        where = (names.DEAD_LETTER, partition)
        first, end = reader.watermarks(where)
        if not first <= offset < end:
            raise PermanentError(f"there is no letter {place}: topic partition {partition} has {first} to {end - 1}")
        for record in _read(reader, {where: (offset, offset + 1)}, ended):
            return letter_of(record)
    raise PermanentError(f"there is no letter {place}: only the mark of a transaction")


@contextmanager
def _reading(cluster: KafkaCluster) -> Iterator[tuple[KafkaReader, set[TopicPartition]]]:
    """A reader, and the topic partitions of which it has seen the end."""
    ended: set[TopicPartition] = set()
    reader = KafkaReader("letters", cluster, "sluice-letters", on_end=lambda place, _offset: ended.add(place))
    try:
        yield reader, ended
    finally:
        reader.close()


def _read(
    reader: KafkaReader, spans: dict[TopicPartition, tuple[int, int]], ended: set[TopicPartition]
) -> Iterator[Record]:
    """All records from the first to before the second offset of each span."""
    left = {place for place, (begin, end) in spans.items() if begin < end}
    reader.assign({place: spans[place][0] for place in left})
    quiet_since = time.monotonic()
    while left := left - ended:
        for record in reader.read(500, 0.5):
            quiet_since = time.monotonic()
            place = record.topic, record.partition
            if record.offset < spans[place][1]:
                yield record
            if record.offset >= spans[place][1] - 1:
                left.discard(place)
        if time.monotonic() > quiet_since + QUIET_S:
            raise TemporaryError(f"Kafka tells nothing more of {names.DEAD_LETTER}: try again")


def letter_of(record: Record) -> Letter:
    """What the headers of a record on the topic of dead letters say."""
    headers = {name: value for name, value in record.headers if value is not None}

    def text(name: str) -> str:
        value = headers.get(name, b"")
        return value if isinstance(value, str) else value.decode(errors="replace")

    partition, offset = text("partition"), text("offset")
    known = partition.isdigit() and offset.isdigit()
    return Letter(
        place=f"{record.partition}:{record.offset}",
        at=datetime.fromtimestamp(record.timestamp_ms / 1000, UTC),
        reason=text("reason"),
        room=text("room"),
        origin=text("origin"),
        origin_place=(int(partition), int(offset)) if known else None,
        key=record.key,
        value=record.value,
    )


def content(letter: Letter) -> Any:
    """What a letter holds, for people: the messages, with their tensors as shapes; JSON; text; or its first bytes."""
    try:
        return [_told(one) for one in messages.decode_all(letter.value)]
    except SluiceError:
        pass  # no message: that is why it is here, as often as not
    try:
        text = letter.value.decode()
    except UnicodeDecodeError:
        more = "…" if len(letter.value) > SHOWN_BYTES else ""
        return letter.value[:SHOWN_BYTES].hex(" ") + more
    try:
        return json.loads(text)
    except ValueError:
        return text


def _told(outcome: messages.Outcome) -> dict[str, Any]:
    told = {name: getattr(outcome, name) for name in outcome.__slots__}
    if isinstance(outcome, Offload):
        told["tensors"] = [f"{t.name} {t.dtype}{list(t.shape)} {t.codec}, {len(t.data)} bytes" for t in outcome.tensors]
        told["beliefs"] = [f"exit {b.exit}: label {b.label}, {b.confidence:.3f}" for b in outcome.beliefs]
    else:
        told["outputs"] = f"{len(outcome.outputs) // 4} numbers"
    return told


def topic_for(letter: Letter) -> str:
    """The Kafka topic that a letter goes to when it is sent again.

    Raises `PermanentError` with the way out for what cannot: a device's reading, desired state, half a record.
    """
    if CUT in letter.reason:
        raise PermanentError(f"letter {letter.place} holds only the beginning of its record")
    if letter.origin == names.DESIRED:
        raise PermanentError(f"letter {letter.place} is desired state, which the control plane makes: roll out again")
    if letter.origin_place is not None:
        return letter.origin
    if letter.room == "edge-agent":
        raise PermanentError(
            f"letter {letter.place} is a reading that its device refused: publish it to {letter.origin} at its sensor "
            "broker again"
        )
    outcome = _outcome(letter)
    return names.offload_topic(outcome.tier, outcome.model) if isinstance(outcome, Offload) else names.PREDICTIONS


def _outcome(letter: Letter) -> messages.Outcome:
    """What a gateway refused, if it may be passed on after all: by the checks that the gateway makes."""
    try:
        outcome = messages.decode(letter.value)
    except SluiceError as error:
        raise PermanentError(f"letter {letter.place} is no message that a gateway could pass on: {error}") from error
    device, kind = ["", *letter.origin.split("/")][-2:]
    if outcome.device_id != device or isinstance(outcome, Offload) != (kind == "offload"):
        raise PermanentError(f"letter {letter.place} came as {kind!r} of {device!r} and is not: nobody may pass it on")
    if isinstance(outcome, Offload) and outcome.tier == "edge":
        raise PermanentError(f"letter {letter.place} is an offload for the edge, which nobody above works on")
    return outcome


def replay(cluster: KafkaCluster, letters: list[Letter]) -> None:
    """Send `letters` to where they were going, each with the same key and content; waits until Kafka has them all.

    Raises `PermanentError` before any is sent if one of them cannot be, or when Kafka refuses one.
    """
    targets = [topic_for(letter) for letter in letters]
    writer = KafkaWriter("replay", cluster)
    failures: list[Exception] = []

    def note(letter: Letter, topic: str) -> Callable[[Exception | None], None]:
        def delivered(error: Exception | None) -> None:
            if error is not None:
                failures.append(PermanentError(f"letter {letter.place} to {topic}: {error}"))

        return delivered

    for letter, topic in zip(letters, targets, strict=True):
        headers: list[tuple[str, str | bytes | None]] = [(REPLAYED, letter.place)]
        key = letter.key if letter.origin_place is not None else _outcome(letter).device_id
        writer.write(topic, letter.value, key=key, headers=headers, on_delivery=note(letter, topic))
    left = writer.flush(WAIT_S)
    if failures:
        raise failures[0]
    if left:
        raise TemporaryError(f"Kafka has not confirmed {left} of {len(letters)} letters within {WAIT_S:g} s")
