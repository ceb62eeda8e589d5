"""What a model is for, its exits and their logits, and its trunk.

A model may give its outputs in any order and under any name; what counts is how far along the trunk an exit branches
off. An exit shows its place by how many nodes it shares with other exits: those are the trunk. The final exit shares
as many as the one before it and needs more work in all. A model whose outputs are not exits of one classification
(regression, several labels, segmentation, detection) has a trunk and results, and no exits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from partitioner.anatomy.calls import functional_of, parts_of
from partitioner.anatomy.graph import Graph, Key, Node, walk
from partitioner.anatomy.models import CUSTOM_HINT, HALF_HINT, LAMBDA_HINT, SUBCLASS_HINT, is_half
from sluice.wire.errors import PermanentError

Task = Literal["classification", "tensors"]

MOST_STEPS = 256
"""Steps of a recurrent layer: TFLite has each of them as operations of its own."""
LINEAR = ("", "linear", "softmax", "log_softmax", "logsoftmax")
"""Activations that an exit may end in; its logits are behind no other."""
NONLINEAR = (
    *("celu", "elu", "exp", "gelu", "hardsigmoid", "hardsilu", "hardtanh", "leakyrelu", "normalize", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
)
"""Operations that are activations."""
RESHAPING = (
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Dropout,
    layers.Identity,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
"""Layers that make features of features: behind a nonlinearity they are no classes."""


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit: `output` is the model's own output, `classes` its width."""

    name: str
    output: Key
    classes: int
    tensor: Any = field(compare=False, repr=False)
    """The model's own symbolic output tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """A model's graph, its inputs by name, its exits in order, the final one last (none for task `tensors`).

    A *position* on the trunk is a number of its nodes that are done: 0 is the raw input.
    """

    graph: Graph
    task: Task
    inputs: dict[str, Key]
    results: dict[str, Key]
    """All outputs by name, in the model's order."""
    exits: tuple[Exit, ...]
    trunk: tuple[int, ...]
    """Indices of the nodes that the final exit or the results need, inputs left out: what early exits need first."""
    branches: tuple[int, ...]
    """Position of each exit on the trunk."""

    @property
    def classes(self) -> int:
        """How many classes every exit tells apart; 0 for task `tensors`."""
        return self.exits[0].classes if self.exits else 0

    def position(self, k: int) -> int:
        """Where exit `k` branches off the trunk; for the final one its end.

        An exit that shares nothing but preprocessing with the trunk sits at the input, position 0, if the raw input is
        no larger than what the preprocessing makes of it: it is done twice then.
        """
        return self.branches[k]


def anatomy(model: keras.Model, task: Task | None = None, keep: Collection[str] | None = None) -> Anatomy:
    """The graph, the exits and the trunk of `model`.

    `task` overrules what its outputs look like; `keep` names the early exits to take, all by default. Raises
    `PermanentError`, with the way out, for a model that cannot be taken apart: subclassed, not built, of an open shape,
    with a Lambda layer or a layer class of its own, or with one output under two names; and for task `classification`
    when an output is not (batch, classes), softmax or logits.
    """
    functional = _functional(model)
    graph = walk(functional)
    for node in graph.nodes:
        _check_operation(node)
    results = dict(zip(graph.output_names, graph.outputs, strict=True))
    _check_results(graph, results)
    exits: list[Exit] = []
    why_not = "" if task == "tensors" else _no_exits(graph, results)
    if task == "classification" and why_not:
        raise PermanentError(why_not)
    if task != "tensors" and not why_not:
        named = zip(results.items(), functional.outputs, strict=True)
        exits = _ordered(graph, [Exit(name, key, graph.shape(key)[0], tensor) for (name, key), tensor in named])
        if keep is not None:
            exits = [one for one in exits[:-1] if one.name in keep] + exits[-1:]
    trunk, branches = _trunk(graph, exits)
    order = sorted(range(len(exits)), key=lambda k: branches[k])
    return Anatomy(
        graph,
        "classification" if exits else "tensors",
        dict(graph.inputs),
        results,
        tuple(exits[k] for k in order),
        trunk,
        tuple(branches[k] for k in order),
    )


