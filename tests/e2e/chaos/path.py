"""The system under test: all rooms as real processes on two real Mosquittos and a real Kafka, with links between.

Device a has one broker for its sensor and its uplink, the shared one; device b has a broker of its own for its sensor.
Every room reaches the brokers over a link that can be cut, but for device b and its own. Whatever ends by itself is
noted and started again, as a supervisor would.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sluice.dev.processes import Process, Processes
from sluice.dev.system import DEVICES, Brokers, System, start_system
from sluice.doors.mqtt import MqttBroker
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.process import HOST, Server, free_port
from tests.e2e.chaos.clock import Clocks, NoClockError
from tests.e2e.chaos.links import Links

ROOMS = ("cloud", "results-writer", "gateway", "stage-fog", "stage-cloud", *DEVICES)
BROKERS = ("uplink", "sensor-b", "kafka")
LINKS = ("device-a~uplink", "device-b~uplink", "gateway~uplink", "gateway~kafka", "stages~kafka", "cloud~kafka")
DISKS = (*DEVICES, "stage-fog", "stage-cloud")
DISK_BYTES = 32_000_000
SENSOR_BROKER = {"device-a": "uplink", "device-b": "sensor-b"}
"""Which broker the readings of a device go to."""
AGAIN_S = 1.0
"""A supervisor waits this long before it starts what ended by itself."""
_DEVICE = {
    "EDGE_REPORT_INTERVAL_S": "3",
    "EDGE_SAMPLE_TTL_S": "30",
    "EDGE_ASK_AFTER_S": "5",
    "EDGE_AUDIT_SHARE": "0.05",
}
"""Shorter times than the defaults, so that more of them end while it is run."""


@dataclass(frozen=True)
class Crash:
    """A process that ended by itself: when (monotonic seconds), its exit code and last words."""

    name: str
    at: float
    code: int | None
    words: str


class WholePath:
    """Brokers, links, disks, clocks and processes, by name. As a context manager it starts and ends all of them."""

    system: System

    def __init__(self, folder: Path, delivery: str) -> None:
        self.folder = folder
        self.delivery = delivery
        self.left_out: dict[str, str] = {}
        """Kinds of faults that this machine cannot have, and why."""
        self.died: dict[str, list[float]] = {}
        """When (monotonic seconds) each part was killed or ended by itself."""
        self.cut: dict[str, list[float]] = {}
        """When each link was cut."""
        self.crashes: list[Crash] = []
        self.disks: dict[str, Path] = {}
        self.clocks: Clocks | None = None
        self.rooms: dict[str, Process] = {}
        self._wanted: set[str] = set()
        """Rooms that are to run now."""
        self._again: dict[str, float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        enter, folder = self._stack.enter_context, self.folder / "brokers"
        kafka = self.kafka = Kafka(folder / "kafka")
        mosquittos = {name: Mosquitto(folder / name) for name in ("uplink", "sensor-b")}
        self.servers: dict[str, Server] = {**mosquittos, "kafka": kafka}
        self.links = enter(Links())
        listeners = {"PLAINTEXT": (kafka.port, kafka.port)}
        for name in LINKS:
            room, _, broker = name.partition("~")
            port = free_port() if broker == "kafka" else mosquittos[broker].port
            link = self.links.add(name, port)
            if broker == "kafka":
                listeners[room.upper()] = (port, link.port)
        kafka.properties = _kafka(kafka.controller_port, listeners)
        for server in self.servers.values():
            enter(server)
        self._mount_disks()
        self._find_clock()
        self.processes = enter(Processes(self.folder / "logs"))
        brokers = Brokers(HOST, mosquittos["uplink"].port, kafka.bootstrap)
        self.system = start_system(self.processes, self.folder, brokers, extra=self._settings())
        self.rooms = self.system.by_name
        self._wanted = set(self.rooms)

    def _settings(self) -> Mapping[str, dict[str, str]]:
        """What each room is told beyond what `start_system` says: its link to each broker, its clock."""

        def port(link: str) -> str:
            return str(self.links.by_name[link].port)

        def kafka(room: str, link: str) -> dict[str, str]:
            return {f"{room}_KAFKA__BOOTSTRAP": f"{HOST}:{port(f'{link}~kafka')}"}

        stages = {
            "STAGE_DELIVERY": self.delivery,
            "STAGE_TRANSACTION_TIMEOUT_S": "6",
            "STAGE_AUDIT_SHARE": "0.05",
            **kafka("STAGE", "stages"),
        }
        own = {
            "cloud": kafka("CLOUD", "cloud"),
            "results-writer": kafka("CLOUD", "cloud"),
            "gateway": {"GATEWAY_BROKER__PORT": port("gateway~uplink"), **kafka("GATEWAY", "gateway")},
            "stage-fog": {**stages, "STAGE_TRANSACTIONAL_ID": "stage-fog"},
            "stage-cloud": {**stages, "STAGE_TRANSACTIONAL_ID": "stage-cloud"},
            "device-a": {"EDGE_SENSOR_BROKER__PORT": port("device-a~uplink")},
            "device-b": {
                "EDGE_SENSOR_BROKER__PORT": str(self.servers["sensor-b"].port),
                "EDGE_UPLINK_BROKER__HOST": HOST,
                "EDGE_UPLINK_BROKER__PORT": port("device-b~uplink"),
            },
        }
        for device in DEVICES:
            own[device] |= _DEVICE
        return {name: {**settings, **self._clock(name)} for name, settings in own.items()}

    def sensor_broker(self, device: str) -> MqttBroker:
        """Where the readings of a device go, without a link between."""
        return self.broker(SENSOR_BROKER[device])

    def broker(self, name: str) -> MqttBroker:
        """A Mosquitto, without a link between."""
        return MqttBroker(host=HOST, port=self.servers[name].port)

    # Parts, whether rooms or brokers

    def kill(self, name: str) -> None:
        """kill -9."""
        self._wanted.discard(name)
        if name in self.servers or self.rooms[name].running:
            self._part(name).kill()
        self.died.setdefault(name, []).append(time.monotonic())

    def stop(self, name: str) -> None:
        """End it in good order."""
        self._wanted.discard(name)
        self._part(name).stop()

    def start(self, name: str) -> None:
        """Start it again."""
        self._part(name).start()
        if name in self.rooms:
            self._wanted.add(name)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._signal(name, signal.SIGCONT)

    def join(self, name: str, like: str, changes: Mapping[str, str]) -> None:
        """Start one more process like another one."""
        known = self.rooms.get(name)
        if known is None:
            model = self.rooms[like]
            self.rooms[name] = self.processes.start(
                name, model.arguments, {**model.settings, **self._clock(name), **changes}
            )
        else:
            known.start()
        self._wanted.add(name)

    def pid(self, name: str) -> int:
        """Its process id."""
        return self.servers[name].pid if name in self.servers else self.rooms[name].child.pid

    def _part(self, name: str) -> Server | Process:
        return self.servers[name] if name in self.servers else self.rooms[name]

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name in self.servers or self.rooms[name].running:
            os.kill(self.pid(name), number)

    def supervise(self) -> list[Crash]:
        """Start again what ended by itself; the crashes since the last call."""
        now, found = time.monotonic(), []
        for name in sorted(self._wanted):
            room = self.rooms[name]
            if room.running or now < self._again.get(name, 0.0):
                continue
            if name in self._again:
                del self._again[name]
                room.start()
                continue
            self._again[name] = now + AGAIN_S
            room.stop()  # it has ended: until its last words are in the log
            found.append(Crash(name, now, room.child.returncode, room.tail(2)[-400:]))
            self.died.setdefault(name, []).append(now)
        self.crashes += found
        return found

    def not_running(self) -> list[str]:
        """Rooms that are to run and do not, or are not ready after a while."""
        for name in self._wanted:
            self.rooms[name].ready.wait(60)
        return sorted(name for name in self._wanted if not (self.rooms[name].running and self.rooms[name].ready_line))

    def died_between(self, name: str, begin: float, end: float) -> bool:
        """Whether it was killed or ended by itself in that time (monotonic seconds)."""
        return any(begin <= moment <= end for moment in self.died.get(name, ()))

    def cut_between(self, link: str, begin: float, end: float) -> bool:
        """Whether the link was cut in that time (monotonic seconds)."""
        return any(begin <= moment <= end for moment in self.cut.get(link, ()))

    # Disks and clocks

    def _mount_disks(self) -> None:
        """A small file system of its own for what each device and stage keeps."""
        for name in DISKS:
            folder = self.folder / name
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                self.left_out["full-disk"] = "this user cannot mount a small file system"
                return
            self._stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
            self.disks[name] = folder

    def fill_disk(self, name: str) -> None:
        """Not a byte is left."""
        with (self.disks[name] / "fill").open("ab", buffering=0) as file:
            for size in (1_000_000, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free_disk(self, name: str) -> None:
        """There is room again."""
        (self.disks[name] / "fill").unlink(missing_ok=True)

    def empty_bundles(self, name: str) -> None:
        """What a stage has fetched is gone, which its settings allow while it is stopped."""
        for folder in self.disks[name].iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)

    def _find_clock(self) -> None:
        try:
            self.clocks = Clocks(self.folder / "clocks")
        except NoClockError as missing:
            self.left_out["clock"] = str(missing)

    def _clock(self, name: str) -> dict[str, str]:
        """The environment that gives a process a wall clock which can be moved, if there is such a thing here."""
        return self.clocks.environment(name) if self.clocks is not None else {}


def _kafka(controller_port: int, listeners: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Properties of a Kafka with a listener for each link, whose clients are told to come by that link."""
    ours = [f"{name}://{HOST}:{port}" for name, (port, _) in listeners.items()]
    return {
        "listeners": ",".join([*ours, f"CONTROLLER://{HOST}:{controller_port}"]),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{told}" for name, (_, told) in listeners.items()),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*listeners, "CONTROLLER")),
    }
