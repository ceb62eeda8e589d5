"""An uplink broker of its own, with the shipped `uplink.conf`: it forgets the last minute when it is killed.

Nothing between devices and gateways rests on it: no sample is lost, and an observer sees none twice.
"""

from pathlib import Path

import pytest
from rich.console import Console

from sluice.dev import demo as acts
from sluice.dev.processes import Processes
from sluice.dev.system import DEVICES, Brokers, start_system
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto, two_brokers

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(500)]

SAMPLES = 2000
RATE_HZ = 100.0


def test_killed_while_samples_flow_it_loses_none(tmp_path: Path) -> None:
    console = Console()
    passwords = {name: f"secret of {name}" for name in ("gateway", *DEVICES)}
    with (
        Mosquitto(users=passwords) as near,
        Mosquitto(users=passwords, shipped="uplink.conf") as far,
        Kafka() as kafka,
        Processes(tmp_path / "logs") as processes,
    ):
        # what was forgotten on its way is sent, or asked for, after these
        again = {"EDGE_RECEIPT_TIMEOUT_S": "3", "EDGE_SAMPLE_TTL_S": "8", "EDGE_ASK_AFTER_S": "2"}
        extra = two_brokers(far, DEVICES)
        extra |= {device: extra[device] | again for device in DEVICES}
        brokers = Brokers(near.host, near.port, kafka.bootstrap, passwords=passwords)
        system = start_system(processes, tmp_path, brokers, say=console.print, extra=extra)
        held = acts.Held()
        digest = acts.deploy(system, held, console, epochs=10)

        def fault(count: int) -> None:
            if count in (SAMPLES // 4, SAMPLES // 2, 3 * SAMPLES // 4):
                far.kill()
                far.start()

        sensor = acts.infer(system, held, console, samples=SAMPLES, rate_hz=RATE_HZ, tick=fault, patience_s=90)
        summary = acts.tell(system, held, digest, sensor)
        acts.show(summary, console)
        assert summary["sent"] == SAMPLES
        assert summary["lost_at_device"] == summary["lost_in_results"] == summary["duplicates"] == 0
        assert sensor.strangers == 0
        assert [process.name for process in processes.dead()] == []
