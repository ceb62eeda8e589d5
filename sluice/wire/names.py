"""Names of devices, models and sensors, and the names of topics made from them.

One pattern for all names, so that a name can stand in an MQTT topic, a Kafka topic, a URL and a file name without
quoting, and can hold no wildcard and no path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints

from sluice.wire.errors import PermanentError

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
TopicPrefix = Annotated[str, StringConstraints(pattern=r"^[^$+#/\x00]([^+#\x00]*[^+#/\x00])?$", max_length=200)]
"""What all MQTT topics begin with: one level or more, without wildcards."""
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What SQL, SQLite and Avro take; JSON itself knows no bound."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Tier = Literal["edge", "fog", "cloud"]
TIERS: tuple[Tier, ...] = get_args(Tier)

NAME_MOST = 63
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

PREDICTIONS = "sluice.predictions"
DESIRED = "sluice.desired"
DEVICES = "sluice.devices"
CONTROL = "sluice.control"
LABELS = "sluice.labels"
DEAD_LETTER = "sluice.dead-letter"
COMPACTED = (DESIRED, DEVICES)
"""Kafka topics that keep the newest record of each key."""

OUTCOME_KINDS = ("offload", "prediction")
STATE_KINDS = ("reported", "status")
LETTER_KIND = "dead-letter"
"""MQTT topic kinds that go up; what goes down to a device is `receipt`, `inbox` and `desired`."""


def is_name(value: str) -> bool:
    """Whether `value` may name a device, model or sensor."""
    return len(value) <= NAME_MOST and _fits(value)


@lru_cache(maxsize=4096)
def _fits(value: str) -> bool:  # only ever of short texts: what is remembered here comes from anyone
    return _NAME.fullmatch(value) is not None


def check_name(kind: str, value: str) -> str:
    """Return `value` if it may name a `kind`; raise `PermanentError` otherwise."""
    if not is_name(value):
        raise PermanentError(f"{kind} name {value[:80]!r}: use 1 to 63 of a-z, 0-9 and '-', not '-' first")
    return value


def offload_topic(tier: str, model: str) -> str:
    """The Kafka topic of the offloads that wait for `tier` to finish samples of `model`."""
    return f"sluice.offload.{tier}.{model}"


def offload_prefix(tier: str) -> str:
    """What the names of all offload topics of `tier` begin with."""
    return f"sluice.offload.{tier}."


@dataclass(frozen=True, slots=True)
class MqttTopics:
    """The MQTT topics under one prefix: `{prefix}/{device}/{kind}`."""

    prefix: str = "sluice"

    def of(self, device: str, kind: str) -> str:
        """The topic of one device.

        Up: offload, prediction, reported, status, dead-letter. Down: receipt, desired, inbox (answers from above, for
        the agent alone). On the sensor broker: answer (what the device tells, each sample once), sensor/….
        """
        return f"{self.prefix}/{device}/{kind}"

    def every(self, kind: str) -> str:
        """The filter that matches `kind` of every device."""
        return f"{self.prefix}/+/{kind}"

    def split(self, topic: str) -> tuple[str, str]:
        """(device, kind) of a topic under this prefix; `PermanentError` if it is not one of ours."""
        rest = topic.removeprefix(self.prefix + "/")
        device, slash, kind = rest.partition("/")
        if rest == topic or not slash or not is_name(device):
            raise PermanentError(f"topic {topic[:120]!r} is not {self.prefix}/<device>/<kind>")
        return device, kind
