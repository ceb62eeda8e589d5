"""Audits: a share of what exits answer goes up all the same, so that someone can know whether the exits still hold.

The answer goes its usual way. Beside it, under a seq of its own (which only its receipt asks for), goes an offload that
names the sample, the exit and its answer; the tiers above run it through to the final exit, and the results keep what
that says beside the sample. The device runs its segments once more for it, without exits: little work at a small share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from sluice.stage.step import Stage, Work, step
from sluice.wire.messages import Audit, Outcome, Prediction


def audits(
    stage: Stage,
    works: Sequence[Work],
    outcomes: Sequence[Outcome],
    share: float,
    new_seq: Callable[[], int],
    draw: Callable[[], float] = random.random,
) -> list[Outcome]:
    """The audits of what `step` made of `works`: of each that an early exit answered, with probability `share`.

    None where the whole model runs on this tier: nobody above could say anything else. `draw`: a number from 0 to 1.
    """
    placement = stage.route(works[0].offload.operating_point).point.placement
    if not share or placement[-1] == stage.tier:
        return []
    drawn = [
        Work(replace(work.offload, seq=new_seq(), audit=Audit(outcome.seq, outcome.exit, outcome.label)), work.tensors)
        for work, outcome in zip(works, outcomes, strict=True)
        if isinstance(outcome, Prediction) and outcome.reason == "exit" and draw() < share
    ]
    return step(stage, drawn) if drawn else []
