"""What the agent costs a sample has not grown unnoticed: a gate on instructions, which repeat where times do not."""

from pathlib import Path

import pytest

from bench.bench_instructions import count, judge
from tests.device.machine import Machine
from tests.integration.edge_support import MadeBundle

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]


def test_instructions_a_sample_are_within_the_gate(
    pi: Machine, floats: MadeBundle, tmp_path: Path, tell: list[str]
) -> None:
    for attempt in range(3):  # a busy machine adds turns of the main loop, and never takes any away
        (tmp_path / str(attempt)).mkdir()
        counted = count(pi, floats, tmp_path / str(attempt))
        wrong = judge(counted)
        if not wrong:
            break
    tell += [f"aarch64 instructions a sample, {what}: {min(n):.0f}" for what, n in counted.items()]
    assert not wrong, "\n".join(wrong)
