"""The control plane's view of Kafka: topics that it makes, and what retention left of a data stream."""

from __future__ import annotations

from typing import Literal

from cloud.settings import CloudSettings
from sluice.doors.kafka import KafkaReader
from sluice.doors.kafka_topics import ensure_topics
from sluice.wire import names
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.slices import Slice, parse_slice

FIXED = (names.PREDICTIONS, names.DESIRED, names.DEVICES, names.CONTROL, names.LABELS, names.DEAD_LETTER)
Left = Literal["whole", "partly expired", "gone"]


def ensure_fixed_topics(settings: CloudSettings, more: tuple[str, ...] = ()) -> None:
    """Make the topics that every installation has, and `more`. Raises `TemporaryError` when Kafka is away."""
    ensure_topics(
        settings.kafka,
        dict.fromkeys((*FIXED, *more), settings.topic_partitions),
        compacted=names.COMPACTED,
        replication=settings.replication,
        timeout_s=settings.kafka_timeout_s,
    )


def offload_topics(manifest: Manifest) -> tuple[str, ...]:
    """The offload topics of all tiers that some operating point of the bundle may send tensors to."""
    tiers = {tier for point in manifest.operating_points for tier in point.placement if tier != "edge"}
    return tuple(names.offload_topic(tier, manifest.model) for tier in sorted(tiers))


def what_is_left(settings: CloudSettings, slices: list[str]) -> list[Left]:
    """How much of each slice Kafka still holds. Raises `TemporaryError` when Kafka is away."""
    reader = KafkaReader("cloud-streams", settings.kafka, "sluice-cloud-streams")
    try:
        return [_left(reader, parse_slice(text), settings.kafka_timeout_s) for text in slices]
    finally:
        reader.close()


def _left(reader: KafkaReader, part: Slice, timeout_s: float) -> Left:
    try:
        first, end = reader.watermarks((part.topic, part.partition), timeout_s)
    except PermanentError:
        return "gone"  # the topic itself is not there any more
    if first <= part.offset and part.end <= end:
        return "whole"
    return "partly expired" if first < part.end and part.offset < end else "gone"
