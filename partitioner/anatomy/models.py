"""A Keras model from outside: as source text or as a `.keras` file. Both are code, so only a job loads them.

Source is a few lines of Keras that leave a variable `model`; `keras`, `layers` and `np` are at hand. A `.keras` file
is loaded in Keras' safe mode; what it could not load (Lambda, classes of the user's own) is found in the file's own
configuration first, so that the error can name the layer.
"""

from __future__ import annotations

import json
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from sluice.wire.errors import PermanentError

MAX_SOURCE = 1_000_000
"""Characters of model source."""
MAX_CONFIG = 50_000_000
"""Bytes of a `.keras` file's configuration."""
HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
"""Dtypes and policies of half precision."""
SOURCE_NAME = "<model source>"

LAMBDA_HINT = "a Lambda layer is code that cannot be checked: write it with keras.ops or a built-in layer"
CUSTOM_HINT = "a class of your own cannot be loaded elsewhere: build it from built-in layers (functional API)"
HALF_HINT = "TFLite has no such arithmetic; partitioner.models.in_float32(model) gives the model without it"
SUBCLASS_HINT = "is a subclassed model, whose graph cannot be seen: use the functional API"


def load_model(model: dict[str, Any], folder: Path) -> keras.Model:
    """The model of a job file's `{"source": text}` or `{"file": path}`, relative to the job's `folder`.

    Errors as in the two functions below.
    """
    if isinstance(source := model.get("source"), str):
        return from_source(source)
    if isinstance(file := model.get("file"), str):
        return from_file(folder / file)
    raise PermanentError("model: give either 'source' (text) or 'file' (path of a .keras file)")


def from_source(source: str) -> keras.Model:
    """Run `source` and return its `model`.

    Raises `PermanentError` with the cause and the line of `source` when it does not run through, ends the program,
    or leaves no Keras model.
    """
    if len(source) > MAX_SOURCE:
        raise PermanentError(f"model source of {len(source)} characters is over the limit of {MAX_SOURCE}")
    names: dict[str, Any] = {"__name__": "model", "keras": keras, "layers": keras.layers, "np": np}
    try:
        exec(compile(source, SOURCE_NAME, "exec"), names)
    except SyntaxError as error:
        raise PermanentError(f"model source, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {_one_line(error)}"
        raise PermanentError(f"model source, line {_line_of(error)}: {cause}") from error
    model = names.get("model")
    if model is None:
        raise PermanentError("model source leaves no variable `model`")
    if not isinstance(model, keras.Model):
        raise PermanentError(f"model source: `model` is a {type(model).__name__}, not a keras.Model")
    return in_float32(model)


def from_file(path: Path) -> keras.Model:
    """The model in a `.keras` file, without its training state.

    Raises `PermanentError` when it is none, or holds a Lambda layer or a class that is not Keras' own (named).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("config.json").file_size
            if size > MAX_CONFIG:
                raise PermanentError(f"{path.name}: configuration of {size} bytes is over {MAX_CONFIG}")
            config = json.loads(archive.read("config.json"))
    except OSError as error:
        raise PermanentError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise PermanentError(
            f"{path.name} is not a whole .keras file ({_one_line(error)}): write it with model.save('NAME.keras')"
        ) from error
    for layer in _configured(config):
        _refuse_foreign(layer)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise PermanentError(f"{path.name} cannot be loaded: {_one_line(error)}") from error
    if not isinstance(model, keras.Model):
        raise PermanentError(f"{path.name} holds a {type(model).__name__}, not a keras.Model")
    return in_float32(model)


def in_float32(model: keras.Model) -> keras.Model:
    """`model` as it is or, when layers of it compute in half precision (mixed or not), another one in float32 with the
    same weights; `PermanentError` when it cannot be built again from its configuration."""
    if not any(is_half(layer) for layer in model._flatten_layers()):
        return model
    config = keras.saving.serialize_keras_object(model) | {"compile_config": None}
    for layer in _configured(config):
        _refuse_foreign(layer)
    try:
        made = keras.saving.deserialize_keras_object(_without_half(config), safe_mode=True)
    except Exception as error:
        raise PermanentError(f"the model cannot be built again in float32: {_one_line(error)}") from error
    made.set_weights(model.get_weights())
    return made


def is_half(operation: Any) -> bool:
    """Whether an operation computes in half precision; models and inputs compute nothing themselves."""
    idle = isinstance(operation, keras.Model | keras.layers.InputLayer)
    return not idle and getattr(operation, "compute_dtype", None) in HALF


def _without_half(config: Any, of_dtype: bool = False) -> Any:
    """A Keras configuration with float32 for every half-precision dtype and policy in it."""
    if isinstance(config, dict):
        policy = of_dtype or "DTypePolicy" in str(config.get("class_name"))
        return {name: _without_half(value, policy or name == "dtype") for name, value in config.items()}
    if isinstance(config, list):
        return [_without_half(value, of_dtype) for value in config]
    return "float32" if of_dtype and config in HALF else config


def _configured(config: object) -> Iterator[dict[str, Any]]:
    """Every serialised object in a Keras configuration, outermost first."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config
        for value in config.values():
            yield from _configured(value)
    elif isinstance(config, list):
        for value in config:
            yield from _configured(value)


def _refuse_foreign(layer: dict[str, Any]) -> None:
    kind, module = layer["class_name"], layer.get("module")
    inner = layer.get("config")
    name = layer.get("name") or (inner.get("name") if isinstance(inner, dict) else None) or kind
    if kind == "Lambda":
        raise PermanentError(f"layer {name!r}: {LAMBDA_HINT}")
    foreign = isinstance(module, str) and module.split(".")[0] not in ("keras", "builtins")
    if foreign or (module is None and layer.get("registered_name") not in (None, kind)):
        raise PermanentError(f"layer {name!r} of class {kind}: {CUSTOM_HINT}")


def _line_of(error: BaseException) -> int | None:
    """The last line of the model source that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == SOURCE_NAME]
    return lines[-1] if lines else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
