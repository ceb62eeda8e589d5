"""The short form of `make chaos`: each of a few faults once, in an order that the seed draws."""

import pytest

from tests.e2e.chaos.faults import FEW, KINDS, draw
from tests.e2e.chaos.run import Options, run

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(400)]


def test_a_few_faults_lose_nothing_repeat_nothing_and_mix_nothing() -> None:
    said: list[str] = []
    options = Options(seed=4, faults=len(FEW), samples=1500, delivery="exactly-once", rate_hz=40.0, only=FEW)
    verdict = run(options, said.append)
    print("\n".join(said))
    assert not verdict.broken, verdict.lines()


def test_a_seed_draws_the_same_plan_again() -> None:
    plan = draw(7, 60, 50_000)
    assert plan == draw(7, 60, 50_000)
    assert plan != draw(8, 60, 50_000)
    assert {planned.kind for planned in plan} == set(KINDS)
    assert [planned.at for planned in plan] == sorted(planned.at for planned in plan)
