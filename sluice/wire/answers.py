"""Late answers: what a device asks the control plane when an answer did not come, and what it is given.

An answer on its way down has no receipt; a broker that is killed may forget it. The results have it all the same.
Predictions travel as on Kafka (`messages.encode`), each as base64, so that one of a newer schema spoils no other.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sluice.wire import messages
from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_MESSAGE_BYTES, Prediction
from sluice.wire.state import Epoch

ASK_MOST = 500
"""Samples in one question."""
Seq = Annotated[int, Field(ge=0, lt=2**63)]


class Question(BaseModel):
    """Samples of one device whose final predictions are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Epoch
    seqs: list[Seq] = Field(min_length=1, max_length=ASK_MOST)


class Answers(BaseModel):
    """The final predictions that are known of them; those that are missing here may be known later."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    answers: list[str] = Field(max_length=ASK_MOST)


def pack(predictions: Iterable[Prediction]) -> Answers:
    """As many of them as fit into a message of `MAX_MESSAGE_BYTES`, at least one if there is any."""
    packed: list[str] = []
    size = 0
    for prediction in predictions:
        payload = messages.encode(prediction)
        size += len(payload)
        if packed and size > MAX_MESSAGE_BYTES:
            break
        packed.append(base64.b64encode(payload).decode())
    return Answers(answers=packed)


def unpack(text: str) -> Prediction:
    """One of the answers. `PermanentError`: it is no prediction; `UnknownSchemaError`: it may be of a newer schema."""
    try:
        payload = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PermanentError("an answer is not base64") from error
    outcome = messages.decode(payload)
    if not isinstance(outcome, Prediction):
        raise PermanentError("an offload is no answer")
    return outcome
