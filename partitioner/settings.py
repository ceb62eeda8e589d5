"""What may be asked of a partitioning: how to cut, what to promise, and for which device and link."""

from __future__ import annotations

import math
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from partitioner.planning.link import parse_link
from sluice.stage.policy import MEASURES
from sluice.wire.codec import CODECS
from sluice.wire.manifest import Quantize
from sluice.wire.names import Tier
from sluice.wire.profile import Profile

Objective = Literal["latency", "bytes", "device-compute"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
TIERS: tuple[Tier, ...] = get_args(Tier)
AUTO, NONE = "auto", "none"


class PartitionSettings(BaseModel):
    """How to cut and what to promise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Literal["auto", "classification", "tensors"] = "auto"
    """What the model does; `auto`: classification if all outputs are (batch, classes), softmax or logits."""
    exits: str | tuple[str, ...] = AUTO
    """`auto`: the model's own early exits or, if it has none, new ones at chosen places; `none`; or names: of the
    model's own early exits, of split points where one is to be attached and trained, `input` for one at the input."""
    head: str = AUTO
    """Design of attached exits."""
    train_exits: Literal["frozen", "joint"] = "frozen"
    """How attached exits are trained: on the model as it is, or with all of it."""
    split: str | tuple[str, ...] = AUTO
    """Where a tier may end: `auto` for any split point, or the names of up to two."""
    placement: tuple[Tier, ...] | None = None
    """Tier of each segment, cut at the exits and the split points that are named; None: planned."""
    quantize: Quantize = "float32"
    """Weights and arithmetic of the segments."""
    codec: str = AUTO
    """How tensors travel between tiers; `auto`: planned."""
    measure: str = "max_prob"
    """Confidence measure of the exits."""
    objective: Objective = "latency"
    """What the plan makes as small as it can."""
    max_accuracy_loss: float = Field(default=0.01, ge=1e-6, lt=1)
    """ε: largest share of samples that may be harmed (see `criterion`)."""
    confidence: float = Field(default=0.95, gt=0, le=1 - 1e-9)
    """1 − δ: how sure that must be."""
    criterion: Literal["agreement", "accuracy"] = "agreement"
    """What harm is: another answer than the full model's; or a wrong one where the full model's is right."""
    promise: Literal["groups", "samples", "auto"] = AUTO
    """With groups, whom it is for: new groups, new samples, or new groups if there are enough to say so."""
    thresholds: tuple[float, ...] | None = None
    """Fixed thresholds, one for each early exit: nothing is promised then."""
    uplink: str = "1Mbit/s,50ms"
    """Rate and delay (one way) from the device up."""
    backhaul: str = "100Mbit/s,10ms"
    """Rate and delay (one way) from fog to cloud."""
    results_sent: bool = True
    """Whether answers given on the device go up as messages; counted in bytes."""
    device: Profile | None = None
    """What `sluice profile` measured on the device; None: it is as fast as this machine."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Splits the samples, and trains attached exits."""

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, codec: str) -> str:
        if codec != AUTO and codec not in CODECS:
            raise ValueError(f"codec {codec[:40]!r} is unknown; known: {', '.join((AUTO, *CODECS))}")
        return codec

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, measure: str) -> str:
        if measure not in MEASURES:
            raise ValueError(f"measure {measure[:40]!r} is unknown; known: {', '.join(MEASURES)}")
        return measure

    @field_validator("thresholds")
    @classmethod
    def _possible(cls, thresholds: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if thresholds is not None and not all(math.isfinite(one) and one >= 0 for one in thresholds):
            raise ValueError("thresholds are numbers from 0 on")
        return thresholds

    @field_validator("uplink", "backhaul")
    @classmethod
    def _a_link(cls, link: str) -> str:
        parse_link(link)
        return link

    @field_validator("placement")
    @classmethod
    def _upwards(cls, placement: tuple[Tier, ...] | None) -> tuple[Tier, ...] | None:
        ranks = [TIERS.index(tier) for tier in placement or ()]
        if ranks != sorted(ranks):
            raise ValueError(f"placement {', '.join(placement or ())} goes down a tier")
        return placement

    @model_validator(mode="after")
    def _at_most_two_cuts(self) -> PartitionSettings:
        if self.placement is None and not isinstance(self.split, str) and len(self.split) > 2:
            raise ValueError(f"split names {len(self.split)} points, but there are three tiers: two at most")
        return self
