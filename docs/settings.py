"""Writes `docs/settings.md` from the settings classes: `python docs/settings.py > docs/settings.md`.

Every room's class and the models nested in it are walked; the docstring under a field is its meaning. A unit test
(`tests/unit/test_docs_settings.py`) holds the page to the classes.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cloud.settings import CloudSettings
from edge_agent.settings import EdgeSettings
from gateway.settings import GatewaySettings
from sluice.client_settings import ClientSettings
from sluice.daemon.settings import YEAR_S, RoomSettings
from sluice.stage.settings import StageSettings
from sluice.wire.names import NAME_PATTERN

ROOMS: dict[str, tuple[type[RoomSettings], str]] = {
    "Edge agent": (EdgeSettings, "`sluice edge-agent --config FILE`"),
    "Gateway": (GatewaySettings, "`sluice gateway --config FILE`"),
    "Stage": (StageSettings, "`sluice stage --tier fog|cloud --config FILE`"),
    "Cloud": (CloudSettings, "`sluice cloud`, `sluice results-writer` and `sluice token`, each with `--config FILE`"),
    "Client": (
        ClientSettings,
        "the daily commands (`sluice train`, `rollout`, `devices`, `results`, `watch`); they read no file, and nothing "
        "looks at `SLUICE_LOG_LEVEL` and `SLUICE_METRICS_PORT` yet",
    ),
}
HEAD = """# Settings

<!-- Written by docs/settings.py; change the docstrings in the settings classes, not this page. -->

Each setting can come from the environment, under the name in the table, or from a TOML file. In the file the prefix
is left out, the name is in small letters, and what stands before `__` is a table: `EDGE_SENSOR__FORMAT=csv` is

```toml
[sensor]
format = "csv"
```

What counts, from weakest to strongest: the default, the file, the environment, the command line. Lists and tables are
written as JSON in the environment: `EDGE_PUBLIC_KEYS='["…"]'`. An unknown name in the file ends the command; in the
environment it is not noticed, unless it lies below a known one (`EDGE_SENSOR__…`). Times end at a year.
"""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


@dataclass(frozen=True)
class Setting:
    """One line of a table: `name` as in the environment, `meaning` None where the field has no docstring."""

    name: str
    kind: str
    default: str
    meaning: str | None


def settings_of(room: type[RoomSettings]) -> list[Setting]:
    """All settings of a room, those of nested models too, in the order of the class."""
    return list(_walk(room, room.env_prefix, None))


def _walk(model: type[BaseModel], prefix: str, instead: BaseModel | None) -> Iterator[Setting]:
    """The settings of `model`; `instead` holds other defaults than the class's own."""
    # what every room has comes last
    own = [name for name in model.model_fields if name not in RoomSettings.model_fields]
    for name in [*own, *(name for name in model.model_fields if name not in own)]:
        field = model.model_fields[name]
        nested, optional = _nested(field.annotation)
        where = prefix + name.upper()
        if nested is None:
            default = getattr(instead, name) if instead is not None else field.get_default(call_default_factory=True)
            shown = "required" if field.is_required() and instead is None else _value(default)
            yield Setting(where, _kind(field.annotation, field), shown, field.description)
            continue
        yield Setting(where, "table", "unset" if optional else "as below", field.description)
        default = field.get_default(call_default_factory=True)
        yield from _walk(nested, where + "__", default if isinstance(default, BaseModel) else None)


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(the model that a field holds or None, whether it may be missing)."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    models = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
    return (models[0] if models else None), type(None) in choices


def _kind(annotation: Any, field: FieldInfo) -> str:
    """The type for people, with its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return _kind(next(one for one in inner if one is not type(None)), field)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin is list:
        return f"list of {PLAIN.get(inner[0], 'text')}s".replace("texts", "text") + _length(field)
    if origin is dict:
        return "table of text"
    if any(getattr(rule, "pattern", None) == NAME_PATTERN for rule in field.metadata):
        return "name (`a-z`, `0-9`, `-`)"
    bounds = [
        text.format(getattr(rule, bound))
        for rule in field.metadata
        for bound, text in BOUNDS.items()
        if hasattr(rule, bound) and getattr(rule, bound) != YEAR_S
    ]
    return ", ".join([PLAIN[annotation], *bounds])


def _length(field: FieldInfo) -> str:
    least = max((getattr(rule, "min_length", 0) for rule in field.metadata), default=0)
    most = max((getattr(rule, "max_length", 0) for rule in field.metadata), default=0)
    return "" if not most else f", {least} to {most}" if least else f", at most {most}"


def _value(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list | dict):
        return f"`{json.dumps(value)}`"
    return "empty" if value == "" else f"`{value}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (room, command) in ROOMS.items():
        about = (room.__doc__ or "").strip().splitlines()[0].rstrip(".")
        parts += [
            f"## {title}",
            f"{about}: {command}.\n",
            "| setting | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for one in settings_of(room):
            meaning = (one.meaning or "").replace("\n", " ").replace("|", "\\|")
            parts.append(f"| `{one.name}` | {one.kind} | {one.default} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
