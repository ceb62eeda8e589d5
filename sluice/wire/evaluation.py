"""What to evaluate on: what the REST service, the client and the job all mean by an evaluation's settings."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from sluice.wire.training import Settings

Text = Annotated[str, StringConstraints(min_length=1, max_length=300)]


class LiveEvaluation(Settings):
    """A consumer group on topics as they grow, whose records are as the stream's announcement says."""

    group: str | None = Field(default=None, min_length=1, max_length=200)
    """The consumer group that shows how far it is, and where it begins if the group was there before; one of its own by
    default."""
    topics: list[Text] = Field(default=[], max_length=100)
    """What is read; the topics of the stream's slices by default."""
    timeout_s: float | None = Field(default=30.0, gt=0, le=1e9)
    """It is done when nothing came for so long; null: never."""
    records: int | None = Field(default=None, ge=1, lt=2**63)
    """It is done after so many records, or a batch later."""
    from_beginning: bool = True
    """Where a group begins that was never there: with the first record that Kafka has, or with the next that comes."""


class EvaluationSettings(Settings):
    """What to evaluate on: all slices of the stream, some, or a live group."""

    slices: list[Text] = Field(default=[], max_length=10_000)
    """Only these, `topic:partition:offset:length`; records that are named twice count once."""
    live: LiveEvaluation | None = None
    """A consumer group instead of slices; not by default."""
    bad_most: int = Field(default=0, ge=0, le=2**31 - 1)
    """Records that cannot be read and are left out, each to become a dead letter; one more fails the evaluation."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.slices and self.live is not None:
            raise ValueError("give either slices or live")
        return self
