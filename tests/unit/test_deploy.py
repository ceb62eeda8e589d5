"""`docker-compose.yml` and `Dockerfile`, as far as they can be checked without an engine: names, values, files."""

import base64
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from cloud.settings import CloudSettings
from edge_agent.settings import EdgeSettings
from gateway.settings import GatewaySettings
from sluice.client_settings import ClientSettings
from sluice.daemon.settings import RoomSettings, load
from sluice.stage.settings import StageSettings
from sluice.wire.errors import PermanentError

ROOT = Path(__file__).parents[2]
ROOMS: dict[str, type[RoomSettings]] = {
    "EDGE_": EdgeSettings,
    "GATEWAY_": GatewaySettings,
    "STAGE_": StageSettings,
    "CLOUD_": CloudSettings,
    "SLUICE_": ClientSettings,
}
PREFIX_OF = {"cloud": "CLOUD_", "results-writer": "CLOUD_", "gateway": "GATEWAY_", "stage": "STAGE_"} | {
    "edge-agent": "EDGE_"
}
KEY = base64.b64encode(bytes(32)).decode()
GIVEN = {
    "POSTGRES_PASSWORD": "secret1",
    "GATEWAY_PASSWORD": "secret2",
    "DEVICE_PASSWORD": "secret3",
    "STAGE_TOKEN": "token1",
    "DEVICE_TOKEN": "token2",
    "PUBLIC_KEYS": f'["{KEY}"]',
}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def own() -> dict[str, dict[str, Any]]:
    """The services that run our images."""
    return {name: service for name, service in services().items() if "build" in service}


def filled(value: object, given: dict[str, str]) -> str:
    """As compose fills in variables: `${A:-default}`, `${A:?must be there}`."""
    return VARIABLE.sub(lambda m: given.get(m[1]) or (m[3] if m[2] == "-" else ""), str(value))


def example() -> dict[str, str]:
    lines = (ROOT / "deploy" / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def stages_of_dockerfile() -> dict[str, str]:
    """The text of each build stage by its name."""
    text = (ROOT / "Dockerfile").read_text()
    parts = re.split(r"^FROM +(\S+) +AS +(\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def test_everything_that_a_whole_path_needs_is_there() -> None:
    assert set(services()) == {
        *("mosquitto", "kafka", "postgres"),
        *("cloud", "results-writer", "gateway", "stage-fog", "stage-cloud", "edge-agent"),
    }
    tiers = {service["environment"]["STAGE_TIER"] for name, service in own().items() if name.startswith("stage")}
    assert tiers == {"fog", "cloud"}


@pytest.mark.parametrize("name", sorted(services()))
def test_each_service_is_watched_and_comes_back(name: str) -> None:
    service = services()[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    if "build" not in service:
        assert re.search(r":\d", service["image"]), "a version, so that an upgrade is a decision"


@pytest.mark.parametrize("name", sorted(own()))
def test_build_target_and_command_exist(name: str) -> None:
    service = own()[name]
    assert service["build"]["target"] in stages_of_dockerfile()
    assert service["command"][0] in pyproject()["project"]["entry-points"]["sluice.commands"]
    assert service["command"][0] in PREFIX_OF


@pytest.mark.parametrize("name", sorted(services()))
def test_each_variable_is_a_setting(name: str) -> None:
    settings_of = runpy.run_path(str(ROOT / "docs" / "settings.py"))["settings_of"]
    known = {setting.name for room in ROOMS.values() for setting in settings_of(room)}
    names = [one for one in services()[name].get("environment", {}) if one.startswith(tuple(ROOMS))]
    assert [one for one in names if one not in known] == []
    if name in own():
        assert names, "a service of ours without a setting would look for its brokers on itself"
        assert all(one.startswith(PREFIX_OF[own()[name]["command"][0]]) for one in names)


@pytest.mark.parametrize("name", sorted(own()))
def test_the_values_are_what_the_room_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in own()[name]["environment"].items():
        monkeypatch.setenv(key, filled(value, GIVEN))
    settings = load(ROOMS[PREFIX_OF[own()[name]["command"][0]]])
    if isinstance(settings, CloudSettings):
        assert settings.database == "postgresql://sluice:secret1@postgres:5432/sluice"
    else:
        assert settings.metrics_port == 9100, "the health check asks there"
    if isinstance(settings, StageSettings | EdgeSettings):
        assert settings.public_keys == [KEY]


def test_without_a_public_key_nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stage-fog", "stage-cloud", "edge-agent"):
        for key, value in own()[name]["environment"].items():
            monkeypatch.setenv(key, filled(value, GIVEN | {"PUBLIC_KEYS": ""}))
        with pytest.raises((PermanentError, ValueError)):
            load(ROOMS[PREFIX_OF[own()[name]["command"][0]]])


def test_secrets_come_from_outside() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert {match[1] for match in VARIABLE.finditer(text)} == set(example()), "deploy/example.env names them all"
    for service in services().values():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|PUBLIC_KEYS|DATABASE$", key):
                assert "${" in value, f"{key} is written down"
    assert {key: value for key, value in example().items() if key in GIVEN} == dict.fromkeys(GIVEN, "")


def test_mounted_files_and_volumes_exist() -> None:
    for service in services().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in compose()["volumes"], mount


@pytest.mark.parametrize("target", ["edge", "gateway", "stage", "cloud"])
def test_each_image_installs_what_its_room_needs_as_an_ordinary_user(target: str) -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    text = stages_of_dockerfile()[target]
    asked = [name for names in re.findall(r"\[([a-z,]+)\]\"", text) for name in names.split(",")]
    assert asked
    assert set(asked) <= set(extras)
    assert target in asked
    assert "--constraint" in text
    assert re.findall(r"^USER (\S+)$", text, flags=re.MULTILINE) == ["sluice"]


def test_the_build_copies_every_package_and_the_context_lets_it() -> None:
    copied = re.findall(r"^COPY (\w+) \w+$", stages_of_dockerfile()["build"], flags=re.MULTILINE)
    wanted = {name.removesuffix("*") for name in pyproject()["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert set(copied) == wanted
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*copied, "pyproject.toml", "README.md", "constraints.txt"} == allowed


def test_the_two_brokers_differ_in_when_they_save_and_in_nothing_else() -> None:
    def options(name: str) -> dict[str, str]:
        lines = (ROOT / "deploy" / "mosquitto" / name).read_text().splitlines()
        return dict(
            line.split(" ", 1) for line in lines if line and not line.startswith("#") and "log_type" not in line
        )

    one, two = options("mosquitto.conf"), options("uplink.conf")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == {"autosave_on_changes", "autosave_interval"}
