"""kill -9 in the middle of the traffic: nothing is lost, and nobody sees a sample answered twice."""

import pytest

from sluice.dev import demo as acts
from tests.e2e.conftest import Whole

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(500)]

SAMPLES = 5000
RATE_HZ = 250.0


def test_fog_gateway_and_mosquitto_are_killed_once_each(whole: Whole) -> None:
    """Counts at an observer of the device, which sees what a user sees, and in the results.

    What the restarted broker delivers again, the same to the byte and on a new connection, is counted apart and
    printed: QoS 1 between the broker and an observer is at least once. Within a connection nothing may come twice.
    """
    processes = whole.system.by_name

    def fault(count: int) -> None:
        if count == SAMPLES // 4:
            processes["stage-fog"].kill()
            processes["stage-fog"].start()
        elif count == SAMPLES // 2:
            processes["gateway"].kill()
            processes["gateway"].start()
        elif count == 3 * SAMPLES // 4:
            whole.mosquitto.kill()
            whole.mosquitto.start()

    sensor = acts.infer(
        whole.system, whole.held, whole.console, samples=SAMPLES, rate_hz=RATE_HZ, tick=fault, patience_s=60
    )
    summary = acts.tell(whole.system, whole.held, whole.digest, sensor)
    acts.show(summary, whole.console)
    counted = ("sent", "answered", "lost", "duplicates", "repeated_across_reconnect", "repeats_on_predictions_topic")
    print({name: summary[name] for name in counted})
    assert summary["sent"] == SAMPLES
    assert summary["lost_at_device"] == 0
    assert summary["lost_in_results"] == 0
    assert summary["duplicates"] == 0
    assert sensor.strangers == 0
