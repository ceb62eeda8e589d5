"""Audits: the share that was asked for, of what early exits answered, and of nothing else."""

import random

import numpy as np
import pytest

from sluice.stage.audit import audits, made_here
from sluice.stage.step import step
from sluice.wire.messages import Audit, Offload, Prediction
from tests.unit.test_stage_step import SURE, UNSURE, onward, stage, work


def test_an_audited_sample_goes_on_as_one_that_no_exit_was_sure_of() -> None:
    """The tensors are those that cross; the seq is new; exit and answer are named."""
    edge = stage("edge")
    works = [work(SURE, UNSURE, 3.0, 4.0, seq=7, source_id="reading 7"), work(UNSURE, SURE, seq=8)]
    outcomes = step(edge, works)
    ((place, audit),) = audits(edge, works, outcomes, 1.0, lambda _: 9)
    assert place == 0 and not made_here(audit)
    assert isinstance(audit, Offload) and isinstance(outcomes[0], Prediction)
    assert audit.audit == Audit(of=7, exit=0, label=outcomes[0].label)
    assert (audit.seq, audit.source_id, audit.tier, audit.next_segment) == (9, "reading 7", "fog", 1)
    assert onward(audit).tensors["h0"].tolist() == [UNSURE, 3.0, 4.0]
    assert [belief.exit for belief in audit.beliefs] == [0]


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_is_of_what_exits_answered(share: float) -> None:
    edge, draw = stage("edge"), random.Random(1).random
    works = [work(SURE if seq % 2 else UNSURE, seq=seq) for seq in range(4000)]
    found = audits(edge, works, step(edge, works), share, lambda answer: answer.seq, draw)
    drawn = [audit for _, audit in found]
    assert all(made_here(audit) and works[place].offload.seq == audit.seq for place, audit in found)
    assert all(one.audit is not None and one.audit.of % 2 for one in drawn)
    assert len(drawn) == pytest.approx(2000 * share, abs=4 * np.sqrt(2000 * share * (1 - share)))
    assert len({one.audit.of for one in drawn if one.audit}) == len(drawn)


def test_where_the_whole_model_runs_nobody_could_say_anything_else() -> None:
    edge = stage("edge")
    works = [work(SURE, operating_point="all-edge")]
    assert audits(edge, works, step(edge, works), 1.0, lambda _: 2) == []
