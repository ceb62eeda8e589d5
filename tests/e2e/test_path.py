"""The path of a sample on real Mosquitto and real Kafka, from training stream to answer."""

import pytest

from sluice.dev import demo as acts
from tests.e2e.conftest import Whole

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(400)]


def test_every_sample_is_answered_once_at_the_device_and_in_the_results(whole: Whole) -> None:
    sensor = acts.infer(whole.system, whole.held, whole.console)
    summary = acts.tell(whole.system, whole.held, whole.digest, sensor)
    acts.show(summary, whole.console)
    assert acts.went_well(summary), summary
    assert sum(summary["exits"].values()) == summary["sent"] == acts.HELD_OUT
    assert summary["exits"]["edge"] > 0
    assert summary["exits"]["fog"] + summary["exits"]["cloud"] > 0
    assert summary["repeats_on_predictions_topic"] == 0
    assert summary["certificate"] is not None


def test_another_operating_point_needs_no_download(whole: Whole) -> None:
    """Placement, codec and thresholds are data: the same bundle, every sample finished by the cloud."""
    with whole.system.client() as client:
        acts.roll_out(client, whole.digest, whole.system, whole.console, "no-exit")
        try:
            sensor = acts.infer(whole.system, whole.held, whole.console, samples=60)
            assert {t.finals[0].tier for t in sensor.told} == {"cloud"}
        finally:
            acts.roll_out(client, whole.digest, whole.system, whole.console)
