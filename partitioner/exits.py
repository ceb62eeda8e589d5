"""The exits of a model: what they are called, their order, and their logits.

A model may give its outputs in any order and under any name; what counts is how far along the trunk an exit branches
off. An exit shows its place by how many nodes it shares with other exits: those are the trunk. The final exit shares
as many as the one before it and needs more work in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from partitioner.graph import Graph, Key, Node, key_of, walk
from partitioner.models import CUSTOM_HINT, LAMBDA_HINT
from sluice.wire.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit: `output` is the model's own output tensor, `classes` its width."""

    name: str
    output: Key
    classes: int


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model's graph, its inputs by name, and its exits in order, the final one last."""

    graph: Graph
    inputs: dict[str, Key]
    exits: tuple[Exit, ...]

    @property
    def classes(self) -> int:
        """How many classes every exit tells apart."""
        return self.exits[0].classes


def anatomy(model: keras.Model) -> Anatomy:
    """The exits and the graph of `model`.

    Raises `PermanentError`, with the way out, for a model that cannot be taken apart: subclassed, not built, with a
    Lambda layer or a layer class of its own, or with an output that is not (batch, classes).
    """
    functional = _functional(model)
    outputs = functional._outputs_struct
    if isinstance(outputs, dict):
        named = list(outputs.items())
    else:
        named = [(t._keras_history.operation.name, t) for t in keras.tree.flatten(outputs)]
    graph = walk(tensor for _, tensor in named)
    for node in graph.nodes:
        _check_operation(node)
    exits = [Exit(name, key_of(tensor), _classes(name, tensor)) for name, tensor in named]
    _check_together(exits)
    inputs = {tensor._keras_history.operation.name: key_of(tensor) for tensor in functional.inputs}
    unused = [name for name, key in inputs.items() if key not in graph.maker]
    if unused:
        raise PermanentError(f"input {unused[0]!r} is not used by any exit: leave it out")
    for key in inputs.values():
        graph.shape(key)
    return Anatomy(graph, inputs, tuple(_ordered(graph, exits)))


def logits_of(graph: Graph, output: Key) -> tuple[Key, Node | None]:
    """Where an exit's logits are: (key, None) or, when a Dense applies softmax itself, (its key, its node)."""
    node = graph.nodes[graph.maker[output]]
    if isinstance(node.operation, layers.Dense):
        return output, node if _is_softmax(node.operation.activation) else None
    softmax = (
        isinstance(node.operation, layers.Softmax)
        or (isinstance(node.operation, layers.Activation) and _is_softmax(node.operation.activation))
        or (not isinstance(node.operation, layers.Layer) and type(node.operation).__name__ == "Softmax")
    )
    return (node.inputs[0], None) if softmax else (output, None)


def gives_logits(graph: Graph, output: Key) -> bool:
    """Whether the exit emits logits as it is, so that a loss must be told."""
    key, dense = logits_of(graph, output)
    return dense is None and key == output


def linear_copy(dense: Any, value: Any) -> Any:
    """`dense` without its activation, with its weights as they are now, applied to the symbolic tensor `value`."""
    config = dense.get_config() | {"activation": None, "name": f"{dense.name}_logits"}
    copy = layers.Dense.from_config(config)
    made = copy(value)
    copy.set_weights(dense.get_weights())
    return made


def _functional(model: keras.Model) -> Any:
    if isinstance(model, keras.Sequential):
        if getattr(model, "_functional", None) is None:
            raise PermanentError("the model has no input shape: begin it with keras.Input(shape)")
        return model._functional
    if not hasattr(model, "_outputs_struct"):
        raise PermanentError(
            f"{type(model).__name__} is a subclassed model, whose graph cannot be seen: use the functional API"
        )
    return model


def _check_operation(node: Node) -> None:
    kind = type(node.operation)
    if isinstance(node.operation, layers.Lambda):
        raise PermanentError(f"layer {node.name!r}: {LAMBDA_HINT}")
    if kind.__module__.split(".")[0] != "keras":
        raise PermanentError(f"layer {node.name!r} of class {kind.__name__}: {CUSTOM_HINT}")


def _classes(name: str, tensor: Any) -> int:
    shape = tuple(tensor.shape)
    if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
        raise PermanentError(f"exit {name!r} has shape {list(shape)}: an exit gives (batch, classes), 2 at least")
    activation = getattr(tensor._keras_history.operation, "activation", None)
    if getattr(activation, "__name__", "") == "sigmoid":
        raise PermanentError(f"exit {name!r} ends in sigmoid: an exit chooses one class, by softmax or logits")
    return shape[1]


def _check_together(exits: list[Exit]) -> None:
    first = exits[0]
    for other in exits[1:]:
        if other.classes != first.classes:
            raise PermanentError(
                f"exits {first.name!r} and {other.name!r} have {first.classes} and {other.classes} classes"
            )
    for one in exits:
        for other in exits:
            if one is not other and (one.output == other.output or one.name == other.name):
                raise PermanentError(f"exits {one.name!r} and {other.name!r} are the same")


def _ordered(graph: Graph, exits: list[Exit]) -> list[Exit]:
    needs = {one.name: graph.ancestors([one.output]) for one in exits}

    def place(one: Exit) -> tuple[int, int, int]:
        mine = needs[one.name]
        others = set[int]().union(*(needs[other.name] for other in exits if other is not one))
        return len(mine & others), sum(graph.nodes[i].macs for i in mine), len(mine)

    return sorted(exits, key=place)


def _is_softmax(activation: Any) -> bool:
    return getattr(activation, "__name__", "") == "softmax"