def logits_of(graph: Graph, output: Key) -> tuple[Key, Node | None]:
    """Where an exit's logits are: (key, None) or, when a Dense applies softmax itself, (its key, its node)."""
    key = output
    while _changes_nothing(graph, key):
        key = graph.maker(key).inputs[0]
    node = graph.maker(key)
    if _activation(node.operation) != "softmax":
        return output, None
    return (key, node) if isinstance(node.operation, layers.Dense | layers.EinsumDense) else (node.inputs[0], None)


def _changes_nothing(graph: Graph, key: Key) -> bool:
    node = graph.maker(key)
    same = len(node.inputs) == 1 and graph.tensors[node.inputs[0]].shape == graph.tensors[key].shape
    linear = isinstance(node.operation, layers.Activation) and _activation(node.operation) == "linear"
    return same and (linear or isinstance(node.operation, RESHAPING))


def gives_logits(graph: Graph, output: Key) -> bool:
    """Whether the exit emits logits as it is, so that a loss must be told."""
    key, dense = logits_of(graph, output)
    return dense is None and key == output


def _functional(model: keras.Model) -> Any:
    if isinstance(model, keras.Sequential) and getattr(model, "_functional", None) is None:
        raise PermanentError("the model has no input shape: begin it with keras.Input(shape)")
    functional = functional_of(model)
    if functional is None:
        raise PermanentError(f"{type(model).__name__} {SUBCLASS_HINT}")
    return functional


def _check_operation(node: Node) -> None:
    for one in parts_of(node.operation):
        kind = type(one)
        where = f"layer {node.path!r}" if one is node.operation else f"layer {one.name!r} in {node.path!r}"
        if isinstance(one, layers.Lambda):
            raise PermanentError(f"{where}: {LAMBDA_HINT}")
        if isinstance(one, keras.Model) and functional_of(one) is None:
            raise PermanentError(f"{where}: {kind.__name__} {SUBCLASS_HINT}")
        if kind.__module__.split(".")[0] != "keras" and functional_of(one) is None:
            raise PermanentError(f"{where} of class {kind.__name__}: {CUSTOM_HINT}")
        if is_half(one):
            raise PermanentError(f"{where} computes in {one.compute_dtype}: {HALF_HINT}")
        if getattr(one, "stateful", False):
            raise PermanentError(f"{where} remembers the sample before: build it with stateful=False")
        if hasattr(one, "unroll"):
            shape = node.call.input_tensors[0].shape
            steps = shape[1 if "Conv" in kind.__name__ else -2] or 0
            if steps > MOST_STEPS:
                raise PermanentError(
                    f"{where} takes {steps} steps, for TFLite {MOST_STEPS} at most: shorten the window, or put a "
                    "Conv1D with strides before it"
                )


def _check_results(graph: Graph, results: dict[str, Key]) -> None:
    for key in graph.inputs.values():
        graph.shape(key)
    seen: dict[Key, str] = {}
    for name, key in results.items():
        if key in seen:
            raise PermanentError(f"outputs {seen[key]!r} and {name!r} are the same: leave one out")
        seen[key] = name
        graph.shape(key)
        if key not in graph.rows:
            raise PermanentError(f"output {name!r} does not have one row a sample: keep the batch as its first axis")


