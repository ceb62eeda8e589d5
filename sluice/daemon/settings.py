"""The base of each room's settings: one frozen class a room, a prefix a room, TOML file or environment.

`load(Room, config)` reads, from weakest to strongest: defaults, the TOML file, the environment (`<PREFIX>NAME`), and
what the command line says. A wrong value ends the command in one line that names the setting.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import first_cause

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class RoomSettings(BaseSettings):
    """Base of all settings: frozen, unknown names refused, the docstring under each field is its documentation."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file_values: ClassVar[dict[str, Any]] = {}

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, cls.file_values)


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
    # a class of its own per call: pydantic-settings gives its sources no other way in
    reader = type(
        room.__name__,
        (room,),
        {"file_values": values, "__doc__": room.__doc__, "__module__": room.__module__},
    )
    try:
        settings: RoomT = reader(**{name: value for name, value in given.items() if value is not None})
        return settings
    except ValidationError as error:
        prefix = str(room.model_config.get("env_prefix", ""))
        raise PermanentError(f"setting {prefix.upper()}{first_cause(error)}") from error
    except SettingsError as error:  # a list or table in the environment that is not JSON
        raise PermanentError(f"setting: {error}: lists and tables are written as JSON there") from error


__all__ = ["RoomSettings", "SettingsConfigDict", "load"]
