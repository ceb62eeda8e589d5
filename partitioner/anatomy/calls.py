"""What Keras' record of one call of an operation says: which tensors it was given, which masks come with them, and
whether its outputs still have one row a sample.

Keras keeps a mask as an attribute of a tensor, and a call's record does not mention it: cut off from its tensor it
would be lost without a word. So masks are looked for here, and become tensors like others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers
from keras.src.models.functional import Functional

ROWS = 9973
"""A batch that no other axis is as long as."""


def functional_of(operation: Any) -> Any:
    """The functional model whose graph `operation` is, or None: then it is a layer, or its graph cannot be seen."""
    if isinstance(operation, keras.Sequential):
        own = type(operation).call is keras.Sequential.call
        return getattr(operation, "_functional", None) if own else None
    own = isinstance(operation, Functional) and type(operation).call is Functional.call
    return operation if own else None


def parts_of(operation: Any) -> list[Any]:
    """`operation` and all layers inside of it."""
    return list(operation._flatten_layers()) if isinstance(operation, layers.Layer) else [operation]


def given_to(inner: Any, call: Any) -> tuple[list[Any], bool | None]:
    """The tensors that `call` gave to the nested model `inner`, in the order of its inputs, and what it said of
    training."""
    args, kwargs = call.arguments.args, call.arguments.kwargs
    inputs = args[0] if args else kwargs["inputs"]
    training = args[1] if len(args) > 1 else kwargs.get("training")
    if isinstance(inputs, dict) and not isinstance(inner._inputs_struct, dict):
        return [inputs[tensor._keras_history.operation.name] for tensor in inner.inputs], training
    return list(keras.tree.flatten(inputs)), training


def masked_arguments(call: Any) -> dict[str, Any]:
    """The arguments of `call` that Keras fills with masks: name and the tensors (nested as given) whose masks it
    wants. What the caller gave himself is left out."""
    operation = call.operation
    if not isinstance(operation, layers.Layer):
        return {}
    names = inspect.signature(operation.call).parameters
    if not any(name.endswith("mask") for name in names):
        return {}
    bound = inspect.signature(operation.call).bind(*call.arguments.args, **call.arguments.kwargs).arguments
    tensors = {name: value for name, value in bound.items() if _has_tensors(value) and not name.endswith("mask")}
    wanted = {f"{name}_mask" if len(tensors) > 1 else "mask": value for name, value in tensors.items()}
    return {name: value for name, value in wanted.items() if name in names and bound.get(name) is None}


def output_shapes(call: Any, shapes: Sequence[tuple[int | None, ...]]) -> list[tuple[int | None, ...]] | None:
    """Shapes of what `call` would make of tensors of `shapes`, one for each of its tensors; None if it cannot."""
    stand_ins = {
        id(tensor): keras.KerasTensor(shape, tensor.dtype)
        for tensor, shape in zip(call.input_tensors, shapes, strict=True)
    }
    args, kwargs = call.arguments.fill_in(stand_ins)
    try:
        made = call.operation.compute_output_spec(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(made)]


def _has_tensors(value: Any) -> bool:
    return any(isinstance(one, keras.KerasTensor) for one in keras.tree.flatten(value))


def output_names(functional: Any) -> list[str]:
    """Names of a model's outputs, flattened: a dict's keys, else the layers', numbered where one gives several."""
    made: list[str] = []
    for path, tensor in keras.tree.flatten_with_path(functional._outputs_struct):
        named = any(isinstance(step, str) for step in path)
        name = ".".join(map(str, path)) if named else str(tensor._keras_history.operation.name)
        made.append(name if name not in made else f"{name}_{len(made)}")
    return made
