"""Mosquitto with the configuration that ships, moved to loopback and to a folder of the test's own.

Only the lines that name a place are changed, so that what the tests prove about durability and about the
access rules holds for `deploy/mosquitto` too. Without `users` everybody may do everything, which is what most
tests want; with `users` the shipped passwords and access rules are in force.
"""

import getpass
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.brokers import fetch
from tests.brokers.process import HOST, Server

SHIPPED = Path(__file__).parents[2] / "deploy" / "mosquitto"
# MQTT 3.1.1, no client id, clean session, keep-alive 10 s.
CONNECT = bytes.fromhex("100c 0004 4d515454 04 02 000a 0000")
CONNACK = 0x20


class Mosquitto(Server):
    """A Mosquitto on loopback; `users` (name: password) turns on the shipped passwords and access rules.

    `shipped`: which of the two configurations, `mosquitto.conf` or `uplink.conf`.
    """

    start_timeout_s = 20.0

    def __init__(
        self, folder: Path | None = None, users: Mapping[str, str] | None = None, shipped: str = "mosquitto.conf"
    ) -> None:
        self.software = fetch.mosquitto()
        super().__init__(folder)
        self.users = users
        self.shipped = shipped
        self.config = self.folder / "mosquitto.conf"

    def prepare(self) -> None:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        places = {
            "listener": f"{self.port} {HOST}",
            "persistence_location": f"{data}/",
        }
        if self.users is None:
            places |= {"allow_anonymous": "true", "password_file": "", "acl_file": ""}
        else:
            places |= {"password_file": str(self._passwords(self.users)), "acl_file": str(self._acl())}
        config = moved((SHIPPED / self.shipped).read_text(), places)
        # Started as root, Mosquitto would go on as another user, who cannot reach a test's folder.
        self.config.write_text(f"{config}\nuser {getpass.getuser()}\n")

    def command(self) -> list[str]:
        return [self.software.program("mosquitto"), "-c", str(self.config)]

    def environment(self) -> dict[str, str]:
        return self.software.environment()

    def answers(self) -> bool:
        """Any answer to a CONNECT will do: in secured mode it is a refusal."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(CONNECT)
                answer = connection.recv(4)
        except OSError:
            return False
        return answer[:1] == bytes([CONNACK])

    def _passwords(self, users: Mapping[str, str]) -> Path:
        path = self.folder / "passwords"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        hashed = subprocess.run(
            [self.software.program("mosquitto_passwd"), "-U", str(path)],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if hashed.returncode != 0:
            raise RuntimeError(f"mosquitto_passwd failed: {hashed.stderr or hashed.stdout}")
        return path

    def _acl(self) -> Path:
        """A copy with the rights that Mosquitto asks for."""
        path = self.folder / "acl"
        path.write_text((SHIPPED / "acl").read_text())
        path.chmod(0o600)
        return path


def moved(config: str, places: Mapping[str, str]) -> str:
    """The configuration with other values for some options; an empty value takes the option out.

    Raises:
        ValueError: an option does not stand in the configuration exactly once, so that the test would run
        another one.
    """
    lines = config.splitlines()
    for option, value in places.items():
        at = [number for number, line in enumerate(lines) if line.split(" ")[0] == option]
        if len(at) != 1:
            raise ValueError(f"{option} stands {len(at)} times in the shipped mosquitto.conf, expected once")
        lines[at[0]] = f"{option} {value}" if value else f"# {option}: not in this test"
    return "\n".join(lines)


def two_brokers(uplink: Mosquitto, devices: Sequence[str]) -> dict[str, dict[str, str]]:
    """Settings by process that give devices and gateway a broker of their own, for `sluice.dev.system.start_system`."""
    place = {"HOST": uplink.host, "PORT": str(uplink.port)}
    known = uplink.users or {}
    users: dict[str, dict[str, str]] = {
        name: {"USERNAME": name, "PASSWORD": known[name]} if name in known else {} for name in ("gateway", *devices)
    }
    prefixes = {name: "GATEWAY_BROKER" if name == "gateway" else "EDGE_UPLINK_BROKER" for name in users}
    return {name: {f"{prefixes[name]}__{k}": v for k, v in (place | users[name]).items()} for name in users}
