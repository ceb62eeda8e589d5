"""Late labels on `sluice.labels`: what a sample really was, told by whoever found out, minutes or months later.

A label names its sample as the results do (device, epoch, seq), or by the user's own id of the reading (device and
`source_id`), which is what a labeller mostly has. It is JSON like all state (`state.py`), keyed by device; the results
writer keeps it (`cloud.projection`), whether the prediction is there already or comes later.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt, StringConstraints, model_validator

from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_ID
from sluice.wire.names import Name
from sluice.wire.state import Epoch, State

LABEL_NAME_MOST = 200
AHEAD_MOST_US = 24 * 3600 * 1_000_000
"""A label that was told later than a day after Kafka got it was told by a wrong clock."""

_NO_ZERO = r"^[^\x00]+$"
ClassNumber = Annotated[StrictInt, Field(ge=0, lt=2**31)]
ClassName = Annotated[str, StringConstraints(strict=True, max_length=LABEL_NAME_MOST, pattern=_NO_ZERO)]


class Label(State):
    """The class of one sample: its number, or its name as the bundle that answered calls it.

    Of two labels of a sample the one that was told later counts; of two told at the same time, the later on the topic.
    """

    device_id: Name
    source_id: Annotated[str, StringConstraints(max_length=MAX_ID, pattern=_NO_ZERO)] | None = None
    """The user's own id of the reading. It labels the samples of all models that the reading fed, or of `model`."""
    model: Name | None = None
    """With `source_id`: of this model's samples only. Goes before a label without it."""
    epoch: Epoch | None = None
    seq: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """With `epoch`, instead of `source_id`: the sample. Goes before a label by `source_id`."""
    label: ClassNumber | ClassName
    told_at: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """UTC microseconds; None: when Kafka got it."""

    @model_validator(mode="after")
    def _names_one_sample(self) -> Label:
        if (self.epoch is None) != (self.seq is None):
            raise ValueError("epoch and seq belong together")
        if (self.source_id is None) == (self.seq is None):
            raise ValueError("name the sample either by source_id or by epoch and seq")
        if self.model is not None and self.seq is not None:
            raise ValueError("epoch and seq name one sample, so they need no model")
        return self


def time_of(label: Label, at: int) -> int:
    """When `label` was told (UTC µs), if Kafka got it at `at`; `PermanentError` if that was by a wrong clock."""
    if label.told_at is None:
        return at
    if label.told_at > at + AHEAD_MOST_US:
        hours = (label.told_at - at) // 3_600_000_000
        raise PermanentError(f"the label was told {hours} hours after it came here: by a wrong clock")
    return label.told_at
