"""Rollouts in the middle of it: which bundle and operating point each device shall run, asked for until it is taken."""

from __future__ import annotations

import random
import threading

from sluice.client import Client
from sluice.wire.errors import TemporaryError
from tests.e2e.chaos.bundles import POINTS, Chain
from tests.e2e.chaos.path import WholePath

AGAIN_S = 0.5


class Rollouts:
    """One at a time, from a thread of its own: the control plane may be away just then."""

    def __init__(self, path: WholePath, chains: list[Chain]) -> None:
        self.path = path
        self.digests = [chain.digest for chain in chains]
        devices = path.system.devices
        self.wanted = dict.fromkeys(devices, (self.digests[0], "default"))
        """(bundle, operating point) of each device, as the control plane has taken it."""
        self._thread: threading.Thread | None = None
        with path.system.client() as client:
            for chain in chains:
                client.upload_bundle(chain.folder)
            client.wait_for_rollout(client.roll_out(self.digests[0], list(devices))["id"], timeout_s=60)

    def begin(self, what: str, dice: random.Random) -> None:
        """Another `bundle` or `operating-point`, to all devices or to one."""
        devices = list(self.path.system.devices)
        if dice.random() < 0.3:
            devices = [dice.choice(devices)]
        digest, point = self.wanted[devices[0]]
        if what == "bundle":
            digest = next(other for other in self.digests if other != digest)
        point = dice.choice([other for other in POINTS if other != point] if what != "bundle" else list(POINTS))
        self._thread = threading.Thread(
            target=self._roll_out, args=(digest, point, devices), name="rollout", daemon=True
        )
        self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether the control plane has not taken the last one yet."""
        return self._thread is not None and self._thread.is_alive()

    def not_reached(self, timeout_s: float) -> list[str]:
        """Devices that do not report to run what they shall, after that time."""
        missed = []
        with self.path.system.client() as client:
            for device, wanted in self.wanted.items():
                if not _reports(client, device, wanted, timeout_s):
                    missed.append(f"{device}: {client.device(device)['reported']}")
        return missed

    def _roll_out(self, digest: str, point: str, devices: list[str]) -> None:
        pause = threading.Event()
        with self.path.system.client() as client:
            while True:
                try:
                    client.roll_out(digest, devices, point)
                    break
                except TemporaryError:
                    pause.wait(AGAIN_S)
        self.wanted.update(dict.fromkeys(devices, (digest, point)))


def _reports(client: Client, device: str, wanted: tuple[str, str], timeout_s: float) -> bool:
    pause = threading.Event()
    for _ in range(int(timeout_s / AGAIN_S)):
        runs = (client.device(device)["reported"] or {}).get("runs", ())
        if [(run["bundle"], run["operating_point"]) for run in runs] == [wanted]:
            return True
        pause.wait(AGAIN_S)
    return False
