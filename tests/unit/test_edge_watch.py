"""Bounds of a run: left as soon as they cannot be kept, and not before."""

import random
from typing import Any

import pytest

from edge_agent.watch import PROVEN_SAMPLES, Watch
from sluice.wire.state import Bounds


def left_after(watch: Watch, samples: list[dict[str, Any]]) -> tuple[int, str] | None:
    """(samples, reason) when it was left."""
    for count, sample in enumerate(samples, 1):
        watch.note(**sample)
        reason = watch.left()
        if reason is not None:
            return count, reason
    return None


GOOD: dict[str, Any] = {"failed": False}
FAILED: dict[str, Any] = {"failed": True}
SLOW: dict[str, Any] = {"failed": False, "ms": 90.0}
QUICK: dict[str, Any] = {"failed": False, "ms": 1.0}
EXITED: dict[str, Any] = {"failed": False, "exited": True}


@pytest.mark.parametrize(
    ("bounds", "samples", "count", "reason"),
    [
        ({"errors_most": 0.1}, [FAILED] * 100, 11, "11 errors where at most a share of 0.1"),
        ({"errors_most": 0.1}, ([FAILED] + [GOOD] * 9) * 50, None, ""),
        ({"errors_most": 0}, [GOOD, FAILED], 2, "1 errors"),
        ({"exit_share_least": 0.5}, [GOOD] * 100, 51, "exit share 0 where at least 0.5"),
        ({"exit_share_least": 0.5}, [EXITED, GOOD] * 500, None, ""),
        ({"exit_share_most": 0.5}, [EXITED] * 100, 51, "exit share 1 where at most 0.5"),
        ({"latency_p95_most_ms": 2.0}, [SLOW] * 100, 6, "6 took over 2 ms where at most a share of 0.05"),
        ({"latency_p95_most_ms": 2.0}, [{"failed": False, "ms": 2.0}] * 500, None, ""),
        ({"latency_p95_most_ms": 2.0}, ([SLOW] * 5 + [QUICK] * 95) * 5, None, ""),
        ({"latency_p95_most_ms": 2.0}, [QUICK] * 500 + [SLOW] * 6, 506, "6 took over"),
    ],
)
def test_a_bound_is_left_when_the_window_cannot_keep_to_it(
    bounds: dict[str, float], samples: list[dict[str, Any]], count: int | None, reason: str
) -> None:
    found = left_after(Watch(Bounds.model_validate(bounds | {"samples": 100})), samples)
    if count is None:
        assert found is None
    else:
        assert found is not None and found[0] == count and reason in found[1]


def test_it_agrees_with_a_window_that_is_counted_anew_each_time() -> None:
    draw = random.Random(7)
    for _ in range(200):
        samples = [{"failed": draw.random() < 0.1, "exited": draw.random() < 0.5} for _ in range(60)]
        bounds = Bounds(samples=20, errors_most=0.2, exit_share_least=0.3, exit_share_most=0.7)
        expected = None
        for end in range(1, len(samples) + 1):
            window = samples[max(0, end - 20) : end]
            failed, exited = sum(s["failed"] for s in window), sum(s["exited"] for s in window)
            if failed > 4 or len(window) - exited > 14 or exited > 14:
                expected = end
                break
        found = left_after(Watch(bounds), samples)
        assert (found and found[0]) == expected


def test_a_fault_long_ago_is_forgotten() -> None:
    watch = Watch(Bounds(samples=10, errors_most=0.1))
    assert left_after(watch, [FAILED, *[GOOD] * 9, FAILED, *[GOOD] * 9, FAILED]) is None
    assert watch.full


def test_it_is_proven_by_good_samples_alone() -> None:
    watch = Watch(Bounds(errors_most=1))
    left_after(watch, [FAILED] * 50 + [GOOD] * (PROVEN_SAMPLES - 1))
    assert not watch.proven
    watch.note(failed=False)
    assert watch.proven
