"""`docs/settings.md` names every setting of every room, says what each means, and is what `docs/settings.py` writes."""

import base64
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from cloud.settings import CloudSettings
from edge_agent.settings import EdgeSettings
from gateway.settings import GatewaySettings
from sluice.client_settings import ClientSettings
from sluice.daemon.settings import RoomSettings
from sluice.stage.settings import StageSettings

DOCS = Path(__file__).parents[2] / "docs"
ROOMS: list[type[RoomSettings]] = [EdgeSettings, GatewaySettings, StageSettings, CloudSettings, ClientSettings]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "settings.py"))


def test_every_room_is_on_the_page(script: dict[str, Any]) -> None:
    assert {room for room, _command in script["ROOMS"].values()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_every_setting_stands_there_and_has_a_docstring(script: dict[str, Any], room: type[RoomSettings]) -> None:
    page = (DOCS / "settings.md").read_text()
    settings = script["settings_of"](room)
    assert {room.env_prefix + name.upper() for name in room.model_fields} <= {one.name for one in settings}
    assert [one.name for one in settings if not one.meaning] == []
    assert [one.name for one in settings if f"| `{one.name}` |" not in page] == []


def test_the_page_is_up_to_date(script: dict[str, Any]) -> None:
    written = (DOCS / "settings.md").read_text()
    assert written == script["page"](), "run: python docs/settings.py > docs/settings.md"


def test_what_the_page_says_of_names_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefix and `__` in the environment, tables in the file, the environment over the file; unknown names."""
    from sluice.daemon.settings import load
    from sluice.wire.errors import PermanentError

    file = tmp_path / "edge.toml"
    key = base64.b64encode(bytes(32)).decode()
    file.write_text(f'device_id = "a"\npublic_keys = ["{key}"]\n[sensor]\nformat = "csv"\n[input]\nwindow = 3\n')
    monkeypatch.setenv("EDGE_INPUT__WINDOW", "4")
    monkeypatch.setenv("EDGE_NO_SUCH_SETTING", "1")
    settings = load(EdgeSettings, file)
    assert (settings.sensor.format, settings.input.window) == ("csv", 4)
    monkeypatch.setenv("EDGE_SENSOR__NO_SUCH_SETTING", "1")
    with pytest.raises(PermanentError, match="no_such_setting"):
        load(EdgeSettings, file)
    monkeypatch.delenv("EDGE_SENSOR__NO_SUCH_SETTING")
    file.write_text("no_such_setting = 1\n" + file.read_text())
    with pytest.raises(PermanentError, match="no_such_setting"):
        load(EdgeSettings, file)


def times_in(kind: Any, path: str = "") -> Iterator[str]:
    """The dotted names of all times in the settings class `kind` and in its tables."""
    for name, field in kind.model_fields.items():
        for one in (field.annotation, *get_args(field.annotation)):
            if isinstance(one, type) and issubclass(one, BaseModel):
                yield from times_in(one, f"{path}{name}.{'x.' if get_origin(field.annotation) is dict else ''}")
        if name.endswith(("_s", "_hz")):
            yield path + name


@pytest.mark.parametrize("room", ROOMS)
def test_no_time_is_without_end(room: type[RoomSettings]) -> None:
    """Sums with it are made, and threads and sockets wait for it."""
    for path in times_in(room):
        for value in ("inf", "-inf", "nan", "1e17"):
            given: Any = value
            for step in reversed(path.split(".")):
                given = {step: given}
            with pytest.raises(ValidationError) as refused:
                room(**given)
            assert path in [".".join(map(str, error["loc"])) for error in refused.value.errors()], path
