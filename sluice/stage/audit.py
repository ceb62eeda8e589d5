"""Audits: a share of what exits answer goes up all the same, so that someone can know whether the exits still hold.

The answer goes its usual way. Beside it goes an offload that names the sample, the exit and its answer; the tiers above
run it through to the final exit, and the results keep what that says beside the sample. The tier runs its segments once
more for it, without exits: little work at a small share. Each tier audits the exits of its own.
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
    seq_of: Callable[[Prediction], int],
    draw: Callable[[], float] = random.random,
) -> list[tuple[int, Outcome]]:
    """The audits of what `step` made of `works`: of each that an early exit answered, with probability `share`.

    Each with the place of its sample in `works`. None where the model ends on this tier: nobody above could say
    anything else. `seq_of`: the seq of the audit of an answer, a new one where receipts are waited for; `draw`: a
    number from 0 to 1.
    """
    placement = stage.route(works[0].offload.operating_point).point.placement
    if not share or placement[-1] == stage.tier:
        return []
    drawn: list[tuple[int, Work]] = []
    for i, (work, outcome) in enumerate(zip(works, outcomes, strict=True)):
        if isinstance(outcome, Prediction) and outcome.reason == "exit" and draw() < share:
            audit = Audit(outcome.seq, outcome.exit, outcome.label)
            drawn.append((i, Work(replace(work.offload, seq=seq_of(outcome), audit=audit), work.tensors)))
    made = step(stage, [work for _, work in drawn]) if drawn else []
    return [(i, outcome) for (i, _), outcome in zip(drawn, made, strict=True)]


def made_here(outcome: Outcome) -> bool:
    """Whether a stage has just made it to check one of its own answers: what it was given has a seq of its own."""
    return outcome.audit is not None and outcome.audit.of == outcome.seq