def _no_exits(graph: Graph, results: dict[str, Key]) -> str:
    """Why the outputs are not exits of one single-label classification; empty if they are."""
    first = next(iter(results))
    for name, key in results.items():
        shape = graph.shape(key)
        if len(shape) != 1 or shape[0] < 2 or not graph.dtype(key).startswith("float"):
            return f"output {name!r} is {graph.dtype(key)}{list(shape)}: an exit gives (batch, classes), 2 at least"
        if shape != graph.shape(results[first]):
            sizes = graph.shape(results[first])[0], shape[0]
            return f"outputs {first!r} and {name!r} have {sizes[0]} and {sizes[1]} classes"
        node = graph.maker(key)
        while isinstance(node.operation, RESHAPING):
            node = graph.maker(node.inputs[0])
        if isinstance(node.operation, layers.UnitNormalization) or _activation(node.operation) not in LINEAR:
            ending = _activation(node.operation) or "a norm"
            return f"output {name!r} ends in {ending}: an exit chooses one class, by softmax or logits"
    return ""


def _activation(operation: Any) -> str:
    """Name of the activation that an operation applies last, or an empty string."""
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if type(operation) in (layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU):
        return type(operation).__name__.lower()
    if isinstance(operation, layers.Layer):
        inner = getattr(operation, "activation", None)
        return _activation(inner) if isinstance(inner, layers.Layer) else str(getattr(inner, "__name__", ""))
    name = type(operation).__name__.lower()
    return name if name in NONLINEAR or name in LINEAR else ""


def _ordered(graph: Graph, exits: list[Exit]) -> list[Exit]:
    needs = {one.name: graph.ancestors([one.output]) for one in exits}

    def place(one: Exit) -> tuple[int, int, int]:
        mine = needs[one.name]
        others = set[int]().union(*(needs[other.name] for other in exits if other is not one))
        return len(mine & others), sum(graph.nodes[i].macs for i in mine), len(mine)

    return sorted(exits, key=place)


def _trunk(graph: Graph, exits: list[Exit]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The trunk in order, and the position of each exit on it."""
    ends = [logits_of(graph, one.output) for one in exits]
    seen: dict[Key, str] = {}
    for one, (key, dense) in zip(exits, ends, strict=True):
        if key in seen:
            raise PermanentError(f"exits {seen[key]!r} and {one.name!r} are the same: leave one out")
        seen[key] = one.name
        if dense is not None and any(key in node.reads for node in graph.nodes):
            raise PermanentError(
                f"the probabilities of {dense.path!r} are used further: give it a Softmax layer of its own"
            )
    whole = _without_inputs(graph, [ends[-1][0]] if ends else graph.outputs)
    shared = [sorted(_without_inputs(graph, [key]) & whole) for key, _ in ends[:-1]]
    shared = [[] if _is_preprocessing(graph, nodes, whole) else nodes for nodes in shared]
    trunk = list(dict.fromkeys([*(index for nodes in shared for index in nodes), *sorted(whole)]))
    at = {index: position for position, index in enumerate(trunk, 1)}
    early = [max((at[index] for index in nodes), default=0) for nodes in shared]
    return tuple(trunk), (*early, *([len(trunk)] if exits else []))


def _without_inputs(graph: Graph, keys: Iterable[Key]) -> set[int]:
    return {index for index in graph.ancestors(keys) if not graph.nodes[index].is_input}


def _is_preprocessing(graph: Graph, shared: list[int], whole: set[int]) -> bool:
    """Whether an exit that shares the nodes `shared` with the trunk may do them itself, from the raw input."""
    nodes = [graph.nodes[index] for index in shared]
    if any(node.macs or _has_weights(node.operation) for node in nodes):
        return False
    made = {key for node in nodes for key in node.outputs}
    crossing = {key for index in whole - set(shared) for key in graph.nodes[index].reads if key in made}
    return _nbytes(graph, graph.inputs.values()) <= _nbytes(graph, crossing)


def _has_weights(operation: Any) -> bool:
    return bool(getattr(operation, "weights", ())) and not isinstance(operation, layers.Normalization)


def _nbytes(graph: Graph, keys: Iterable[Key]) -> int:
    return sum(math.prod(graph.shape(key)) * np.dtype(graph.dtype(key)).itemsize for key in keys)
