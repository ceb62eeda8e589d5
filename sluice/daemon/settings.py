"""The base of each room's settings: one frozen class a room, a prefix a room, TOML file or environment.

`load(Room, config)` reads, from weakest to strongest: defaults, the TOML file, the environment (`<PREFIX>NAME`, in
tables `<PREFIX>TABLE__NAME`), and what the command line says. A wrong value ends the command in one line that names
the setting. pydantic-settings would do it too, but it imports asyncio and needs a class of its own for each call: 3 MB
of a device's memory.
"""

from __future__ import annotations

import json
import os
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import first_cause

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
BELOW = "__"
"""Between the name of a table and a name in it, in the environment."""
YEAR_S = 366 * 24 * 3600


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isprintable() or " " in url:
        raise ValueError("use http://HOST:PORT or https://HOST:PORT")
    return url


Seconds = Annotated[float, Field(le=YEAR_S, allow_inf_nan=False)]
"""A time that a clock can count: a year at most."""
Url = Annotated[str, AfterValidator(_http_url)]
"""Where an HTTP service is."""
Token = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[!-~]+$")]
"""A bearer token, as it can stand in a header."""


class RoomSettings(BaseModel):
    """Base of all settings: frozen, unknown names refused, the docstring under each field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    env_prefix: ClassVar[str] = ""
    """What stands before the names of these settings in the environment."""

    log_level: str = "INFO"
    """Least level of log lines: DEBUG, INFO, WARNING or ERROR."""
    metrics_port: int = 0
    """Port of the Prometheus endpoint on all interfaces; 0: none."""

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        if level.upper() not in LEVELS:
            raise ValueError(f"use one of {', '.join(LEVELS)}")
        return level.upper()


RoomT = TypeVar("RoomT", bound=RoomSettings)


def load(room: type[RoomT], config: Path | None = None, **given: Any) -> RoomT:
    """The settings of `room` from the TOML file `config`, the environment, and `given` (None values are left out).

    Raises `PermanentError` that names the setting and what is wrong with it.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PermanentError(f"settings file {config}: {error}") from error
    values = _over(values, _from_environment(room))
    values = _over(values, {name: value for name, value in given.items() if value is not None})
    try:
        return room(**values)
    except ValidationError as error:
        raise PermanentError(f"setting {room.env_prefix}{first_cause(error)}") from error


def _over(weaker: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    """Both; of what is in both `stronger` counts, and tables are laid over each other name by name."""
    both = weaker | stronger
    for name in weaker.keys() & stronger.keys():
        if isinstance(weaker[name], dict) and isinstance(stronger[name], dict):
            both[name] = _over(weaker[name], stronger[name])
    return both


def _from_environment(room: type[RoomSettings]) -> dict[str, Any]:
    """What the environment says of `room`'s settings, in the form that a file has; capitals make no difference.

    Names that no setting has are passed over, for others may use the prefix too; not so below a table of `room`, where
    they stay and are refused like those of a file.
    """
    found: dict[str, Any] = {}
    # a whole table comes before single values in it, which are laid over it
    for variable in sorted(os.environ, key=lambda variable: variable.count(BELOW)):
        name = variable.lower()
        if not name.startswith(room.env_prefix.lower()):
            continue
        path = name[len(room.env_prefix) :].split(BELOW)
        if path[0] not in room.model_fields:
            continue
        kind: Any = room
        for step in path:
            kind = _kind_in(kind, step)
        if kind is None:
            continue
        value = _read(variable, os.environ[variable], kind)
        for step in reversed(path):
            value = {step: value}
        found = _over(found, value)
    return found


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types that a value of the type `kind` may have."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind_in(kind: Any, name: str) -> Any:
    """The type of the value `name` in a table of the type `kind`; None: `kind` is no table."""
    for one in _choices(kind):
        if _is_model(one):
            return one.model_fields[name].annotation if name in one.model_fields else str
        if get_origin(one) is dict:
            return get_args(one)[1]
    return None


def _read(variable: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for: JSON for lists and tables; everything else is text that pydantic reads."""
    choices = _choices(kind)
    if not any(_is_model(one) or get_origin(one) in (list, dict) for one in choices):
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        if str in choices:
            return text
        raise PermanentError(f"setting {variable}: lists and tables are JSON in the environment: {error}") from error
    return value if str not in choices or isinstance(value, list | dict) else text
